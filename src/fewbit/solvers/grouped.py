"""Weights of a language model to integers, in groups of columns whose scales are what a grid can keep (solvers/grids).

Scales are rounded to what is kept before codes are chosen, so what that rounding loses is made up by the codes. Everything is
float32 and blocked: these matrices are a thousand times larger than a policy's (solvers/gptq), and are solved by the hundred.
"""

from dataclasses import dataclass, replace

import numpy as np

from fewbit.errors import FewbitError
from fewbit.solvers.grids import AnyGrid, Solution

BLOCK = 128
DAMPING = 0.01  # of the second moments' mean diagonal, GPTQ's own


def nearest(weight: np.ndarray, grid: AnyGrid) -> Solution:
    """Round to nearest, every group's scale reaching its smallest and largest weight."""
    scale, zero = grid.held(*next(grid.starts(_split(weight, grid))))
    return _rounded(weight, scale, zero, grid)


def clipped(weight: np.ndarray, importance: np.ndarray, grid: AnyGrid) -> Solution:
    """Round to nearest under the scales that lose least; importance [in]: what a column's squared error costs.

    Shares of the range (AWQ's clipping, by closed form instead of outputs), then the least-squares scale of the codes found.
    """
    w = _split(weight, grid)
    cost = np.ascontiguousarray(importance, np.float32).reshape(1, w.shape[1], -1)
    best_scale = best_zero = least = np.empty(0, np.float32)
    for scale, zero in grid.starts(w):
        if not least.size:
            best_scale, best_zero, least = scale.copy(), zero.copy(), np.full(scale.shape, np.inf, np.float32)
        for _ in range(3 if grid.offset else 2):  # two unknowns settle more slowly than one
            u = grid.round(w / scale[..., None], zero[..., None]) - zero[..., None]
            error = (((u * scale[..., None] - w) ** 2) * cost).sum(axis=2)
            better = error < least
            best_scale[better], best_zero[better], least = scale[better], zero[better], np.minimum(error, least)
            scale, zero = grid.refit(u, w, cost, scale, zero)
    return _rounded(weight, *grid.held(best_scale, best_zero), grid)


def _split(weight: np.ndarray, grid: AnyGrid) -> np.ndarray:
    weight = np.asarray(weight, np.float32)
    if not np.isfinite(weight).all():
        raise FewbitError("a weight is not finite; the checkpoint is damaged")
    return weight.reshape(len(weight), -1, grid.group_size)


