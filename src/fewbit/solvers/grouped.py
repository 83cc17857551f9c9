"""Weights of a language model to integers: groups of columns with a float16 scale, symmetric or not, any 2 to 8 bits.

weight[o, k] = scale[o, g] (code[o, k] - zero_point[o, g]), g = k // group_size; codes are unsigned. The scale is rounded to
float16 before codes are chosen, so what that rounding loses is made up by the codes. Everything is float32 and blocked:
these matrices are a thousand times larger than a policy's (solvers/gptq), and are solved by the hundred.
"""

from dataclasses import dataclass

import numpy as np

from fewbit.errors import FewbitError

SHARES = np.array([1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.5], np.float32)  # of a group's range, for its scale
TINY = 6.2e-5  # below float16's normal numbers: the scale of a group of zeros
BLOCK = 128
DAMPING = 0.01  # of the second moments' mean diagonal, GPTQ's own


@dataclass(frozen=True)
class Grid:
    """bits 2 to 8; group_size divides the columns; symmetric: the zero point is 2^(bits - 1) everywhere."""

    bits: int
    group_size: int
    symmetric: bool = False

    @property
    def top(self) -> int:
        return (1 << self.bits) - 1


@dataclass(frozen=True)
class Solution:
    """codes uint8 [out, in]; scale float16 and zero_point uint8 [out, groups]."""

    codes: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray
    grid: Grid

    def dequantized(self) -> np.ndarray:
        """float32 [out, in]."""
        g = self.grid.group_size
        zero, scale = (np.repeat(v.astype(np.float32), g, axis=1) for v in (self.zero_point, self.scale))
        return (self.codes.astype(np.float32) - zero) * scale


def check(name: str, columns: int, group_size: int) -> None:
    """Refuse a group size that does not divide the columns, naming those that do."""
    if group_size < 1 or columns % group_size:
        fit = [g for g in (16, 32, 64, 96, 128, 192, 256, columns) if columns % g == 0 and g <= columns]
        raise FewbitError(
            f"group size {group_size} does not divide the {columns} columns of {name}; "
            f"{', '.join(map(str, dict.fromkeys(fit)))} do"
        )


def nearest(weight: np.ndarray, grid: Grid) -> Solution:
    """Round to nearest, every group's scale reaching its smallest and largest weight."""
    scale, zero = _ranges(_split(weight, grid), grid, np.float32(1))
    return _rounded(weight, scale, zero, grid)


def clipped(weight: np.ndarray, importance: np.ndarray, grid: Grid) -> Solution:
    """Round to nearest under the scales that lose least; importance [in]: what a column's squared error costs.

    SHARES of the range (AWQ's clipping, by closed form instead of outputs), then the least-squares scale of the codes found.
    """
    w = _split(weight, grid)
    cost = np.ascontiguousarray(importance, np.float32).reshape(1, w.shape[1], -1)
    best_scale, best_zero = _ranges(w, grid, SHARES[0])
    least = np.full(best_scale.shape, np.inf, np.float32)
    for share in SHARES:
        scale, zero = _ranges(w, grid, share)
        for _ in range(2):
            u = np.clip(np.rint(w / scale[..., None]) + zero[..., None], 0, grid.top) - zero[..., None]
            error = (((u * scale[..., None] - w) ** 2) * cost).sum(axis=2)
            better = error < least
            best_scale[better], best_zero[better], least = scale[better], zero[better], np.minimum(error, least)
            weighted = u * cost
            below = (weighted * u).sum(axis=2)
            refit = (weighted * w).sum(axis=2) / np.maximum(below, 1e-30)
            scale = _half(np.where((below > 0) & (refit > TINY), refit, scale))
    return _rounded(weight, best_scale, best_zero, grid)


def _split(weight: np.ndarray, grid: Grid) -> np.ndarray:
    weight = np.asarray(weight, np.float32)
    if not np.isfinite(weight).all():
        raise FewbitError("a weight is not finite; the checkpoint is damaged")
    return weight.reshape(len(weight), -1, grid.group_size)


def _half(scale: np.ndarray) -> np.ndarray:
    """float32 that float16 holds."""
    return np.minimum(scale, 65504).astype(np.float16).astype(np.float32)


