"""The integer arithmetic, clause by clause (docs/semantics.md): what every executor must compute, bit for bit.

S1 is numerics/affine, S6 numerics/unary. No graph here: arrays of codes in, arrays of codes out. Accumulators are int64;
sums are formed by a float64 matrix product where the bound of S2 proves it exact (every partial sum is an integer below
2^53), by int64 otherwise.
"""

import math

import numpy as np

from fewbit.errors import FewbitError
from fewbit.numerics.formats import IntFormat

ADD_BOUND = 1 << 17  # a 16-bit code less its zero point, twice
PRODUCT_BOUND, PRODUCT_BITS = 1 << 32, 19  # S5: two 16-bit codes; what is left below 2^53


def accumulator_bound(weight: np.ndarray, zero_weight: int, bias: np.ndarray, fmt: IntFormat, zero_input: int) -> int:
    """S2: the largest |acc| that any input can cause, over all rows. weight [out, in] codes, bias [out] codes."""
    reach = max(fmt.quant_max - zero_input, zero_input - fmt.quant_min)
    rows = np.abs(weight.astype(np.int64) - zero_weight).sum(axis=1) * reach + np.abs(bias.astype(np.int64))
    return int(rows.max(initial=0))


def accumulate(x: np.ndarray, zero_input: int, weight: np.ndarray, zero_weight: int, bias: np.ndarray) -> np.ndarray:
    """S2: acc[n, out] = sum (w - zw)(x - zx) + b, exact, int64. x [n, in], weight [out, in], bias [out]."""
    x64, w64 = x.astype(np.int64) - zero_input, weight.astype(np.int64) - zero_weight
    largest = int(np.abs(x64).max(initial=0)) * int(np.abs(w64).max(initial=0)) * x.shape[-1]
    if largest < 2**53:
        return (x64.astype(np.float64) @ w64.T.astype(np.float64)).astype(np.int64) + bias.astype(np.int64)
    return x64 @ w64.T + bias.astype(np.int64)


def bias_codes(bias: np.ndarray, scale_input: np.float32, scale_weight: np.ndarray) -> np.ndarray:
    """S2: rint(bias / (sx * sw)) in float64, int32. bias, scale_weight [out]."""
    codes = np.rint(bias.astype(np.float64) / (np.float64(scale_input) * scale_weight.astype(np.float64)))
    if np.abs(codes).max(initial=0) > 2**30:
        raise FewbitError("a bias exceeds 2^30 steps of its accumulator; raise that row's weight scale")
    return codes.astype(np.int32)


def raised_scale(bias: np.ndarray, scale_input: np.float32, scale_weight: np.ndarray) -> np.ndarray:
    """S2: scale_weight raised where the bias would exceed 2^30 codes (dead channels: weights all near zero)."""
    least = np.abs(bias.astype(np.float64)) / (np.float64(scale_input) * 2.0**30)
    return np.maximum(scale_weight, np.nextafter(least.astype(np.float32), np.float32(np.inf)) * (least > 0))


def multiplier(ratio: float, bound: int, most: int = 22) -> tuple[int, int]:
    """S3: (m, s) with m / 2^s nearest to ratio, m of at most `most` bits, and |acc * m| < 2^53 for every |acc| <= bound."""
    if ratio == 0:
        return 0, 1
    precision = min(most, 53 - max(int(bound).bit_length(), 1))
    fraction, exponent = math.frexp(ratio)
    m = round(math.ldexp(fraction, precision))
    if m == 1 << precision:
        m, exponent = m >> 1, exponent + 1
    shift = precision - exponent
    if shift > 62:
        return 0, 1
    if shift < 1:
        raise FewbitError(f"a rescale by {ratio:g} needs a left shift (S3); the output scale is too fine for its input")
    return m, shift


def multipliers(ratios: np.ndarray, bound: int) -> tuple[np.ndarray, np.ndarray]:
    """S3: multiplier of each ratio [rows] (not negative), as two int64 [rows]."""
    precision = min(22, 53 - max(int(bound).bit_length(), 1))
    fraction, exponent = np.frexp(ratios.astype(np.float64))
    m = np.rint(np.ldexp(fraction, precision)).astype(np.int64)
    over = m == 1 << precision
    m, exponent = np.where(over, m >> 1, m), exponent + over
    shift = precision - exponent.astype(np.int64)
    gone = (shift > 62) | (ratios == 0)
    if (shift[~gone] < 1).any():
        raise FewbitError(f"a rescale by {ratios.max():g} needs a left shift (S3); the output scale is too fine for its input")
    return np.where(gone, 0, m), np.where(gone, 1, shift)


def rescale(acc: np.ndarray, m: np.ndarray | int, shift: np.ndarray | int) -> np.ndarray:
    """S4: acc * m / 2^shift, rounded half to even, int64. m and shift broadcast over the last axis."""
    product = acc.astype(np.int64) * np.asarray(m, np.int64)
    shift = np.asarray(shift, np.int64)
    floor = product >> shift
    rest = product - (floor << shift)
    half = np.int64(1) << (shift - 1)
    return floor + ((rest > half) | ((rest == half) & ((floor & 1) == 1)))


def requantize(acc: np.ndarray, m: np.ndarray | int, shift: np.ndarray | int, zero_point: int, fmt: IntFormat) -> np.ndarray:
    """S4: rescale, add the zero point, saturate."""
    return np.clip(rescale(acc, m, shift) + zero_point, fmt.quant_min, fmt.quant_max).astype(fmt.dtype)


def add_multipliers(ratio_a: float, ratio_b: float) -> tuple[int, int, int]:
    """S5: (m_a, m_b, s) on one shift: the larger ratio has the 22 bits, the other what its size leaves it."""
    larger = max(abs(ratio_a), abs(ratio_b))
    shift = multiplier(larger, ADD_BOUND)[1]
    return round(math.ldexp(ratio_a, shift)), round(math.ldexp(ratio_b, shift)), shift


def add(a: np.ndarray, b: np.ndarray, m_a: int, m_b: int, shift: int, zero_point: int, fmt: IntFormat) -> np.ndarray:
    """S5: a, b codes less their zero points; both multiplied, summed in int64, rounded once."""
    total = a.astype(np.int64) * m_a + b.astype(np.int64) * m_b
    return requantize(total, 1, shift, zero_point, fmt)


def multiply(a: np.ndarray, b: np.ndarray, m: int, shift: int, zero_point: int, fmt: IntFormat) -> np.ndarray:
    """S5: a, b codes less their zero points; the product of the codes, one multiplier, one rounding."""
    return requantize(a.astype(np.int64) * b.astype(np.int64), m, shift, zero_point, fmt)
