"""How far one array is from another: MSE, largest error, SQNR, cosine, KL. float64 inside; shapes must be equal."""

import numpy as np

from fewbit.errors import FewbitError


def mse(reference: np.ndarray, other: np.ndarray) -> float:
    """Mean squared error."""
    a, b = _pair(reference, other)
    return float(((a - b) ** 2).mean()) if a.size else 0.0


def max_error(reference: np.ndarray, other: np.ndarray) -> float:
    """Largest absolute error."""
    a, b = _pair(reference, other)
    return float(np.abs(a - b).max(initial=0))


def sqnr_db(reference: np.ndarray, other: np.ndarray) -> float:
    """Signal to quantization noise, 10 log10(sum x^2 / sum (x - y)^2), in dB; infinite where they are equal."""
    a, b = _pair(reference, other)
    noise, signal = float(((a - b) ** 2).sum()), float((a**2).sum())
    if noise == 0:
        return float("inf")
    return float(10 * np.log10(signal / noise)) if signal > 0 else float("-inf")


def cosine(reference: np.ndarray, other: np.ndarray) -> float:
    """Cosine of the angle between them; 1 for two zeros, 0 where only one is zero."""
    a, b = _pair(reference, other)
    norms = float(np.sqrt((a**2).sum()) * np.sqrt((b**2).sum()))
    return float((a * b).sum()) / norms if norms else float(not a.any() and not b.any())


def kl(p: np.ndarray, q: np.ndarray) -> float:
    """sum p log(p / q) of two histograms (each normalised to 1), in nats; infinite where q is 0 and p is not."""
    a, b = _pair(p, q)
    if (a < 0).any() or (b < 0).any() or not a.sum() > 0 or not b.sum() > 0:
        raise FewbitError("kl needs two histograms: no negative count, and not all zero")
    a, b = a / a.sum(), b / b.sum()
    with np.errstate(divide="ignore"):
        return float(np.sum(a[a > 0] * (np.log(a[a > 0]) - np.log(b[a > 0]))))


def _pair(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape:
        raise FewbitError(f"arrays of shapes {list(a.shape)} and {list(b.shape)} cannot be compared")
    return a, b
