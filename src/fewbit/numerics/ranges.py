"""Estimate a tensor's range from batches of it, in bounded memory: observe(batch), then range(fmt, symmetric).

All but the first two share a histogram of |bins| that doubles its reach by merging neighbours, so no count is ever lost or
smeared, and zero stays an edge. `range` gives (low, high); symmetric means low = -high.
"""

from typing import Protocol

import numpy as np

from fewbit.errors import FewbitError
from fewbit.numerics import affine
from fewbit.numerics.formats import IntFormat

BINS = 4096  # on each side of zero


class Estimator(Protocol):
    def observe(self, batch: np.ndarray) -> None: ...

    def range(self, fmt: IntFormat, symmetric: bool) -> tuple[float, float]: ...


class MinMax:
    """The smallest and the largest value seen."""

    def __init__(self) -> None:
        self.low, self.high = np.inf, -np.inf

    def observe(self, batch: np.ndarray) -> None:
        batch = _checked(batch)
        if batch.size:
            self.low, self.high = min(self.low, float(batch.min())), max(self.high, float(batch.max()))

    def range(self, fmt: IntFormat, symmetric: bool) -> tuple[float, float]:
        return _sided(self.low, self.high, symmetric)


class MovingAverage:
    """Exponential average of the batches' extremes (Jacob et al. 2018, section 3.1): one wild batch counts little."""

    def __init__(self, momentum: float = 0.9) -> None:
        self.low, self.high, self.momentum = np.inf, -np.inf, momentum

    def observe(self, batch: np.ndarray) -> None:
        batch = _checked(batch)
        if not batch.size:
            return
        low, high = float(batch.min()), float(batch.max())
        if self.low > self.high:
            self.low, self.high = low, high
        self.low += (1 - self.momentum) * (low - self.low)
        self.high += (1 - self.momentum) * (high - self.high)

    def range(self, fmt: IntFormat, symmetric: bool) -> tuple[float, float]:
        return _sided(self.low, self.high, symmetric)


