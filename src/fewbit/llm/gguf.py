"""A checkpoint, float or quantized, as one GGUF file: names, layout and metadata as llama.cpp's converter writes them.

Rows of q and k are reordered for the llama family, whose rotary embedding llama.cpp applies to neighbours. Vectors are kept in
float32. Layers that fewbit's own format holds become the type that holds the same numbers, where there is one.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fewbit import checkpoint, gguf_file
from fewbit.errors import FewbitError
from fewbit.gguf_file import Tensor
from fewbit.llm import gguf_vocab, packed
from fewbit.llm.options import Options
from fewbit.llm.packed import Layer, PackedWeight, Recipe
from fewbit.llm.tensors import Tensors
from fewbit.numerics import ggml

PERMUTED = {"llama": True, "mistral": True, "qwen2": False, "qwen3": False}  # model_type -> q and k reordered
OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
INSIDE = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
FLOAT_TYPES: dict[str, tuple[int, np.dtype[Any]]] = {"f32": (0, np.dtype(np.float32)), "f16": (1, np.dtype(np.float16))}


def export(folder: Path, out: Path, kind: str = "", given: Options | None = None) -> dict[str, Any]:
    """Write the GGUF file; kind: "f32" or "f16" of a float checkpoint; of an artifact the type it was solved for, or ""."""
    from fewbit.llm import gguf_readback  # which reads by this module's names

    config, recipe, chosen = check(folder, kind)
    tensors = Tensors(folder)
    held = [t for name in tensors for t in _tensor(name, tensors, recipe, config, chosen)]
    held += _rope_factors(config)
    metadata = _metadata(out.stem, config, chosen) | gguf_vocab.metadata(folder, config)
    compared: list[int] = []

    def readable(part: Path) -> None:
        compared.append(gguf_readback.check(part, out, tensors, recipe, config))

    size = gguf_file.write(out, metadata, sorted(held, key=lambda t: t.name), readable)
    return {"file": str(out), "type": chosen, "bytes": size, "tensors": len(held), "read_back": compared[0]}


def check(folder: Path, kind: str, given: Options | None = None) -> tuple[dict[str, Any], Recipe | None, str]:
    """(config.json, what it was quantized by, the type to write); all that can be refused, before any work."""
    config = checkpoint.read_json(folder / "config.json", "a language model's folder holds one")
    family = config.get("model_type")
    if family not in PERMUTED:
        raise FewbitError(f"{folder}: model_type {str(family)[:40]!r}; GGUF files are written of {', '.join(PERMUTED)}")
    rope = _rope(config)
    if rope["rope_type"] not in ("default", "llama3", "linear"):
        raise FewbitError(
            f"{folder}: rotary embeddings are {str(rope['rope_type'])[:40]!r}; default, linear and llama3 are known"
        )
    _check_window(config, folder)
    gguf_vocab.metadata(folder, config)
    entry = config.get("quantization_config")
    recipe = packed.from_config(entry, str(folder)) if entry else None
    return config, recipe, _chosen(recipe, kind, folder)


def _check_window(config: dict[str, Any], folder: Path) -> None:
    """llama.cpp's models of these families attend to all that came before."""
    window, context = config.get("sliding_window"), int(config["max_position_embeddings"])
    used = config["model_type"] == "mistral" or config.get("use_sliding_window")
    if used and window and int(window) < context:
        raise FewbitError(
            f"{folder}: attention reaches back {window} tokens (sliding_window), in llama.cpp {config['model_type']} has no such "
            f"window; for texts of up to {window} tokens the model is the same with sliding_window null and "
            f"max_position_embeddings {window} in config.json"
        )


def plain_kind(kind: str, given: Options) -> bool:
    """Written without quantizing."""
    return kind in FLOAT_TYPES


def options(source: Path, kind: str, given: Options) -> Options:
    """How a float checkpoint is quantized: the embedding, and an untied head, to q8_0, as llama.cpp does."""
    tied = checkpoint.read_json(source / "config.json", "").get("tie_word_embeddings") or "lm_head.weight" not in Tensors(source)
    return replace(given, weights=kind, embedding=given.embedding or "q8_0", head="" if tied else given.head or "q8_0")


def _chosen(recipe: Recipe | None, kind: str, folder: Path) -> str:
    if recipe is None:
        kinds = (*FLOAT_TYPES, *ggml.TYPES)
        if kind not in kinds:
            raise FewbitError(f"--type {kind or 'is not given'}: of a float checkpoint choose {', '.join(kinds)}")
        return kind
    held = holder(recipe.default, str(folder))
    if kind not in ("", held):
        raise FewbitError(
            f"--type {kind}: {folder} was quantized to {recipe.default.weights}, which {held} holds; give --type {held}, or the "
            "float checkpoint to quantize it anew"
        )
    return held


