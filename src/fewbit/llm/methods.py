"""How a group of Linears that share an input becomes integers: the named methods, as what each of them switches on.

auto, in the order in which it works: columns scaled where that can be folded away exactly (by the inputs' size, Lin et al. 2023,
the columns' own size, half of Nagel et al. 2019, or both); targets that make up for what was lost before (GPTAQ, Li et al. 2025;
Qronos, Zhang et al. 2025; and, for layers that write the residual stream, the stream's own error); scales that minimise the
loss left after GPTQ's compensation; GPTQ (Frantar et al. 2022); coordinate descent in turn with a joint refit of the scales.
"""

from dataclasses import dataclass, replace

import numpy as np

from fewbit.errors import FewbitError
from fewbit.solvers import grouped
from fewbit.solvers.grids import AnyGrid, Solution


@dataclass(frozen=True)
class Method:
    """scaling: "" or one of RULES; clip: scales searched; compensate: GPTQ; propagate: targets from the float model;
    polish: rounds of coordinate descent and refit; by_token: in layers that write the residual stream a token's error counts
    relative to the stream's size there, because a norm follows (the first token's can be a thousand times the others')."""

    scaling: str = ""
    clip: bool = True
    compensate: bool = False
    propagate: bool = False
    polish: int = 0
    by_token: bool = False

    @property
    def calibrated(self) -> bool:
        return self.clip or self.compensate or bool(self.scaling)


# Exponents of a column's rms and of its input's (of their largest magnitudes in SmoothQuant's rule, Xiao et al. 2023).
RULES = {
    "awq": tuple((0.0, k / 10) for k in range(11)),
    "smooth": ((0.5, 0.5),),
    "columns": ((0.0, 0.0), (0.5, 0.0), (1.0, 0.0), (0.0, 0.25), (1.0, 0.25)),
}
MENDED = 4  # bits below which more is lost than later layers can make up for, and no token's share in it helps (docs/llm.md)
REACH = 0.5  # what making up for earlier layers may change a row's outputs by
ROWS = 8  # every so manyth row is enough to choose a rule
METHODS = {
    "rtn": Method(clip=False),
    "gptq": Method(compensate=True),
    "awq": Method("awq"),
    "smooth": Method("smooth", clip=False),
    "awq+gptq": Method("awq", compensate=True),
    "auto": Method("columns", compensate=True, propagate=True, polish=1, by_token=True),
}


def find(name: str, bits: float = 8) -> Method:
    """bits: of a weight, on average."""
    if name not in METHODS:
        raise FewbitError(f"method {name} is unknown; choose one of {', '.join(METHODS)}")
    mends = bits >= MENDED
    return replace(METHODS[name], propagate=METHODS[name].propagate and mends, by_token=METHODS[name].by_token and mends)


@dataclass(frozen=True)
class Moments:
    """gram [in, in]: mean of x x^T over the inputs that the quantized layers before hand on; drift [out, in] of each Linear: mean
    of (t - W x) x^T, t the wanted output; absent where that is the float weights' own."""

    gram: np.ndarray
    drift: dict[str, np.ndarray]
    halves: tuple[tuple[np.ndarray, dict[str, np.ndarray]], ...] = ()  # gram and drift of either half of the drift's own samples


def solve(weights: dict[str, np.ndarray], grids: dict[str, AnyGrid], moments: Moments, method: Method) -> dict[str, Solution]:
    """Integers for weights [out, in] of one input."""
    if not (method.clip or method.compensate):
        return {n: grouped.nearest(w, grids[n]) for n, w in weights.items()}
    gram = moments.gram
    inverse = grouped.damped_inverse(gram)
    by = grouped.ordered(gram) if method.compensate else None
    importance = 1 / np.diag(inverse) if method.compensate else np.diag(gram)
    found = {}
    for name, weight in weights.items():
        wanted = weight
        if name in moments.drift and _mends(name, weight, moments):
            wanted = (weight + _bounded(moments.drift[name] @ inverse, weight, gram)).astype(np.float32)
        s = grouped.clipped(wanted, importance, grids[name])
        if by is not None:
            s = grouped.gptq(wanted, s, by)
        for _ in range(method.polish):
            s = grouped.rescaled(wanted, grouped.descend(wanted, s, gram), gram)
        found[name] = grouped.descend(wanted, s, gram) if method.polish else s
    return found


def _mends(name: str, weight: np.ndarray, moments: Moments) -> bool:
    """Whether a correction found on one half of the samples brings outputs nearer to the wanted ones on the other.

    With few tokens beside the columns it does not: it would fit those tokens alone.
    """
    if not moments.halves:
        return True
    (gram, drift), (other, wanted) = moments.halves
    step = _bounded(drift[name] @ grouped.damped_inverse(gram), weight, gram)
    return bool(((step @ other) * step).sum() < 2 * (step * wanted[name]).sum())


def _bounded(step: np.ndarray, weight: np.ndarray, gram: np.ndarray) -> np.ndarray:
    """The rows of a correction, shortened where they would give outputs more than REACH times as large as the weight's own.

    Where the quantized model has lost a token's huge hidden state altogether, least squares would have one layer make it anew.
    """
    ours, own = (((w @ gram) * w).sum(axis=1) for w in (step, weight.astype(np.float64)))
    return step * np.minimum(1, REACH * np.sqrt(np.maximum(own, 0) / np.maximum(ours, 1e-30)))[:, None]


def column_scale(weights: list[np.ndarray], gram: np.ndarray, peak: np.ndarray, method: Method, grid: AnyGrid) -> np.ndarray:
    """float64 [in], what to multiply the columns by: the best of the method's rules by the loss after rounding to nearest, each
    column weighted by what an error costs once GPTQ has made up for it (or costs at once, without GPTQ).

    gram [in, in] and peak [in], the largest magnitude, of the input.
    """
    stack = np.concatenate(weights)[::ROWS].astype(np.float64)
    cost = 1 / np.diag(grouped.damped_inverse(gram)) if method.compensate else np.diag(gram)
    reach = np.maximum(np.sqrt(np.diag(gram)), 1e-4 * np.sqrt(np.diag(gram).max()) + 1e-30)
    size = np.maximum(np.sqrt((np.concatenate(weights).astype(np.float64) ** 2).mean(axis=0)), 1e-12)
    if method.scaling == "smooth":
        reach = np.maximum(peak, 1e-4 * peak.max() + 1e-30)
        size = np.maximum(np.abs(np.concatenate(weights)).max(axis=0), 1e-12)
    best, least = np.ones(stack.shape[1]), np.inf
    for of_weight, of_input in RULES[method.scaling]:
        scale = _centred(reach**of_input / size**of_weight)
        scaled = (stack * scale).astype(np.float32)
        off = grouped.clipped(scaled, cost / scale**2, grid).dequantized() - scaled
        loss = float((off.astype(np.float64) ** 2 @ (cost / scale**2)).sum())
        if loss < least:
            best, least = scale, loss
    return best


def _centred(scale: np.ndarray) -> np.ndarray:
    """Median 1, within a factor of 100 of it: a column that is nearly zero must not swell what feeds it."""
    log = np.log(scale)
    return np.exp(np.clip(log - np.median(log), -np.log(100), np.log(100)))
