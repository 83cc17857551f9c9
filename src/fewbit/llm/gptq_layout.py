"""An artifact's integers as GPTQ checkpoints hold them: eight codes of 4 bits in an int32 down a column, zero points along a row.

Zero points are stored as they are, which is "gptq_v2"; symmetric weights take the older "gptq", which stores them less one, and
which everything reads.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fewbit.errors import FewbitError
from fewbit.llm import packed, plain, readback, relayout
from fewbit.llm.options import Options
from fewbit.llm.packed import Layer, PackedWeight, Recipe

KINDS = ("int8", "int4", "int2")


def check(source: Path, kind: str, given: Options) -> None:
    recipe = relayout.check(source, kind, KINDS)
    if recipe is not None:
        one_layer(recipe, str(source))


def plain_kind(kind: str, given: Options) -> bool:
    return False


def options(source: Path, kind: str, given: Options) -> Options:
    return relayout.options(kind, given)


def export(folder: Path, out: Path, kind: str, given: Options) -> dict[str, Any]:
    return relayout.write(folder, out, _tensors, _config, readback.gptq)


def one_layer(recipe: Recipe, where: str) -> None:
    """These layouts have one width for all layers."""
    if any(layer != recipe.default for name, layer in recipe.layers.items() if ".layers." in name):
        raise FewbitError(f"{where}: its layers differ in width, which this layout cannot say; export to compressed-tensors")


def _tensors(name: str, weight: PackedWeight, layer: Layer) -> dict[str, torch.Tensor]:
    columns = weight.shape[1]
    zero = packed.zero_points(weight) - (1 if layer.symmetric else 0)
    found = {
        "qweight": _rows(packed.unpack(weight), weight.bits).T.contiguous(),
        "qzeros": _rows(zero.T, weight.bits),
        "scales": torch.from_numpy(np.ascontiguousarray(weight.scale.T)),
        "g_idx": torch.arange(columns, dtype=torch.int32) // weight.group_size,
    }
    return {f"{name}.{leaf}": t for leaf, t in found.items()}


def _rows(unsigned: np.ndarray, bits: int) -> torch.Tensor:
    """uint8 [rows, n] -> int32 [rows, n bits / 32], the first code lowest."""
    return plain.pack_int32(torch.from_numpy((unsigned.astype(np.int16) - (1 << (bits - 1))).astype(np.int8)), bits)


def further(floats: tuple[str, ...]) -> list[str]:
    """Layers in float among those that these layouts take for packed by their place."""
    return [n for n in floats if ".layers." in n]


def _config(recipe: Recipe, floats: tuple[str, ...]) -> dict[str, Any]:
    layer, plain = recipe.default, further(floats)
    names = {"modules_to_not_convert": plain, "dynamic": {f"-:^{re.escape(n)}$": {} for n in plain}} if plain else {}
    return names | {
        "quant_method": "gptq",
        "bits": layer.bits,
        "group_size": layer.group_size,
        "sym": layer.symmetric,
        "desc_act": False,
        "checkpoint_format": "gptq" if layer.symmetric else "gptq_v2",
        "lm_head": False,
    }
