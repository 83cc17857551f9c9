"""Round to nearest: every weight to its nearest code, symmetric, one scale per output channel (docs/semantics.md)."""

import numpy as np

from fewbit.numerics import affine
from fewbit.numerics.formats import IntFormat
from fewbit.solvers import Solution


def channel_scale(weight: np.ndarray, fmt: IntFormat) -> np.ndarray:
    """float32 [out]: the largest weight of each row lands on quant_max."""
    return affine.symmetric_scale(np.abs(weight).max(axis=1, initial=0), fmt)


def solve(weight: np.ndarray, scale: np.ndarray, fmt: IntFormat) -> Solution:
    """weight [out, in] float; scale [out] float32. Codes stay within +-quant_max, so that negation is exact."""
    codes = np.rint(weight.astype(np.float64) / scale.astype(np.float64)[:, None])
    return Solution(np.clip(codes, -fmt.quant_max, fmt.quant_max).astype(fmt.dtype), scale, fmt)
