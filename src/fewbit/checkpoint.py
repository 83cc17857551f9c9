"""What a Hugging Face folder says of its model without loading a weight: config.json, and the safetensors files' headers."""

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewbit.errors import FewbitError

LLAMA_LIKE = ("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma", "gemma2")
MAX_HEADER = 100 << 20  # the safetensors library's own limit
BUFFERS = re.compile(r"(\.attn\.(bias|masked_bias)|position_ids|inv_freq)$")  # saved beside the weights, and no weights
DTYPES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
SIZES = DTYPES | {"U8": 1, "I8": 1}


@dataclass(frozen=True)
class Shape:
    """What a language model keeps a token: layers, KV heads and their width; and the widths of its activations."""

    layers: int
    kv_heads: int
    head_dim: int
    hidden: int
    intermediate: int
    vocab: int


def from_config(config: dict[str, Any]) -> tuple[list[tuple[int, int]], int, int, Shape, bool]:
    """(matrices, weights in vectors, weights only looked up, shape, head tied to the embedding)."""
    kind = config.get("model_type")
    if kind == "gpt2":
        return _gpt2(config)
    if kind not in LLAMA_LIKE:
        raise FewbitError(f"model_type {str(kind)[:40]!r} is not known; known are gpt2, {', '.join(LLAMA_LIKE)}")
    hidden, layers, heads = (_int(config, k) for k in ("hidden_size", "num_hidden_layers", "num_attention_heads"))
    inner, vocab = _int(config, "intermediate_size"), _int(config, "vocab_size")
    kv, dim = _int(config, "num_key_value_heads", heads), _int(config, "head_dim", hidden // heads)
    q, k = heads * dim, kv * dim
    block = [(q, hidden), (k, hidden), (k, hidden), (hidden, q), (inner, hidden), (inner, hidden), (hidden, inner)]
    vectors = hidden * (4 if kind == "gemma2" else 2) + (2 * dim if kind == "qwen3" else 0)
    if kind == "qwen2" or config.get("attention_bias"):
        vectors += q + 2 * k + (0 if kind == "qwen2" else hidden)
    vectors += 2 * inner + hidden if config.get("mlp_bias") else 0
    tied = bool(config.get("tie_word_embeddings", kind.startswith("gemma")))
    matrices, lookup = block * layers + [(vocab, hidden)] * (2 - tied), 0 if tied else vocab * hidden
    return matrices, vectors * layers + hidden, lookup, Shape(layers, kv, dim, hidden, inner, vocab), tied


def _gpt2(config: dict[str, Any]) -> tuple[list[tuple[int, int]], int, int, Shape, bool]:
    n, layers, heads, vocab = (_int(config, k) for k in ("n_embd", "n_layer", "n_head", "vocab_size"))
    positions, inner = _int(config, "n_positions", 1024), _int(config, "n_inner", 4 * n)
    block = [(3 * n, n), (n, n), (inner, n), (n, inner)]
    vectors = layers * (3 * n + n + inner + n + 4 * n) + 2 * n
    return (
        block * layers + [(vocab, n), (positions, n)],
        vectors,
        positions * n,
        Shape(layers, heads, n // heads, n, inner, vocab),
        True,
    )


def _int(config: dict[str, Any], key: str, default: int | None = None) -> int:
    value = default if config.get(key) is None else config[key]
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 1 << 20:
        raise FewbitError(f"{key} is {str(value)[:40]}; it must be a whole number from 1 to {1 << 20}")
    return value


def read_json(path: Path, why: str) -> dict[str, Any]:
    if not path.exists():
        raise FewbitError(f"{path}: no such file; {why}")
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise FewbitError(f"{path}: not a JSON object, or truncated; download it again")
    return found


def shards(folder: Path) -> list[Path]:
    """The files that make one checkpoint: some folders keep a second copy of the weights under other names."""
    index, whole = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.exists():
        names = read_json(index, "").get("weight_map")
        if not isinstance(names, dict) or not names or not all(isinstance(n, str) for n in names.values()):
            raise FewbitError(f"{index}: has no weight_map; download it again")
        found = sorted({folder / Path(n).name for n in names.values()})
        if whole.exists() and whole not in found:
            raise FewbitError(f"{folder}: has model.safetensors and an index of other files; programs differ in which they read: "
                              "remove one of them")  # fmt: skip
        return found
    return [whole] if whole.exists() else sorted(folder.glob("*.safetensors"))


def merged(parts: Iterable[tuple[Path, dict[str, Any]]]) -> dict[str, tuple[Path, Any]]:
    """Name -> (file, what its header says) over all files of a checkpoint, each name once."""
    found: dict[str, tuple[Path, Any]] = {}
    for path, header in parts:
        for name, entry in header.items():
            if name in found:
                raise FewbitError(f"{path}: {name[:80]} lies in {found[name][0].name} too; remove the one that is not meant")
            found[name] = (path, entry)
    return found


def read_header(path: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of a float checkpoint; the weights are not read."""
    header, _ = entries(path)
    packed = [f"{k[:80]} is {v['dtype']}" for k, v in header.items() if v["dtype"] not in DTYPES and not BUFFERS.search(k)]
    if packed:
        raise FewbitError(f"{path}: already quantized ({packed[0]}); give the float checkpoint")
    return {k: tuple(v["shape"]) for k, v in header.items() if not BUFFERS.search(k)}


def entries(path: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """(name -> dtype, shape, data_offsets of every tensor; where the data begin), from 8 bytes of length and that much JSON."""
    size = path.stat().st_size
    with path.open("rb") as f:
        length = int.from_bytes(f.read(8), "little")
        if size < 8 or not 2 <= length <= min(MAX_HEADER, size - 8):
            raise FewbitError(f"{path}: not a safetensors file, or truncated: no room for its header; download it again")
        text = f.read(length)
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        for v in header.values():
            _shape(v)
        total = sum(v["data_offsets"][1] - v["data_offsets"][0] for v in header.values())
        places = sorted(tuple(v["data_offsets"]) for v in header.values())
        inside = all(
            start == end for (_, end), (start, _) in zip([(0, 0), *places], places, strict=False)
        )  # one behind the other
        assert all(isinstance(v["dtype"], str) for v in header.values())
    except Exception:
        raise FewbitError(f"{path}: its safetensors header is damaged; download it again") from None
    if total != size - 8 - length or not inside:
        raise FewbitError(f"{path}: its header declares {total} bytes of weights, {size - 8 - length} follow; download it again")
    return header, 8 + length


def _shape(entry: dict[str, Any]) -> tuple[int, ...]:
    shape, (start, end) = tuple(entry["shape"]), entry["data_offsets"]
    if not all(type(d) is int and d >= 0 for d in (*shape, start, end)):
        raise ValueError
    if end < start or (entry["dtype"] in SIZES and end - start != math.prod(shape) * SIZES[entry["dtype"]]):
        raise ValueError
    return shape
