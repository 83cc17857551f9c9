"""An artifact's 4-bit integers as AutoAWQ's GEMM checkpoints hold them: int32 [in, out / 8], eight outputs in ORDER."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from fewbit.errors import FewbitError
from fewbit.llm import gptq_layout, packed, readback, relayout
from fewbit.llm.options import Options
from fewbit.llm.packed import Layer, PackedWeight, Recipe

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # which of eight outputs lies in each nibble, the lowest first
KINDS = ("int4",)


def check(source: Path, kind: str, given: Options) -> None:
    recipe = relayout.check(source, kind, KINDS)
    if recipe is not None:
        gptq_layout.one_layer(recipe, str(source))
    if (recipe.default if recipe else given).symmetric:
        raise FewbitError("awq keeps zero points: quantize without --symmetric, or export to gptq")


plain_kind, options = gptq_layout.plain_kind, gptq_layout.options


def export(folder: Path, out: Path, kind: str, given: Options) -> dict[str, Any]:
    return relayout.write(folder, out, _tensors, _config, readback.awq)


def _tensors(name: str, weight: PackedWeight, layer: Layer) -> dict[str, torch.Tensor]:
    if weight.shape[0] % 8:
        raise FewbitError(f"{name}: awq packs eight outputs together, which {weight.shape[0]} are not a multiple of")
    return {
        f"{name}.qweight": _words(packed.unpack(weight).T),
        f"{name}.qzeros": _words(packed.zero_points(weight).T),
        f"{name}.scales": torch.from_numpy(np.ascontiguousarray(weight.scale.T)),
    }


def _words(codes: np.ndarray) -> torch.Tensor:
    """uint8 [rows, out] -> int32 [rows, out / 8]."""
    parts = codes.reshape(len(codes), -1, 8)[..., list(ORDER)].astype(np.uint32) << np.arange(0, 32, 4, dtype=np.uint32)
    return torch.from_numpy(np.ascontiguousarray(np.bitwise_or.reduce(parts, axis=2)).view(np.int32))


def _config(recipe: Recipe, floats: tuple[str, ...]) -> dict[str, Any]:
    return {
        "quant_method": "awq",
        "bits": 4,
        "group_size": recipe.default.group_size,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": ["lm_head", *gptq_layout.further(floats)],
    }