def _rounded(weight: np.ndarray, scale: np.ndarray, zero: np.ndarray, grid: AnyGrid) -> Solution:
    levels = grid.round(_split(weight, grid) / scale[..., None], zero[..., None])
    return Solution(grid.codes(levels).reshape(weight.shape), scale.astype(grid.scale_type), zero.astype(grid.zero_type), grid)


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
    g, grid = start.grid.group_size, start.grid
    w = np.ascontiguousarray(np.asarray(weight, np.float32).T[order])  # [in, out]: a column lies together
    scale = np.ascontiguousarray(start.scale.astype(np.float32).T)[order // g]
    zero = np.ascontiguousarray(start.zero_point.astype(np.float32).T)[order // g]
    codes = np.empty(w.shape, np.uint8)
    for begin in range(0, len(w), BLOCK):
        end = min(begin + BLOCK, len(w))
        errors = np.empty((end - begin, w.shape[1]), np.float32)
        for j in range(begin, end):
            u = grid.round(w[j] / scale[j], zero[j])
            codes[j] = grid.codes(u)
            errors[j - begin] = (w[j] - (u - zero[j]) * scale[j]) / upper[j, j]
            if j + 1 < end:
                w[j + 1 : end] -= upper[j, j + 1 : end, None] * errors[j - begin]
        w[end:] -= upper[begin:end, end:].T @ errors
    found = np.empty_like(codes)
    found[order] = codes
    return replace(start, codes=np.ascontiguousarray(found.T))


def descend(weight: np.ndarray, start: Solution, gram: np.ndarray, sweeps: int = 1) -> Solution:
    """Each column's best codes given all others', sweep by sweep: the output error, damped as GPTQ's, only falls.

    Undamped it would move codes by any number of levels where the inputs say nothing (a text of blanks).
    """
    gram = (gram + DAMPING * float(np.diag(gram).mean()) * np.diag(np.diag(gram) > 0)).astype(np.float32)
    g, grid = start.grid.group_size, start.grid
    diagonal = np.diag(gram).copy()
    live = diagonal > 0
    levels = np.ascontiguousarray(grid.levels(start.codes).T)
    scale = np.repeat(np.ascontiguousarray(start.scale.astype(np.float32).T), g, axis=0)
    rest = np.ascontiguousarray((np.asarray(weight, np.float32) - start.dequantized()).T)
    for _ in range(sweeps):
        pull = gram @ rest  # [in, out]
        for begin in range(0, len(levels), BLOCK):
            end = min(begin + BLOCK, len(levels))
            before = rest[begin:end].copy()
            for j in range(begin, end):
                if not live[j]:
                    continue
                new = grid.round(levels[j] + pull[j] / (diagonal[j] * scale[j]))
                step = (levels[j] - new) * scale[j]
                levels[j] = new
                rest[j] += step
                pull[begin:end] += gram[begin:end, j, None] * step
            moved = rest[begin:end] - before
            if end < len(levels):
                pull[end:] += gram[end:, begin:end] @ moved
    return replace(start, codes=np.ascontiguousarray(grid.codes(levels).T))


def rescaled(weight: np.ndarray, start: Solution, gram: np.ndarray) -> Solution:
    """The scales of each row (and the minima, where the grid keeps them) that fit best given its codes, all groups jointly; rows
    that gain nothing keep theirs."""
    gram = gram.astype(np.float32)
    out, groups, g, grid = len(start.codes), start.scale.shape[1], start.grid.group_size, start.grid
    levels, zero = grid.levels(start.codes), start.zero_point.astype(np.float32)
    bases = [levels] if grid.offset else [levels - np.repeat(zero, g, axis=1)]
    bases += [np.full((1, levels.shape[1]), -1, np.float32)] if grid.offset else []
    normal, wanted = _normal(bases, np.asarray(weight, np.float32) @ gram, gram, out, groups)
    old = start.scale.astype(np.float32)
    at = np.concatenate([old, zero * old], axis=1) if grid.offset else old
    ridge = 1e-3 * np.einsum("okk->ok", normal).reshape(out, len(bases), groups).mean(axis=2).repeat(groups, axis=1) + 1e-30
    normal64 = normal.astype(np.float64)
    damped = normal64 + ridge[:, :, None] * np.eye(normal.shape[1])
    step = np.linalg.solve(damped, (wanted - np.einsum("okl,ol->ok", normal, at))[..., None])[..., 0]
    ends = 0.5 * old, 2 * old
    scale = np.clip(old + step[:, :groups], np.minimum(*ends), np.maximum(*ends)).astype(np.float32)
    new_zero = ((at + step)[:, groups:] / scale).astype(np.float32) if grid.offset else zero
    new, new_zero = grid.held(scale, new_zero)

    def cost(s: np.ndarray, z: np.ndarray) -> np.ndarray:
        x = np.concatenate([s, z * s], axis=1) if grid.offset else s
        return np.einsum("ok,okl,ol->o", x, normal64, x, optimize=True) - 2 * (x * wanted).sum(axis=1)

    better = (cost(new, new_zero) < cost(old, zero))[:, None]
    return replace(start, scale=np.where(better, new, old).astype(start.scale.dtype),
                   zero_point=np.where(better, new_zero, zero).astype(start.zero_point.dtype))  # fmt: skip


def _normal(
    bases: list[np.ndarray], pulled: np.ndarray, gram: np.ndarray, out: int, groups: int
) -> tuple[np.ndarray, np.ndarray]:
    """Of least squares over bases [out or 1, in], each cut into groups: (matrices [out, n, n], right sides [out, n])."""
    g, n = len(gram) // groups, groups * len(bases)
    normal, wanted = np.empty((out, n, n), np.float32), np.empty((out, n), np.float32)
    for a, base in enumerate(bases):
        wanted[:, a * groups : (a + 1) * groups] = (pulled * base).reshape(out, groups, g).sum(axis=2)
        for k in range(groups):
            reach = base[:, k * g : (k + 1) * g] @ gram[k * g : (k + 1) * g]
            for b, other in enumerate(bases):
                normal[:, a * groups + k, b * groups : (b + 1) * groups] = (reach * other).reshape(-1, groups, g).sum(axis=2)
    return normal, wanted


def error(weight: np.ndarray, solution: Solution, gram: np.ndarray) -> float:
    """tr(D gram D^T), D the weights' error: the outputs' squared error over the inputs that gram saw."""
    d = np.asarray(weight, np.float32) - solution.dequantized()
    return float(((d @ gram.astype(np.float32)) * d).sum(dtype=np.float64))
