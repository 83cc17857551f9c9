"""Block formats: elements of a narrow format that share a scale, block by block along the last axis.

OCP Microscaling Formats 1.0, section 6.3: the scale is the power of two that brings the block's largest magnitude to the
element's largest exponent, and what then still overflows saturates. Formats with a finer scale (NVFP4, NF4) put the
block's largest magnitude on the element's largest value.
"""

from dataclasses import dataclass

import numpy as np

from fewbit.errors import FewbitError
from fewbit.numerics.affine import check_finite
from fewbit.numerics.formats import BlockFormat, CodebookFormat, FloatFormat, cast


@dataclass(frozen=True)
class Blocks:
    """elements [..., n] in the element's storage dtype (indices of a codebook); scales [..., blocks]; tensor_scale float32."""

    elements: np.ndarray
    scales: np.ndarray
    tensor_scale: np.float32
    format: BlockFormat


def quantize(x: np.ndarray, fmt: BlockFormat) -> Blocks:
    """x [..., n] -> Blocks; a last block of fewer elements has a scale of its own. NaN and infinity are refused."""
    x = np.asarray(x, np.float32).astype(np.float64)
    if x.ndim == 0 or x.shape[-1] == 0:
        raise FewbitError(f"{fmt.name}: an array of shape {list(x.shape)} has no blocks")
    check_finite(x, fmt.name)
    peaks = np.maximum.reduceat(np.abs(x), np.arange(0, x.shape[-1], fmt.block_size), axis=-1)
    whole = np.float32(peaks.max() / (fmt.element.max * fmt.scale.max)) if fmt.tensor_scale else np.float32(1)
    whole = whole if whole > 0 else np.float32(1)
    scales = _scales(peaks / np.float64(whole), fmt)
    step = _spread(scales * np.float64(whole), x.shape[-1], fmt.block_size)
    scaled = np.divide(x, step, out=np.zeros_like(x), where=step > 0)
    element = fmt.element
    if isinstance(element, CodebookFormat):
        elements = element.encode(scaled)
    else:
        elements = cast(scaled, element, "saturate").values.astype(element.dtype)
    return Blocks(elements, scales.astype(fmt.scale.dtype), whole, fmt)


def _scales(peaks: np.ndarray, fmt: BlockFormat) -> np.ndarray:
    if fmt.scale.signed:
        return cast(peaks / fmt.element.max, fmt.scale, "saturate").values
    assert isinstance(fmt.element, FloatFormat)
    exponent = np.frexp(peaks)[1] - 1 - fmt.element.max_exponent
    least = round(np.log2(fmt.scale.smallest_normal))
    return np.ldexp(1.0, np.clip(np.where(peaks > 0, exponent, least), least, fmt.scale.max_exponent))


def dequantize(blocks: Blocks) -> np.ndarray:
    """Blocks -> float32 [..., n]."""
    fmt, n = blocks.format, blocks.elements.shape[-1]
    if isinstance(fmt.element, CodebookFormat):
        values = np.array(fmt.element.values)[blocks.elements]
    else:
        values = blocks.elements.astype(np.float64)
    step = blocks.scales.astype(np.float64) * np.float64(blocks.tensor_scale)
    return (values * _spread(step, n, fmt.block_size)).astype(np.float32)


def _spread(scales: np.ndarray, n: int, block_size: int) -> np.ndarray:
    return np.repeat(scales, block_size, axis=-1)[..., :n]
