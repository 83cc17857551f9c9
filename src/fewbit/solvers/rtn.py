"""Round to nearest: every weight to its nearest code; and the scale that puts a row's largest weight on quant_max."""

import numpy as np

from fewbit.numerics import affine
from fewbit.numerics.formats import IntFormat
from fewbit.solvers.statistics import Statistics


def channel_scale(weight: np.ndarray, fmt: IntFormat) -> np.ndarray:
    """float32 [out]: the largest weight of each row lands on quant_max."""
    return affine.symmetric_scale(np.abs(weight).max(axis=1, initial=0), fmt)


def solve(weight: np.ndarray, scale: np.ndarray, fmt: IntFormat, statistics: Statistics | None = None) -> np.ndarray:
    """weight [out, in] float; scale [out] or [out, groups]. Codes stay within +-quant_max, so that negation is exact."""
    codes = np.rint(weight.astype(np.float64) / columns(scale, weight.shape[1]))
    return np.clip(codes, -fmt.quant_max, fmt.quant_max).astype(fmt.dtype)


def columns(scale: np.ndarray, width: int) -> np.ndarray:
    """scale [out] or [out, groups] as float64 [out, 1] or [out, width]; groups of ceil(width / groups) columns."""
    scale = scale.astype(np.float64)
    if scale.ndim == 1:
        return scale[:, None]
    return np.repeat(scale, -(-width // scale.shape[1]), axis=1)[:, :width]