def holder(layer: Layer, where: str) -> str:
    """The type of llama.cpp that holds a layer's numbers (an asymmetric one's minima rounded to float16)."""
    if layer.weights in ggml.TYPES:
        return layer.weights
    if not _holds(layer):
        kind = f"{layer.weights} in groups of {layer.group_size}{', symmetric' if layer.symmetric else ''}"
        raise FewbitError(
            f"{where}: no type of llama.cpp holds {kind} (groups must be multiples of 32, int8 symmetric); "
            "give the float checkpoint and --type, to quantize it on llama.cpp's own grid"
        )
    return "q8_0" if layer.bits == 8 else "q4_0" if layer.symmetric else "q4_1"


def _holds(layer: Layer) -> bool:
    return layer.weights in ggml.TYPES or not (layer.group_size % 32 or (layer.bits == 8 and not layer.symmetric))


def name_of(name: str, where: str) -> str:
    """GGUF's name of a module."""
    if name in OUTSIDE:
        return OUTSIDE[name]
    parts = name.split(".", 3)
    if len(parts) == 4 and parts[:2] == ["model", "layers"] and parts[2].isdigit() and parts[3] in INSIDE:
        return f"blk.{parts[2]}.{INSIDE[parts[3]]}"
    raise FewbitError(f"{where}: the tensor {name[:80]} has no known name in llama.cpp")


