"""The layout that vLLM and transformers read as "compressed-tensors": an artifact's integers, or a float checkpoint rounded.

Kinds: int8, int4, int3, int2 in groups (weights only), w8a8 (int8 a row, activations int8 a token), fp8 (float8_e4m3fn a row,
activations a token), fp8-block (128 x 128, activations in groups of 128), nvfp4 and mxfp4 (weights only). Rounded kinds go shard
by shard and need no text (llm/plain).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fewbit.errors import FewbitError
from fewbit.llm import packed, plain, readback, relayout
from fewbit.llm.consumers import FUSED
from fewbit.llm.options import WEIGHTS, Options
from fewbit.llm.packed import Layer, PackedWeight
from fewbit.llm.source import Source

TOKEN = {"strategy": "token", "dynamic": True, "symmetric": True}
ROUNDED = {  # format, weights, activations
    "w8a8": ("int-quantized", {"type": "int", "num_bits": 8, "strategy": "channel"}, TOKEN | {"type": "int", "num_bits": 8}),
    "fp8": ("float-quantized", {"type": "float", "num_bits": 8, "strategy": "channel"}, TOKEN | {"type": "float", "num_bits": 8}),
    "fp8-block": (
        "float-quantized",
        {"type": "float", "num_bits": 8, "strategy": "block", "block_structure": [128, 128]},
        TOKEN | {"type": "float", "num_bits": 8, "strategy": "group", "group_size": 128},
    ),
    "nvfp4": (
        "nvfp4-pack-quantized",
        {"type": "float", "num_bits": 4, "strategy": "tensor_group", "group_size": 16, "scale_dtype": "torch.float8_e4m3fn"},
        None,
    ),
    "mxfp4": (
        "mxfp4-pack-quantized",
        {"type": "float", "num_bits": 4, "strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"},
        None,
    ),
}
DIVISORS = {"nvfp4": 16, "mxfp4": 32}
KINDS = (*WEIGHTS, *ROUNDED)


def check(source: Path, kind: str, given: Options) -> None:
    """Refuse what cannot be written, before any work."""
    recipe = relayout.check(source, kind, KINDS)
    if recipe is None and plain_kind(kind, given):
        size = DIVISORS.get(kind, given.group_size if kind in WEIGHTS else 1)
        for name, shape in relayout.matrices(source).items():
            if shape[1] % size:
                fit = ", ".join(str(g) for g in (128, 64, 32) if shape[1] % g == 0)
                raise FewbitError(
                    f"{kind} in groups of {size} does not divide the {shape[1]} columns of {name.removesuffix('.weight')}"
                    + (f"; give --group-size {fit}" if fit and kind in WEIGHTS else "")
                )


def plain_kind(kind: str, given: Options) -> bool:
    """Rounded straight from the checkpoint, without a walk over its blocks."""
    return kind in ROUNDED or given.method == "rtn"


def options(source: Path, kind: str, given: Options) -> Options:
    return relayout.options(kind, given)


def export(folder: Path, out: Path, kind: str, given: Options) -> dict[str, Any]:
    if relayout.recipe_of(folder) is None:
        return _round(relayout.source_of(folder), out, kind, given)
    return relayout.write(
        folder, out, _tensors, lambda recipe, floats: _config(_groups(recipe), (*recipe.skipped, *floats)), readback.compressed
    )


def _tensors(name: str, weight: PackedWeight, layer: Layer) -> dict[str, torch.Tensor]:
    """Of an artifact's layer."""
    half = 1 << (weight.bits - 1)
    codes = torch.from_numpy((packed.unpack(weight).astype(np.int16) - half).astype(np.int8))
    zero = None if weight.zero_point is None else torch.from_numpy((weight.zero_point.astype(np.int16) - half).astype(np.int8))
    return _named(name, codes, torch.from_numpy(weight.scale), zero, weight.bits)


def _named(name: str, codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None, bits: int) -> dict[str, torch.Tensor]:
    found = {"weight_packed": plain.pack_int32(codes, bits), "weight_scale": scale, "weight_shape": torch.tensor(codes.shape)}
    if zero is not None:
        found["weight_zero_point"] = plain.pack_int32(zero.T.contiguous(), bits).T.contiguous()
    return {f"{name}.{leaf}": t for leaf, t in found.items()}


def _round(source: Source, out: Path, kind: str, given: Options) -> dict[str, Any]:
    matrices = relayout.matrices(source.folder)

    def tensors(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        if not torch.isfinite(weight).all():
            raise FewbitError(f"{source.folder}: {name} holds numbers that are not finite; download it again")
        base = name.removesuffix(".weight")
        if kind in WEIGHTS:
            bits = int(kind.removeprefix("int"))
            return _named(base, *plain.grouped(weight, bits, given.group_size, given.symmetric), bits)
        if kind == "nvfp4":
            made = plain.nvfp4(weight, torch.stack([w.abs().max() for w in _fused(name, weight, source)]).max())
        else:
            make = {"w8a8": plain.per_row, "fp8": plain.fp8_rows, "fp8-block": plain.fp8_blocks, "mxfp4": plain.mxfp4}[kind]
            made = make(weight)
        return {f"{base}.{leaf}": t for leaf, t in made.items()}

    floats = relayout.left_out(source.folder, matrices)
    layer = Layer(kind, given.group_size, given.symmetric) if kind in WEIGHTS else None
    group = _integers(layer, ["Linear"]) if layer else _group(*ROUNDED[kind])
    return relayout.write_rounded(source, out, set(matrices), tensors, _config([group], ("lm_head", *floats)), kind, layer)


def _fused(name: str, weight: torch.Tensor, source: Source) -> Iterator[torch.Tensor]:
    """The weights that run as one with this one, itself among them."""
    head, part, leaf = name.rsplit(".", 2)
    yield weight
    for group in (g for g in FUSED if part in g):
        names = [f"{head}.{other}.{leaf}" for other in group if other != part]
        if all(n in source.shards for n in names):
            yield from source.load(names, None).values()


def _groups(recipe: packed.Recipe) -> list[dict[str, Any]]:
    """What all layers share, then by name those that differ."""
    by_layer: dict[Layer, list[str]] = {}
    for name, layer in recipe.layers.items():
        if layer != recipe.default and ".layers." in name:
            by_layer.setdefault(layer, []).append(name)
    return [*(_integers(layer, names) for layer, names in by_layer.items()), _integers(recipe.default, ["Linear"])]


def _integers(layer: Layer, targets: list[str]) -> dict[str, Any]:
    bits = int(layer.weights.removeprefix("int"))
    weights = {"type": "int", "num_bits": bits, "strategy": "group", "group_size": layer.group_size, "symmetric": layer.symmetric}
    return _group("pack-quantized", weights, None) | {"targets": targets}


def _group(form: str, weights: dict[str, Any], activations: dict[str, Any] | None) -> dict[str, Any]:
    return {"format": form, "targets": ["Linear"], "weights": {"symmetric": True, "dynamic": False} | weights,
            "input_activations": activations, "output_activations": None}  # fmt: skip


def _config(groups: list[dict[str, Any]], ignored: tuple[str, ...]) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "format": groups[-1]["format"],
        "config_groups": {f"group_{k}": g for k, g in enumerate(groups)},
        "ignore": sorted({"lm_head", *ignored}),
        "kv_cache_scheme": None,
    }
