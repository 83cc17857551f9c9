"""AdaRound (Nagel et al. 2020): learn for every weight whether to round up or down, by gradient on the output's error.

The objective is the paper's, with the layer's outputs summed up by their second moments, so that a step costs one
product with H and no pass over data: tr(D H D^T) + c sum(1 - |2 h(V) - 1|^beta), beta annealed from 20 to 2.
"""

import numpy as np

from fewbit.errors import FewbitError
from fewbit.numerics.formats import IntFormat
from fewbit.solvers import rtn
from fewbit.solvers.statistics import Statistics, output_error

STEPS, RATE, WARM_UP = 1000, 0.02, 0.2
STRETCH_LOW, STRETCH_HIGH = -0.1, 1.1  # the paper's rectified sigmoid
REGULARISATION = 100.0  # beside errors in units of rounding noise; the paper's 0.01 stands beside raw squared errors


def solve(weight: np.ndarray, scale: np.ndarray, fmt: IntFormat, statistics: Statistics | None = None) -> np.ndarray:
    """Codes [out, in]; row by row the better of what was learnt and rounding to nearest."""
    if statistics is None or not statistics.count:
        raise FewbitError("adaround needs the layer's inputs; calibrate first")
    steps = np.broadcast_to(rtn.columns(scale, weight.shape[1]), weight.shape)
    w = weight.astype(np.float64)
    floor = np.clip(np.floor(w / steps), -fmt.quant_max, fmt.quant_max)
    up = _learn(w, floor, steps, statistics.gram)
    codes = np.clip(floor + up, -fmt.quant_max, fmt.quant_max).astype(fmt.dtype)
    nearest = rtn.solve(weight, scale, fmt)
    better = output_error(w, codes * steps, statistics.gram) < output_error(w, nearest * steps, statistics.gram)
    return np.where(better[:, None], codes, nearest)


def _learn(w: np.ndarray, floor: np.ndarray, steps: np.ndarray, gram: np.ndarray) -> np.ndarray:
    """bool [out, in]: round up. Adam on V; each row's error is measured in units of its own rounding noise."""
    rest = np.clip(w / steps - floor, 0.0, 1.0)
    v = -np.log((STRETCH_HIGH - STRETCH_LOW) / (rest - STRETCH_LOW) - 1)
    noise = (steps**2 @ np.diag(gram))[:, None] / 12 / w.shape[1] + 1e-30  # per weight: the regulariser counts weights too
    first, second = np.zeros_like(v), np.zeros_like(v)
    for step in range(1, STEPS + 1):
        sigmoid = 1 / (1 + np.exp(-v))
        stretched = sigmoid * (STRETCH_HIGH - STRETCH_LOW) + STRETCH_LOW
        h = np.clip(stretched, 0, 1)
        gradient = 2 * ((floor + h) * steps - w) @ gram * steps / noise
        progress = (step / STEPS - WARM_UP) / (1 - WARM_UP)
        if progress > 0:
            beta = 2 + 18 * (1 + np.cos(np.pi * progress)) / 2
            side = 2 * h - 1
            gradient -= REGULARISATION * 2 * beta * np.sign(side) * np.abs(side) ** (beta - 1)
        gradient *= ((stretched > 0) & (stretched < 1)) * sigmoid * (1 - sigmoid) * (STRETCH_HIGH - STRETCH_LOW)
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        v -= RATE * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-12)
    return v > 0
