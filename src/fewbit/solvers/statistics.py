"""What a layer's inputs were in calibration: mean, largest magnitude and second moments, streamed in float64."""

import numpy as np


class Statistics:
    """count rows seen; mean, peak [in]; gram [in, in], the mean of x x^T. Memory does not grow with the rows."""

    def __init__(self, width: int):
        self.count = 0
        self._sum = np.zeros(width)
        self._gram = np.zeros((width, width))
        self.peak = np.zeros(width)

    def observe(self, x: np.ndarray) -> None:
        """x [n, in]."""
        x = np.asarray(x, np.float64)
        self.count += len(x)
        self._sum += x.sum(axis=0)
        self._gram += x.T @ x
        self.peak = np.maximum(self.peak, np.abs(x).max(axis=0, initial=0))

    @property
    def mean(self) -> np.ndarray:
        return self._sum / max(self.count, 1)

    @property
    def gram(self) -> np.ndarray:
        return self._gram / max(self.count, 1)


def output_error(weight: np.ndarray, quantized: np.ndarray, gram: np.ndarray) -> np.ndarray:
    """Mean squared error of each output [out] over the inputs that gram saw: what the solvers minimise."""
    d = weight.astype(np.float64) - quantized
    return np.einsum("oi,ij,oj->o", d, gram, d, optimize=True)
