"""Column scales: multiply a weight's column and divide its input, so that both are easier to quantize.

Rules that know the weight [out, in] and its inputs' statistics: SmoothQuant (Xiao et al. 2023, equation 4), AWQ (Lin et al.
2023, section 3.2: the exponent searched by output error), cross-layer equalization (Nagel et al. 2019, equation 11).
Every scale is a power of two: dividing by it is exact, and the float network's outputs do not change by one bit.
"""

import numpy as np

from fewbit.numerics.formats import IntFormat
from fewbit.solvers import rtn
from fewbit.solvers.statistics import Statistics, output_error

# Smallest share of the largest input that counts. An observation that calibration hardly moved must not saturate as soon as it
# does move; a hidden unit that hardly moved is known to the network's own weights.
ENTRY_FLOOR, HIDDEN_FLOOR = 1 / 64, 1 / 256
EXPONENTS = np.linspace(0, 1, 11)


def smooth(weight: np.ndarray, statistics: Statistics, floor: float = HIDDEN_FLOOR, alpha: float = 0.5) -> np.ndarray:
    """max|x_j|^alpha / max|w_j|^(1 - alpha)."""
    reach = np.maximum(np.abs(weight).max(axis=0), 1e-6 * np.abs(weight).max(initial=1e-30))
    peak = np.maximum(statistics.peak, floor * max(float(statistics.peak.max(initial=0)), 1e-30))
    return power_of_two(peak**alpha / reach ** (1 - alpha))


def awq(weight: np.ndarray, statistics: Statistics, fmt: IntFormat, floor: float = HIDDEN_FLOOR) -> np.ndarray:
    """rms(x_j)^alpha, alpha the best of EXPONENTS by the layer's output error after rounding to nearest."""
    rms = np.sqrt(np.maximum(np.diag(statistics.gram), 1e-30))
    rms = np.maximum(rms, floor * rms.max())
    best, least = np.ones(len(rms)), np.inf
    for alpha in EXPONENTS:
        scale = power_of_two(rms**alpha)
        scaled = weight * scale
        step = rtn.channel_scale(scaled, fmt)
        quantized = rtn.solve(scaled, step, fmt) * step.astype(np.float64)[:, None] / scale
        error = float(output_error(weight, quantized, statistics.gram).sum())
        if error < least:
            best, least = scale, error
    return best


def cross_layer(weight: np.ndarray, before: np.ndarray) -> np.ndarray:
    """sqrt(r1 / r2), r1 the largest weight [in] of each row of the layer before, r2 of each column of this one."""
    r1 = np.abs(before).max(axis=1)
    r2 = np.abs(weight).max(axis=0)
    live = (r1 > 0) & (r2 > 0)
    return power_of_two(np.sqrt(np.where(live, r1, 1) / np.where(live, r2, 1)))


def even(statistics: Statistics, floor: float = ENTRY_FLOOR) -> np.ndarray:
    """max|x_j|, so that every column fills the same range, down to a share of the largest."""
    return power_of_two(np.maximum(statistics.peak, floor * max(float(statistics.peak.max(initial=0)), 1e-30)))


def power_of_two(scale: np.ndarray) -> np.ndarray:
    """The nearest powers of two, their geometric mean near 1, within 2^+-12 of it."""
    exponent = np.log2(np.maximum(scale, 1e-30))
    return 2.0 ** np.clip(np.rint(exponent - np.median(exponent)), -12, 12)
