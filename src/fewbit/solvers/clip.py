"""The scale of each row that minimises the output's error: some weights saturate, so that all others are finer."""

import numpy as np

from fewbit.numerics.formats import IntFormat
from fewbit.solvers import rtn
from fewbit.solvers.statistics import Statistics, output_error

SHARES = np.linspace(0.4, 1.0, 31)


def channel_scale(weight: np.ndarray, fmt: IntFormat, statistics: Statistics) -> np.ndarray:
    """float32 [out]: the best of SHARES of the largest weight's scale, by rounding to nearest under each."""
    full = rtn.channel_scale(weight, fmt)
    best, least = full, np.full(len(weight), np.inf)
    for share in SHARES[::-1]:
        scale = (full * np.float32(share)).astype(np.float32)
        error = output_error(weight, rtn.solve(weight, scale, fmt) * scale.astype(np.float64)[:, None], statistics.gram)
        best, least = np.where(error < least, scale, best).astype(np.float32), np.minimum(error, least)
    return best