class Histogram:
    """counts [2 BINS] over [-reach, reach], reach a power of two; the exact extremes beside it."""

    def __init__(self) -> None:
        self.counts, self.reach = np.zeros(2 * BINS, np.int64), 0.0
        self.low, self.high = np.inf, -np.inf

    def observe(self, batch: np.ndarray) -> None:
        batch = _checked(batch)
        if not batch.size:
            return
        self.low, self.high = min(self.low, float(batch.min())), max(self.high, float(batch.max()))
        largest = max(-self.low, self.high)
        if not self.reach:
            self.reach = 2.0 ** max(np.ceil(np.log2(largest)), -1000) if largest > 0 else 2.0**-1000
        while self.reach < largest:
            self._double()
        bins = np.floor(batch.astype(np.float64) * (BINS / self.reach)).astype(np.int64) + BINS
        self.counts += np.bincount(np.clip(bins, 0, 2 * BINS - 1).reshape(-1), minlength=2 * BINS)

    def _double(self) -> None:
        pairs = self.counts.reshape(-1, 2).sum(axis=1)
        self.counts = np.zeros(2 * BINS, np.int64)
        self.counts[BINS // 2 : BINS // 2 + BINS] = pairs
        self.reach *= 2

    @property
    def width(self) -> float:
        return self.reach / BINS

    @property
    def centres(self) -> np.ndarray:
        return (np.arange(2 * BINS) - BINS + 0.5) * self.width

    @property
    def magnitudes(self) -> np.ndarray:
        """Counts of |x| [BINS]."""
        return self.counts[BINS:] + self.counts[:BINS][::-1]


class Percentile(Histogram):
    """What is left when the outermost (100 - percent) % is cut: half of it on each side, or all of it from |x|."""

    def __init__(self, percent: float = 99.99) -> None:
        super().__init__()
        self.percent = percent

    def range(self, fmt: IntFormat, symmetric: bool) -> tuple[float, float]:
        _sided(self.low, self.high, symmetric)
        if symmetric:
            top = self._edge(self.magnitudes, self.percent / 100) * self.width
            return -min(top, max(-self.low, self.high)), min(top, max(-self.low, self.high))
        cut = (100 - self.percent) / 200
        low = (self._edge(self.counts, cut) - 1 - BINS) * self.width
        high = (self._edge(self.counts, 1 - cut) - BINS) * self.width
        return max(low, self.low), min(high, self.high)

    @staticmethod
    def _edge(counts: np.ndarray, share: float) -> int:
        """The upper edge (a number of bins) of the bin that holds this share of the mass."""
        cumulated = np.cumsum(counts)
        return int(np.searchsorted(cumulated, share * cumulated[-1])) + 1


class Mse(Histogram):
    """The clipped range with the least mean squared quantization error, zero point and its rounding included."""

    SHARES = np.linspace(0.02, 1, 50)

    def range(self, fmt: IntFormat, symmetric: bool) -> tuple[float, float]:
        low, high = _sided(self.low, self.high, symmetric)
        live = self.counts > 0
        x, n = self.centres[live], self.counts[live]
        if symmetric:
            tops = high * self.SHARES
            scales = affine.symmetric_scale(tops, fmt)
            errors = [self._error(x, n, s, 0, fmt) for s in scales]
            top = float(tops[int(np.argmin(errors))])
            return -top, top
        lows = [min(low, 0.0) * s for s in self.SHARES] if low < 0 else [0.0]
        highs = [max(high, 0.0) * s for s in self.SHARES] if high > 0 else [0.0]
        pairs = [(a, b) for a in lows for b in highs]
        return min(pairs, key=lambda p: self._error(x, n, *affine.asymmetric_scale(p[0], p[1], fmt), fmt))

    @staticmethod
    def _error(x: np.ndarray, n: np.ndarray, scale: np.ndarray, zero: np.ndarray | int, fmt: IntFormat) -> float:
        s = np.float64(scale)
        codes = np.clip(np.rint(x / s) + zero, fmt.quant_min, fmt.quant_max)
        return float(n @ ((codes - zero) * s - x) ** 2)


class Entropy(Histogram):
    """The threshold on |x| that loses the least information (Migacz 2017, "8-bit Inference with TensorRT").

    For each threshold: P the histogram up to it, what lies beyond added to its last bin; Q the histogram up to it in as many
    levels as the format has on that side, each spread over the bins that hold something. The least KL(P, Q) wins.
    """

    LEAST = 1e-6  # of Q, where P alone holds something: the outliers' bin, empty before they were added to it

    def range(self, fmt: IntFormat, symmetric: bool) -> tuple[float, float]:
        low, high = _sided(self.low, self.high, symmetric)
        one_sided = not symmetric and (self.low >= 0 or self.high <= 0)
        levels = fmt.levels if one_sided else fmt.levels // 2
        top = self.threshold(levels) * self.width
        return max(low, -top), min(high, top)

    def threshold(self, levels: int) -> int:
        """In bins."""
        counts = self.magnitudes.astype(np.float64)
        last = int(np.flatnonzero(counts)[-1]) + 1
        return min(range(min(levels, last), last + 1), key=lambda k: self.divergence(counts, k, levels))

    @staticmethod
    def divergence(counts: np.ndarray, k: int, levels: int) -> float:
        inside = counts[:k]
        if inside.sum() < counts.sum() / 2:  # all clipped into one bin is no loss to KL, but one to everybody else
            return np.inf
        p = inside.copy()
        p[-1] += counts[k:].sum()
        group = np.arange(k) * min(levels, k) // k
        share = np.bincount(group, inside) / np.maximum(np.bincount(group, inside > 0), 1)
        held = p > 0
        q = np.where(inside > 0, share[group], 0.0)[held]
        p, q = p[held] / p.sum(), np.maximum(q / max(q.sum(), 1.0), Entropy.LEAST)
        return float(p @ np.log(p / (q / q.sum())))


RANGES = {"minmax": MinMax, "moving_average": MovingAverage, "percentile": Percentile, "mse": Mse, "entropy": Entropy}


def _checked(batch: np.ndarray) -> np.ndarray:
    batch = np.asarray(batch)
    affine.check_finite(batch, "observed batch")
    return batch


def _sided(low: float, high: float, symmetric: bool) -> tuple[float, float]:
    if low > high:
        raise FewbitError("a range was asked for before anything was observed")
    largest = max(-low, high, 0.0)
    return (-largest, largest) if symmetric else (low, high)
