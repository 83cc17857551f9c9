"""The best codes of all, for layers of few inputs: a closest lattice point by Schnorr-Euchner enumeration (1994).

Minimising d^T H d over codes is the search for the lattice point nearest to the weights. With H = R^T R, R upper triangular,
the last column's code fixes a term, the one before it the next: depth first, nearest codes first, every branch left as
soon as it costs more than the best whole row so far. GPTQ is the first descent of this tree.
"""

import numpy as np

from fewbit.numerics.formats import IntFormat

INPUTS = 8  # columns; beyond it the tree grows too fast
NODES = 20_000  # of one row: then the best so far


def solve_row(w: np.ndarray, steps: np.ndarray, fmt: IntFormat, factor: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Codes [in] with the least |factor @ (w - codes * steps)|^2; start: codes to beat. factor: upper triangular."""
    n = len(w)
    best, least = start.copy(), _cost(w - start * steps, factor)
    codes, rest = np.zeros(n), np.zeros(n)
    visited = 0

    def descend(k: int, cost: float) -> None:
        nonlocal best, least, visited
        if k < 0:
            best, least = codes.copy(), cost
            return
        pull = float(factor[k, k + 1 :] @ rest[k + 1 :]) / factor[k, k]
        centre = (w[k] + pull) / steps[k]
        for code in _outwards(centre, fmt.quant_max):
            visited += 1
            rest[k] = w[k] - code * steps[k]
            here = cost + (factor[k, k] * (rest[k] + pull)) ** 2
            if here >= least or visited > NODES:
                return
            codes[k] = code
            descend(k - 1, here)

    descend(n - 1, 0.0)
    return best


def _cost(d: np.ndarray, factor: np.ndarray) -> float:
    return float(((factor @ d) ** 2).sum()) * (1 - 1e-12)


def _outwards(centre: float, most: int):  # type: ignore[no-untyped-def]
    """Codes within +-most in the order of their distance from centre."""
    low = int(np.clip(np.floor(centre), -most, most))
    high = low + 1
    while low >= -most or high <= most:
        if high > most or (low >= -most and centre - low <= high - centre):
            yield low
            low -= 1
        else:
            yield high
            high += 1
