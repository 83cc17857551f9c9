"""GPTQ (Frantar et al. 2022, algorithm 1): columns in the order of their activation, each one's error spread over the rest.

With H the second moments of the inputs, and U the upper Cholesky factor of H's inverse, quantizing column j changes the
columns after it by -e U[j] / U[j, j]. Blocks of columns keep the updates in cache; the result does not depend on them.
Then each code is revisited with all others fixed until none moves (coordinate descent on the undamped error), and a layer
of few inputs, as a policy's first may be, is solved exactly (solvers/exact).
"""

import numpy as np

from fewbit.errors import FewbitError
from fewbit.numerics.formats import IntFormat
from fewbit.solvers import exact, rtn
from fewbit.solvers.statistics import Statistics, output_error

BLOCK = 128
SWEEPS = 5
DAMPING = 0.01  # of H's mean diagonal, the paper's own


def solve(weight: np.ndarray, scale: np.ndarray, fmt: IntFormat, statistics: Statistics | None = None) -> np.ndarray:
    """Codes [out, in]; never worse, over the inputs seen, than rounding to nearest: row by row the better of the two."""
    if statistics is None or not statistics.count:
        raise FewbitError("gptq needs the layer's inputs; calibrate first")
    nearest = rtn.solve(weight, scale, fmt)
    gram, steps = statistics.gram, rtn.columns(scale, weight.shape[1])
    order = np.argsort(-np.diag(gram), kind="stable")
    spread = np.broadcast_to(steps, weight.shape)[:, order]
    codes = np.empty_like(nearest)
    codes[:, order] = _in_order(weight[:, order].astype(np.float64), spread, fmt, gram[np.ix_(order, order)])
    steps = np.broadcast_to(steps, weight.shape)
    codes = _polish(weight.astype(np.float64), codes, steps, fmt, gram)
    if weight.shape[1] <= exact.INPUTS:
        codes = _exactly(weight.astype(np.float64), codes, steps, fmt, gram)
    better = output_error(weight, codes * steps, gram) < output_error(weight, nearest * steps, gram)
    return np.where(better[:, None], codes, nearest)


def _in_order(w: np.ndarray, steps: np.ndarray, fmt: IntFormat, gram: np.ndarray) -> np.ndarray:
    upper = _inverse_factor(gram)
    codes = np.empty(w.shape, fmt.dtype)
    for start in range(0, w.shape[1], BLOCK):
        end = min(start + BLOCK, w.shape[1])
        errors = np.zeros((len(w), end - start))
        for j in range(start, end):
            q = np.clip(np.rint(w[:, j] / steps[:, j]), -fmt.quant_max, fmt.quant_max)
            codes[:, j] = q
            errors[:, j - start] = (w[:, j] - q * steps[:, j]) / upper[j, j]
            w[:, j + 1 : end] -= np.outer(errors[:, j - start], upper[j, j + 1 : end])
        w[:, end:] -= errors @ upper[start:end, end:]
    return codes


def _polish(w: np.ndarray, codes: np.ndarray, steps: np.ndarray, fmt: IntFormat, gram: np.ndarray) -> np.ndarray:
    """Each column's best codes given the others', sweep by sweep."""
    q = codes.astype(np.float64)
    pull = (w - q * steps) @ gram
    for _ in range(SWEEPS):
        moved = False
        for j in np.flatnonzero(np.diag(gram) > 0):
            new = np.clip(np.rint(q[:, j] + pull[:, j] / (gram[j, j] * steps[:, j])), -fmt.quant_max, fmt.quant_max)
            rows = np.flatnonzero(new != q[:, j])
            if len(rows):
                moved = True
                pull[rows] -= np.outer((new[rows] - q[rows, j]) * steps[rows, j], gram[j])
                q[rows, j] = new[rows]
        if not moved:
            break
    return q.astype(fmt.dtype)


def _exactly(w: np.ndarray, codes: np.ndarray, steps: np.ndarray, fmt: IntFormat, gram: np.ndarray) -> np.ndarray:
    trace = float(np.diag(gram).mean()) or 1.0
    values, vectors = np.linalg.eigh(gram)
    root = np.sqrt(np.maximum(values, 1e-12 * trace))[:, None] * vectors.T
    upper = np.linalg.qr(root)[1]
    factor = upper * np.where(np.diag(upper) < 0, -1.0, 1.0)[:, None]
    rows = zip(w, steps, codes.astype(np.float64), strict=True)
    return np.array([exact.solve_row(row, step, fmt, factor, start) for row, step, start in rows]).astype(fmt.dtype)


def _inverse_factor(gram: np.ndarray) -> np.ndarray:
    """Upper U with U^T U the inverse of the damped H; inputs that were always zero are left alone."""
    h = gram.copy()
    dead = np.diag(h) == 0
    h[dead, dead] = 1.0
    damping = DAMPING * float(np.diag(h).mean())
    for _ in range(20):
        try:
            inverse = np.linalg.inv(h + damping * np.eye(len(h)))
            return np.linalg.cholesky((inverse + inverse.T) / 2).T
        except np.linalg.LinAlgError:
            damping *= 10
    raise FewbitError("gptq: the inputs' second moments cannot be factored; are there infinities among them?")
