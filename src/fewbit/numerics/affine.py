"""Affine quantization of one array: q = clamp(round_half_even(x / scale) + zero_point).

Source: ONNX QuantizeLinear-21 / DequantizeLinear-21. Scales are float32, because the file stores float32; the division is
a true float32 division, because multiplying by the reciprocal differs in 3e-5 of the codes.

Granularity is two arguments everywhere: axis None is per_tensor; axis k is per_channel; axis k with group_size g is
per_group, g neighbours along that axis sharing a scale (the last group may be smaller, as in ONNX's blocked form).
"""

from dataclasses import dataclass

import numpy as np

from fewbit.errors import FewbitError
from fewbit.numerics.formats import INTEGERS as FORMATS  # noqa: F401
from fewbit.numerics.formats import IntFormat

TINY = np.finfo(np.float32).tiny  # below it float32 loses digits: such a scale stands for zero


@dataclass(frozen=True)
class Parameters:
    """scale float32 and zero_point int32, of one shape: () per tensor, [n] per channel, x's with fewer along axis per group."""

    scale: np.ndarray
    zero_point: np.ndarray
    format: IntFormat
    axis: int | None = None
    group_size: int | None = None


def check_finite(x: np.ndarray, what: str) -> None:
    """Refuse NaN and infinity, naming the first index that holds one."""
    bad = ~np.isfinite(x)
    if bad.any():
        index = tuple(int(i) for i in np.argwhere(bad)[0])
        raise FewbitError(f"{what}: element {index} is {x[index]}; only finite numbers can be quantized")


def parameters(
    x: np.ndarray,
    fmt: IntFormat,
    symmetric: bool = True,
    axis: int | None = None,
    group_size: int | None = None,
    what: str = "array",
) -> Parameters:
    """Scale and zero_point from the smallest and largest element of the tensor, of each channel, or of each group."""
    x = np.asarray(x)
    if x.size == 0:
        raise FewbitError(f"{what}: an array of shape {list(x.shape)} has no element to take a scale from")
    check_finite(x, what)
    if symmetric and not fmt.signed:
        raise FewbitError(f"{what}: {fmt.name} has no negative codes; symmetric quantization needs a signed format")
    low, high = extremes(x, axis, group_size, what)
    if symmetric:
        scale = symmetric_scale(np.maximum(-low, high), fmt)
        zero = np.zeros(scale.shape, np.int32)
    else:
        scale, zero = asymmetric_scale(low, high, fmt)
    return Parameters(scale, zero, fmt, axis, group_size)


def extremes(x: np.ndarray, axis: int | None, group_size: int | None, what: str = "array") -> tuple[np.ndarray, np.ndarray]:
    """(min, max) of the tensor (shape ()), of each channel ([n]) or of each group (x's shape, fewer along axis); float64."""
    x = np.asarray(x, np.float64)
    if axis is None:
        if group_size is not None:
            raise FewbitError(f"{what}: group_size {group_size} needs the axis that its groups run along")
        return np.asarray(x.min()), np.asarray(x.max())
    if not -x.ndim <= axis < x.ndim:
        raise FewbitError(f"{what}: axis {axis} does not exist in shape {list(x.shape)}")
    if group_size is None:
        others = tuple(k for k in range(x.ndim) if k != axis % x.ndim)
        return x.min(axis=others), x.max(axis=others)
    if group_size < 1:
        raise FewbitError(f"{what}: group_size {group_size} is not positive")
    starts = np.arange(0, x.shape[axis], group_size)
    return np.minimum.reduceat(x, starts, axis), np.maximum.reduceat(x, starts, axis)


def symmetric_scale(max_abs: np.ndarray, fmt: IntFormat) -> np.ndarray:
    """float32 scale, same shape as max_abs, that puts +-max_abs on +-quant_max; 1 where everything is zero."""
    scale = (np.asarray(max_abs, np.float64) / fmt.quant_max).astype(np.float32)
    return np.where(scale >= TINY, scale, np.float32(1)).astype(np.float32)


def asymmetric_scale(low: np.ndarray | float, high: np.ndarray | float, fmt: IntFormat) -> tuple[np.ndarray, np.ndarray]:
    """(scale float32, zero_point int32) covering [low, high] widened to contain 0, so that real zero is exact."""
    low, high = np.minimum(low, 0.0).astype(np.float64), np.maximum(high, 0.0).astype(np.float64)
    scale = ((high - low) / (fmt.quant_max - fmt.quant_min)).astype(np.float32)
    live = scale >= TINY
    scale = np.where(live, scale, np.float32(1)).astype(np.float32)
    zero = np.clip(np.rint(fmt.quant_min - low / scale.astype(np.float64)), fmt.quant_min, fmt.quant_max)
    return scale, np.where(live, zero, max(fmt.quant_min, 0)).astype(np.int32)


def power_of_two_scale(max_abs: float, fmt: IntFormat) -> np.float32:
    """The smallest power of two whose range reaches max_abs (S1): dividing and multiplying by it agree; 1 for zero."""
    if not max_abs / fmt.quant_max >= TINY:
        return np.float32(1)
    return np.float32(2.0 ** np.ceil(np.log2(max_abs / fmt.quant_max)))


def spread(values: np.ndarray, shape: tuple[int, ...], axis: int | None, group_size: int | None) -> np.ndarray:
    """A scale or zero_point of Parameters' shape, made to broadcast against an array of `shape`."""
    values = np.asarray(values)
    if axis is None or values.ndim == 0:
        return values
    axis %= len(shape)
    if group_size is not None:
        return np.repeat(values, group_size, axis)[tuple(slice(n) for n in shape)]
    return values.reshape([-1 if k == axis else 1 for k in range(len(shape))])


def quantize(
    x: np.ndarray,
    scale: np.ndarray | np.floating | float,
    zero_point: np.ndarray | int,
    fmt: IntFormat,
    axis: int | None = None,
    group_size: int | None = None,
) -> np.ndarray:
    """float32 x -> codes of fmt.dtype. Infinity saturates; NaN becomes the zero point."""
    x = np.asarray(x, np.float32)
    scale = spread(np.asarray(scale, np.float32), x.shape, axis, group_size)
    zero = spread(np.asarray(zero_point), x.shape, axis, group_size)
    with np.errstate(over="ignore"):
        steps = np.rint(x / scale).astype(np.float64)  # float64, because float32 cannot add a zero point above 2^24
    codes = np.where(np.isnan(steps), 0.0, steps) + zero
    return np.clip(codes, fmt.quant_min, fmt.quant_max).astype(fmt.dtype)


def dequantize(
    q: np.ndarray,
    scale: np.ndarray | np.floating | float,
    zero_point: np.ndarray | int = 0,
    axis: int | None = None,
    group_size: int | None = None,
) -> np.ndarray:
    """Codes -> float32, (q - zero_point) * scale as one float32 multiplication."""
    zero = spread(np.asarray(zero_point, np.int32), q.shape, axis, group_size)
    return (q.astype(np.int32) - zero).astype(np.float32) * spread(np.asarray(scale, np.float32), q.shape, axis, group_size)


def to_codes(x: np.ndarray, p: Parameters) -> np.ndarray:
    """quantize with Parameters."""
    return quantize(x, p.scale, p.zero_point, p.format, p.axis, p.group_size)


def to_floats(q: np.ndarray, p: Parameters) -> np.ndarray:
    """dequantize with Parameters."""
    return dequantize(q, p.scale, p.zero_point, p.axis, p.group_size)
