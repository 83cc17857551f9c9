"""S6: a function of a 16-bit code as short polynomials in 16-bit fixed point, the same bits from NumPy to a vector unit.

32 segments of degree 4, looked up by byte shuffles (320 bytes; benchmarks/s6 measured the forms). A function with a kink
inside a segment misses WORST and gets 2048 segments of degree 1: the same formula with other numbers.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fewbit.errors import FewbitError

# Segments of the 16-bit range, and the codes of a segment that lie nearest to its Chebyshev nodes.
SMOOTH, KINKED = (32, (50, 422, 1024, 1626, 1998)), (2048, (5, 27))
# t^k less these multiples of 1, t, t^2, ... deviates least from zero on [-1, 1]: where a rounding error of c_k goes.
LEAST = ((), (0.0,), (0.5, 0.0), (0.0, 0.75, 0.0), (-0.125, 0.0, 1.0, 0.0))
WORST = 2.5  # output codes; off the integers, where errors collect
CODES = np.arange(-32768, 32768)


@dataclass(frozen=True)
class Segments:
    """c [degree + 1, segments] int16, c[1:] with guard bits; scale of the int16 output."""

    c: np.ndarray
    guard: int
    scale: np.float32


def evaluate(codes: np.ndarray, s: Segments) -> np.ndarray:
    """int16 codes -> int16 codes at s.scale."""
    return _horner(codes, s.c, s.guard)[0].astype(np.int16)


def fit(function: Callable[[np.ndarray], np.ndarray], scale: float) -> Segments:
    """function of float64 numbers, given every input code times scale; its peak lands on the largest code."""
    values = function(CODES * float(scale))
    peak = float(np.abs(values).max())
    unit = np.float32(2.0**-15) if 0.5 < peak <= 1 else np.float32(peak / 32767 if peak else 1)
    values = values / np.float64(unit)
    wanted = np.clip(values, -32768, 32767)
    smooth = _coefficients(values, *SMOOTH)
    if smooth is not None and np.abs(_horner(CODES, *smooth)[0] - wanted).max() <= WORST:
        return Segments(*smooth, unit)
    kinked = _coefficients(wanted, *KINKED)
    if kinked is None:
        raise FewbitError("a function that jumps by its whole range between neighbouring codes is not supported (S6)")
    return Segments(*kinked, unit)


def _mulhrs(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """x86 pmulhrsw, Arm vqrdmulh: the upper half of a product of 15-bit fractions, rounded half up."""
    return (a * b + 16384) >> 15


def _horner(codes: np.ndarray, c: np.ndarray, guard: int) -> tuple[np.ndarray, int]:
    """(int64 outputs, the largest intermediate)."""
    c = c.astype(np.int64)
    shift = c.shape[1].bit_length() - 1
    u = codes.astype(np.int64) + 32768
    i, f = u >> (16 - shift), ((u << shift) & 65535) - 32768
    h = c[-1][i]
    largest = int(np.abs(h).max(initial=0))
    for row in c[-2:0:-1]:
        h = row[i] + _mulhrs(h, f)
        largest = max(largest, int(np.abs(h).max(initial=0)))
    return np.clip(c[0][i] + _mulhrs(h, f >> guard), -32768, 32767), largest


def _rint(c: np.ndarray) -> np.ndarray:
    """Half to even after snapping to 2^-20, so that the last bit of a machine's tanh breaks no tie."""
    return np.rint(np.rint(c * 2.0**20) * 2.0**-20)


def _powers(values: np.ndarray, segments: int, nodes: tuple[int, ...]) -> list[np.ndarray]:
    """Real coefficients [segments] of 1, t, t^2, ...: through the nodes, by Newton's differences, in one fixed order."""
    v, degree = values.reshape(segments, -1), len(nodes) - 1
    t = [2.0 * j / v.shape[1] - 1.0 for j in nodes]
    a = [v[:, j] for j in nodes]
    for order in range(1, degree + 1):
        for k in range(degree, order - 1, -1):
            a[k] = (a[k] - a[k - 1]) / (t[k] - t[k - order])
    real = [a[degree]]
    for k in range(degree - 1, -1, -1):
        real = [a[k] - t[k] * real[0]] + [real[j - 1] - t[k] * real[j] for j in range(1, len(real))] + [real[-1]]
    return real


def _coefficients(values: np.ndarray, segments: int, nodes: tuple[int, ...]) -> tuple[np.ndarray, int] | None:
    """(int16 coefficients, the most guard bits with which nothing leaves int16), or None if it always does."""
    real = _powers(values, segments, nodes)
    for guard in range(segments.bit_length() - 1, -1, -1):
        c = [real[0]] + [r * 2.0**guard for r in real[1:]]
        for k in range(len(c) - 1, 0, -1):
            whole = _rint(c[k])
            rest, c[k] = c[k] - whole, whole
            for j, part in enumerate(LEAST[k]):
                c[j] = c[j] + rest * (part if j else part * 2.0**-guard)
        c[0] = np.clip(_rint(c[0]), -32768, 32767)
        if max(np.abs(row).max() for row in c[1:]) <= 32767:
            whole = np.array(c).astype(np.int16)
            if _horner(CODES, whole, guard)[1] <= 32767:
                return whole, guard
    return None
