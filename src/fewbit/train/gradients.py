"""Where gradients lie in a number format's range: a histogram of their exponents, and what a format keeps of it at a loss scale.

A histogram is int64 [BINS], one bin for each exponent field of a float32: bin k counts magnitudes from 2^(k - bias) to twice
that. Bin ZERO counts exact zeros, bin NONFINITE infinities and NaNs; float32's subnormals (below 2^-126) are put into bin 1. The
exponent is read from the bits, so a histogram is exact and cheap. The picture is that of Micikevicius et al. 2018 (arXiv
1710.03740, figure 3); every limit comes from the format's record.
"""

import math
from dataclasses import dataclass

from fewbit.errors import MissingExtra
from fewbit.numerics.formats import FLOATS, FloatFormat

try:
    import torch
except ImportError:
    raise MissingExtra("torch", "torch") from None

SINGLE = FLOATS["float32"]
BINS = 1 << SINGLE.exponent_bits
ZERO, NONFINITE = 0, BINS - 1
EXPONENTS = torch.arange(BINS) - SINGLE.bias


def histogram(x: torch.Tensor) -> torch.Tensor:
    """int64 [BINS] on x's device, of a floating-point tensor of any shape (sparse: of its values); float64 is read as float32."""
    values = (x.coalesce().values() if x.is_sparse else x).detach().to(torch.float32).reshape(-1)
    fields = (values.contiguous().view(torch.int32) >> SINGLE.mantissa_bits) & (BINS - 1)
    counts = torch.bincount(fields, minlength=BINS)
    zeros = values.numel() - torch.count_nonzero(values)
    counts[1] += counts[0] - zeros
    counts[ZERO] = zeros
    return counts


def divide(counts: torch.Tensor, scale: float) -> torch.Tensor:
    """The histogram after every value is divided by scale, a power of two; what leaves the range stays in its last bin."""
    shifted = torch.zeros_like(counts)
    shifted[[ZERO, NONFINITE]] = counts[[ZERO, NONFINITE]]
    place = (torch.arange(1, NONFINITE) - round(math.log2(scale))).clamp(1, NONFINITE - 1)
    return shifted.index_add_(0, place.to(counts.device), counts[1:NONFINITE])


@dataclass(frozen=True)
class Kept:
    """Shares (0 to 1) of the values that are neither zero nor infinite: lost become zero, subnormal lose digits, overflow."""

    lost: float
    subnormal: float
    overflow: float


def fate(exponent: int, fmt: FloatFormat) -> str:
    """What fmt makes of a magnitude in [2^exponent, 2^(exponent + 1)): "zero", "subnormal", "normal" or "overflow".

    By whole powers of two, so two slivers are on the kind side: exactly half of the smallest subnormal (rounds to zero) and what
    lies between the largest finite value and the next power of two.
    """
    if exponent > fmt.max_exponent:
        return "overflow"
    if exponent >= round(math.log2(fmt.smallest_normal)):
        return "normal"
    return "subnormal" if exponent >= round(math.log2(fmt.smallest_subnormal)) - 1 else "zero"


def kept(counts: torch.Tensor, fmt: FloatFormat, scale: float = 1.0) -> Kept:
    """What fmt keeps of a histogram whose values are multiplied by scale (a power of two) first."""
    shift, total = round(math.log2(scale)), max(int(counts[1:NONFINITE].sum()), 1)
    found = {"zero": 0, "subnormal": 0, "normal": 0, "overflow": 0}
    for k in present(counts):
        found[fate(k - SINGLE.bias + shift, fmt)] += int(counts[k])
    return Kept(found["zero"] / total, found["subnormal"] / total, found["overflow"] / total)


def present(counts: torch.Tensor) -> list[int]:
    """The bins, ascending, that hold any value but zeros, infinities and NaNs."""
    return [int(k) + 1 for k in torch.nonzero(counts[1:NONFINITE]).flatten()]


def largest_scale(counts: torch.Tensor, fmt: FloatFormat) -> float:
    """The largest power of two that brings no value of the histogram past the largest finite value of fmt."""
    bins = present(counts)
    top = bins[-1] - SINGLE.bias if bins else round(math.log2(fmt.smallest_subnormal))
    return 2.0 ** (fmt.max_exponent - 1 - top)
