"""Affine quantization of one array: q = clamp(round_half_even(x / scale) + zero_point).

Source: ONNX QuantizeLinear-21 / DequantizeLinear-21. Scales are float32, because the file stores float32; the division is
a true float32 division, because multiplying by the reciprocal differs in 3e-5 of the codes.
"""

from dataclasses import dataclass

import numpy as np

from fewbit.errors import FewbitError


@dataclass(frozen=True)
class IntFormat:
    """A range of integers, and the NumPy dtype that holds it."""

    name: str
    bits: int
    signed: bool

    @property
    def quant_min(self) -> int:
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def quant_max(self) -> int:
        return (1 << (self.bits - self.signed)) - 1

    @property
    def dtype(self) -> np.dtype:
        width = 8 if self.bits <= 8 else 16 if self.bits <= 16 else 32
        return np.dtype(f"{'int' if self.signed else 'uint'}{width}")


FORMATS = {
    f.name: f
    for f in [IntFormat("int32", 32, True), *(IntFormat(f"int{b}", b, True) for b in (16, 8, 6, 4, 3, 2))]
    + [IntFormat(f"uint{b}", b, False) for b in (16, 8, 6, 4, 3, 2)]
}


def check_finite(x: np.ndarray, what: str) -> None:
    """Refuse NaN and infinity, naming the first index that holds one."""
    bad = ~np.isfinite(x)
    if bad.any():
        index = tuple(int(i) for i in np.argwhere(bad)[0])
        raise FewbitError(f"{what}: element {index} is {x[index]}; only finite numbers can be quantized")


def symmetric_scale(max_abs: np.ndarray, fmt: IntFormat) -> np.ndarray:
    """float32 scale, same shape as max_abs, that puts +-max_abs on +-quant_max; 1 where everything is zero."""
    scale = (np.asarray(max_abs, np.float64) / fmt.quant_max).astype(np.float32)
    return np.where(scale >= np.finfo(np.float32).tiny, scale, np.float32(1)).astype(np.float32)


def asymmetric_scale(low: float, high: float, fmt: IntFormat) -> tuple[np.float32, int]:
    """(scale, zero_point) covering [low, high] widened to contain 0, so that real zero is exact."""
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    scale = np.float32((high - low) / (fmt.quant_max - fmt.quant_min))
    if scale < np.finfo(np.float32).tiny:
        return np.float32(1), 0 if fmt.signed else fmt.quant_min
    zero = int(np.clip(np.rint(fmt.quant_min - low / float(scale)), fmt.quant_min, fmt.quant_max))
    return scale, zero


def power_of_two_scale(max_abs: float, fmt: IntFormat) -> np.float32:
    """The smallest power of two whose range reaches max_abs (S1): dividing and multiplying by it agree."""
    if not max_abs > 0:
        return np.float32(1)
    return np.float32(2.0 ** np.ceil(np.log2(max_abs / fmt.quant_max)))


def quantize(x: np.ndarray, scale: np.ndarray | np.floating | float, zero_point: int, fmt: IntFormat) -> np.ndarray:
    """float32 x -> codes of fmt.dtype; scale broadcasts against x. Infinity saturates; NaN becomes the zero point."""
    codes = np.rint(np.asarray(x, np.float32) / np.asarray(scale, np.float32)) + np.float32(zero_point)
    codes = np.clip(np.where(np.isnan(codes), np.float32(zero_point), codes), fmt.quant_min, fmt.quant_max)
    return codes.astype(fmt.dtype)


def dequantize(q: np.ndarray, scale: np.ndarray | np.floating | float, zero_point: int = 0) -> np.ndarray:
    """Codes -> float32, (q - zero_point) * scale as one float32 multiplication."""
    return (q.astype(np.int32) - zero_point).astype(np.float32) * np.asarray(scale, np.float32)