def _ranges(w: np.ndarray, grid: Grid, share: np.float32) -> tuple[np.ndarray, np.ndarray]:
    """(scale, zero) float32 [out, groups] of a share of each group's range; w [out, groups, group_size]."""
    if grid.symmetric:
        scale = np.abs(w).max(axis=2) * share / (grid.top // 2)
        zero = np.full_like(scale, (grid.top + 1) // 2)
        return np.where(scale > TINY, _half(scale), np.float32(1)), zero
    low, high = np.minimum(w.min(axis=2), 0) * share, np.maximum(w.max(axis=2), 0) * share
    scale = (high - low) / grid.top
    scale = np.where(scale > TINY, _half(scale), np.float32(1))
    return scale, np.clip(np.rint(-low / scale), 0, grid.top)


def _rounded(weight: np.ndarray, scale: np.ndarray, zero: np.ndarray, grid: Grid) -> Solution:
    w = _split(weight, grid)
    codes = np.clip(np.rint(w / scale[..., None]) + zero[..., None], 0, grid.top).astype(np.uint8)
    return Solution(codes.reshape(weight.shape), scale.astype(np.float16), zero.astype(np.uint8), grid)


def damped_inverse(gram: np.ndarray, damping: float = DAMPING) -> np.ndarray:
    """float64 inverse of gram [in, in] with damping times its mean diagonal added; inputs that were always zero cost 1."""
    lower = _inverse_lower(gram, damping)
    return lower.T @ lower


def inverse_factor(gram: np.ndarray, damping: float = DAMPING) -> np.ndarray:
    """Upper U, float32, with U^T U the inverse of the damped gram [in, in]."""
    # From the lower factor of the reversed matrix: one factorization and one triangular inverse.
    return np.ascontiguousarray(_inverse_lower(gram[::-1, ::-1], damping)[::-1, ::-1]).astype(np.float32)


def _inverse_lower(gram: np.ndarray, damping: float) -> np.ndarray:
    """The inverse of the lower Cholesky factor of the damped gram, float64."""
    h = np.array(gram, np.float64)
    dead = np.diag(h) == 0
    h[dead, dead] = 1.0
    extra = damping * float(np.diag(h).mean())
    for _ in range(20):
        try:
            return _triangular_inverse(np.linalg.cholesky(h + extra * np.eye(len(h))))
        except np.linalg.LinAlgError:
            extra *= 10
    raise FewbitError("gptq: the inputs' second moments cannot be factored; are there infinities among them?")


def _triangular_inverse(lower: np.ndarray) -> np.ndarray:
    """By halves, so that nearly all of it is matrix products."""
    n = len(lower)
    if n <= 64:
        return np.linalg.inv(lower)
    half, found = n // 2, np.zeros_like(lower)
    found[:half, :half], found[half:, half:] = _triangular_inverse(lower[:half, :half]), _triangular_inverse(lower[half:, half:])
    found[half:, :half] = -found[half:, half:] @ (lower[half:, :half] @ found[:half, :half])
    return found


@dataclass(frozen=True)
class Order:
    """The order in which GPTQ takes the columns [in] of one input, and the factor of the inverse in that order."""

    columns: np.ndarray
    upper: np.ndarray


def ordered(gram: np.ndarray, damping: float = DAMPING) -> Order:
    """By activation, the largest first."""
    order = np.argsort(-np.diag(gram), kind="stable")
    return Order(order, inverse_factor(gram[np.ix_(order, order)], damping))


def gptq(weight: np.ndarray, start: Solution, by: Order) -> Solution:
    """Codes by GPTQ (Frantar et al. 2022) at the scales of `start`."""
    order, upper = by.columns, by.upper
    g, top = start.grid.group_size, np.float32(start.grid.top)
    w = np.ascontiguousarray(np.asarray(weight, np.float32).T[order])  # [in, out]: a column lies together
    scale = np.ascontiguousarray(start.scale.astype(np.float32).T)[order // g]
    zero = np.ascontiguousarray(start.zero_point.astype(np.float32).T)[order // g]
    codes = np.empty(w.shape, np.uint8)
    for begin in range(0, len(w), BLOCK):
        end = min(begin + BLOCK, len(w))
        errors = np.empty((end - begin, w.shape[1]), np.float32)
        for j in range(begin, end):
            u = np.clip(np.rint(w[j] / scale[j]) + zero[j], 0, top)
            codes[j] = u
            errors[j - begin] = (w[j] - (u - zero[j]) * scale[j]) / upper[j, j]
            if j + 1 < end:
                w[j + 1 : end] -= upper[j, j + 1 : end, None] * errors[j - begin]
        w[end:] -= upper[begin:end, end:].T @ errors
    found = np.empty_like(codes)
    found[order] = codes
    return Solution(np.ascontiguousarray(found.T), start.scale, start.zero_point, start.grid)


def descend(weight: np.ndarray, start: Solution, gram: np.ndarray, sweeps: int = 1) -> Solution:
    """Each column's best codes given all others', sweep by sweep: the undamped output error only falls."""
    gram = gram.astype(np.float32)
    g, top = start.grid.group_size, np.float32(start.grid.top)
    diagonal = np.diag(gram).copy()
    live = diagonal > 0
    codes = np.ascontiguousarray(start.codes.T.astype(np.float32))
    scale = np.repeat(np.ascontiguousarray(start.scale.astype(np.float32).T), g, axis=0)
    rest = np.ascontiguousarray((np.asarray(weight, np.float32) - start.dequantized()).T)
    for _ in range(sweeps):
        pull = gram @ rest  # [in, out]
        for begin in range(0, len(codes), BLOCK):
            end = min(begin + BLOCK, len(codes))
            before = rest[begin:end].copy()
            for j in range(begin, end):
                if not live[j]:
                    continue
                new = np.clip(np.rint(codes[j] + pull[j] / (diagonal[j] * scale[j])), 0, top)
                step = (codes[j] - new) * scale[j]
                codes[j] = new
                rest[j] += step
                pull[begin:end] += gram[begin:end, j, None] * step
            moved = rest[begin:end] - before
            if end < len(codes):
                pull[end:] += gram[end:, begin:end] @ moved
    return Solution(codes.T.astype(np.uint8), start.scale, start.zero_point, start.grid)


def rescaled(weight: np.ndarray, start: Solution, gram: np.ndarray) -> Solution:
    """The scales of each row that fit best given its codes, all groups jointly; rows that gain nothing keep theirs."""
    gram = gram.astype(np.float32)
    out, groups, g = len(start.codes), start.scale.shape[1], start.grid.group_size
    steps = start.codes.astype(np.float32) - np.repeat(start.zero_point.astype(np.float32), g, axis=1)
    normal = np.empty((out, groups, groups), np.float32)
    for k in range(groups):
        reach = steps[:, k * g : (k + 1) * g] @ gram[k * g : (k + 1) * g]
        normal[:, k] = (reach * steps).reshape(out, groups, g).sum(axis=2)
    wanted = ((np.asarray(weight, np.float32) @ gram) * steps).reshape(out, groups, g).sum(axis=2)
    old = start.scale.astype(np.float32)
    ridge = 1e-3 * np.einsum("okk->ok", normal).mean(axis=1)[:, None] + 1e-30
    normal64 = normal.astype(np.float64)
    damped = normal64 + ridge[:, :, None] * np.eye(groups)
    step = np.linalg.solve(damped, (wanted - np.einsum("okl,ol->ok", normal, old))[..., None])[..., 0]
    new = _half(np.clip(old + step, 0.5 * old, 2 * old).astype(np.float32))

    def cost(s: np.ndarray) -> np.ndarray:
        return np.einsum("ok,okl,ol->o", s, normal64, s, optimize=True) - 2 * (s * wanted).sum(axis=1)

    scale = np.where((cost(new) < cost(old))[:, None], new, old)
    return Solution(start.codes, scale.astype(np.float16), start.zero_point, start.grid)


def error(weight: np.ndarray, solution: Solution, gram: np.ndarray) -> float:
    """tr(D gram D^T), D the weights' error: the outputs' squared error over the inputs that gram saw."""
    d = np.asarray(weight, np.float32) - solution.dequantized()
    return float(((d @ gram.astype(np.float32)) * d).sum(dtype=np.float64))