def _tensor(key: str, tensors: Tensors, recipe: Recipe | None, config: dict[str, Any], chosen: str) -> list[Tensor]:
    """The file's tensor of one of the folder's; none of a scale, which its codes bring along."""
    name, _, leaf = key.rpartition(".")
    if leaf in ("scale", "zero_point") or key.endswith("rotary_emb.inv_freq"):
        return []
    if name == "lm_head" and leaf == "weight" and _is_embedding(key, tensors):
        return []
    if beyond(name, config):
        return []
    where, entry = str(tensors.folder), tensors.shape(key)
    order = _order(name, config)
    full = name_of(name, where) + (".bias" if leaf == "bias" else ".weight")
    if leaf in ("blocks", "codes") and recipe is not None:
        layer = recipe.of(name)
        if name in OUTSIDE and not _holds(layer):  # an embedding, which llama.cpp takes in float too
            table = packed.dequantize(packed.read(name, tensors, layer, where))
            number, dtype = FLOAT_TYPES["f16" if fits_float16(table) else "f32"]
            return [Tensor(full, table.shape, number, lambda: table.astype(dtype))]
        kind = ggml.TYPES[holder(layer, where)]
        groups = tensors.shape(f"{name}.scale") if leaf == "codes" else (entry[0], entry[1] // kind.record.itemsize)
        columns = groups[1] * (layer.group_size if leaf == "codes" else kind.block)

        def rows() -> np.ndarray:
            return order(_blocks(name, leaf, tensors, layer, kind))

        return [Tensor(full, (entry[0], columns), kind.number, rows)]
    if leaf not in ("weight", "bias"):
        raise FewbitError(f"{where}: the tensor {key[:80]} has no known name in llama.cpp")
    plain = len(entry) == 1 or chosen == "f32" or not fits_float16(_float(tensors, key))
    number, dtype = FLOAT_TYPES["f32" if plain else "f16"]
    return [Tensor(full, entry, number, lambda: order(_float(tensors, key).astype(dtype)))]


def fits_float16(array: np.ndarray) -> bool:
    """Whether float16 holds these numbers as well as it does numbers in the middle of its range: none becomes infinite, and what
    is lost of the small ones is small beside the whole."""
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    if not np.isfinite(half).all():
        return False
    lost = float(np.linalg.norm((half.astype(np.float32) - array).ravel()))
    return lost <= 2.0**-11 * float(np.linalg.norm(array.ravel()))


def _is_embedding(head: str, tensors: Tensors) -> bool:
    """llama.cpp takes the embedding where a file has no head. What config.json calls tied may still have a head of its own."""
    ours, table = tensors(head), tensors("model.embed_tokens.weight")
    return ours is not None and table is not None and np.array_equal(ours, table)


def beyond(name: str, config: dict[str, Any]) -> bool:
    """Layers that predict further tokens lie behind the model's own, and are no part of it."""
    parts = name.split(".", 3)
    return parts[:2] == ["model", "layers"] and parts[2].isdigit() and int(parts[2]) >= int(config["num_hidden_layers"])


def _float(tensors: Tensors, key: str) -> np.ndarray:
    array = tensors(key)
    assert array is not None
    array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise FewbitError(f"{tensors.folder}: {key} holds numbers that are not finite; download it again")
    return array


def _blocks(name: str, leaf: str, tensors: Tensors, layer: Layer, kind: ggml.Type) -> np.ndarray:
    where = str(tensors.folder)
    if leaf == "blocks":
        data = tensors(f"{name}.blocks")
        assert data is not None
        packed.read_blocks(name, data, layer, where)
        return data
    return ggml.pack(converted(packed.read(name, tensors, layer, where), kind))


def converted(weight: PackedWeight, kind: ggml.Type) -> ggml.Parts:
    """A weight of fewbit's own format as the type that `holder` names."""
    repeat = weight.group_size // kind.group
    scale, zero = (np.repeat(x.astype(np.float32), repeat, axis=1) for x in (weight.scale, packed.zero_points(weight)))
    codes = packed.unpack(weight)
    if kind.zero is not None:
        return ggml.Parts(codes + np.uint8(kind.zero - (1 << (weight.bits - 1))), scale, 0 * scale, kind)
    return ggml.Parts(codes, *ggml.held(scale, scale * zero, kind), kind)


def _order(name: str, config: dict[str, Any]) -> Callable[[np.ndarray], np.ndarray]:
    """What happens to the rows: of q and k of the llama family, each head's two halves are interleaved."""
    part = name.rpartition(".")[2]
    if not PERMUTED[config["model_type"]] or part not in ("q_proj", "k_proj"):
        return lambda a: a
    heads = int(config["num_attention_heads"])
    heads = heads if part == "q_proj" else int(config.get("num_key_value_heads") or heads)

    def interleave(a: np.ndarray) -> np.ndarray:
        return a.reshape(heads, 2, -1, *a.shape[1:]).swapaxes(1, 2).reshape(a.shape)

    return interleave


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    """transformers 5 keeps all in rope_parameters; older files rope_theta beside rope_scaling."""
    found = config.get("rope_parameters") or config.get("rope_scaling")
    found = found if isinstance(found, dict) else {}
    return {"rope_theta": config.get("rope_theta", 10000.0), "rope_type": found.get("type", "default")} | found


@dataclass(frozen=True)
class _Shape:
    hidden: int
    heads: int
    head_dim: int


def _shape(config: dict[str, Any]) -> _Shape:
    hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    return _Shape(hidden, heads, int(config.get("head_dim") or hidden // heads))


def _metadata(name: str, config: dict[str, Any], chosen: str) -> dict[str, Any]:
    arch = "llama" if PERMUTED[config["model_type"]] else config["model_type"]
    shape, rope = _shape(config), _rope(config)
    file_type = ggml.TYPES[chosen].file_type if chosen in ggml.TYPES else FLOAT_TYPES[chosen][0]
    found: dict[str, Any] = {
        "general.architecture": arch,
        "general.type": "model",
        "general.name": str(config.get("_name_or_path") or name),
        "general.file_type": file_type,
        "general.quantization_version": 2,
        f"{arch}.block_count": int(config["num_hidden_layers"]),
        f"{arch}.context_length": int(config["max_position_embeddings"]),
        f"{arch}.embedding_length": shape.hidden,
        f"{arch}.feed_forward_length": int(config["intermediate_size"]),
        f"{arch}.attention.head_count": shape.heads,
        f"{arch}.attention.head_count_kv": int(config.get("num_key_value_heads") or shape.heads),
        f"{arch}.attention.key_length": shape.head_dim,
        f"{arch}.attention.value_length": shape.head_dim,
        f"{arch}.attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        f"{arch}.rope.freq_base": float(rope["rope_theta"]),
        f"{arch}.rope.dimension_count": shape.head_dim,
        f"{arch}.vocab_size": int(config["vocab_size"]),
    }
    if rope["rope_type"] == "linear":
        found |= {f"{arch}.rope.scaling.type": "linear", f"{arch}.rope.scaling.factor": float(rope["factor"])}
    return found


def _rope_factors(config: dict[str, Any]) -> list[Tensor]:
    """Llama 3.1's slowed rotations, as divisors of the frequencies."""
    rope, dim = _rope(config), _shape(config).head_dim
    if rope["rope_type"] != "llama3":
        return []
    factor, low, high = (float(rope[k]) for k in ("factor", "low_freq_factor", "high_freq_factor"))
    wavelength = 2 * math.pi * float(rope["rope_theta"]) ** (np.arange(0, dim, 2, dtype=np.float64) / dim)
    smooth = np.clip((float(rope["original_max_position_embeddings"]) / wavelength - low) / (high - low), 0, 1)
    return [Tensor.of("rope_freqs.weight", 1 / ((1 - smooth) / factor + smooth))]
