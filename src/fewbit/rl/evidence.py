"""What a return proves: kept, its interval, the verdict (docs/design.md, "Evidence"). Arrays in, numbers out.

kept = (Q - R0) / (F - R0): mean returns of quantized, float and uniformly random actions. Never Q / F: returns may be
negative, and a ratio would then reward harm.

The interval adds two things in quadrature. Noise: Fieller's limits of a ratio of means, with Student's quantile. Failures
that were not seen: n episodes without one leave room for 3 / n of them (rule of three), each as low as random actions are
on average, or as the lowest return that was seen. benchmarks/coverage.py counts how often the interval holds the truth.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from fewbit.errors import FewbitError

UNSEEN = 3.0  # what none of n episodes showed comes in up to UNSEEN / n of them, at 95%
DECIDES = 3.24  # standard errors between kept and keep from which nine verdicts of ten are right and not undecided


@dataclass(frozen=True)
class Kept:
    """kept is None, and the verdict undecided, where the float policy is no better than random actions.

    unseen: the share of episodes that may fail though none was seen to. se: the standard error of kept. failure: what kept
    loses where every episode of the quantized policy fails; failure_float: the same of the float policy's own return.
    """

    kept: float | None
    low: float | None
    high: float | None
    verdict: str
    unseen: float = 1.0
    se: float = 0.0
    failure: float = 0.0
    failure_float: float = 0.0


UNDEFINED = Kept(None, None, None, "undecided")


def judge(
    float_returns: np.ndarray, quantized_returns: np.ndarray, random_returns: np.ndarray, keep: float, seed: int = 0
) -> Kept:
    """The share of the float policy's return that is kept, and its 95% interval against `keep`.

    Args:
        float_returns, quantized_returns: [n] returns on equal seeds.
        random_returns: [m] returns of uniformly random actions.
        keep: the share that is asked for.
        seed: of no effect, since nothing is drawn any more.

    Returns:
        What was kept. The verdict is pass with the whole interval above `keep`, fail with all of it below.

    Raises:
        FewbitError: the policies have different numbers of episodes, or a return is not finite.
    """
    f, q, r = (np.asarray(x, np.float64) for x in (float_returns, quantized_returns, random_returns))
    _check(f, q, r)
    if len(f) < 2 or not len(r) or f.mean() <= r.mean():
        return UNDEFINED
    gain, span = float(q.mean() - r.mean()), float(f.mean() - r.mean())
    k = gain / span
    noise, degrees = _noise(f, q, r, k)
    if span <= 2 * math.sqrt(noise[1, 1]):
        return UNDEFINED
    lowest, unseen = min(r.mean(), f.min(), q.min()), min(1.0, UNSEEN / len(f))
    drop, drop_float = float(q.mean() - lowest), float(f.mean() - lowest)
    scaled = student_975(degrees) ** 2 * noise
    low, bounded_below = _limit(gain, span, scaled + np.diag([(unseen * drop) ** 2, 0.0]), -1)
    high, bounded_above = _limit(gain, span, scaled + np.diag([0.0, (unseen * drop_float) ** 2]), 1)
    verdict = "pass" if bounded_below and low > keep else "fail" if bounded_above and high < keep else "undecided"
    se = math.sqrt(_along(noise, k)) / span
    return Kept(k, low, high, verdict, unseen, se, drop / span, drop_float / span)


def exactly(float_score: float, quantized_score: float, floor: float, keep: float) -> Kept:
    """The same of two scores that are taken as exact: kept is a point."""
    if float_score <= floor:
        return UNDEFINED
    k = (quantized_score - floor) / (float_score - floor)
    return Kept(k, k, k, "pass" if k >= keep else "fail", 0.0)


def _check(f: np.ndarray, q: np.ndarray, r: np.ndarray) -> None:
    if len(f) != len(q):
        raise FewbitError(f"{len(f)} episodes of the float policy beside {len(q)} of the quantized one; give as many of both")
    for who, returns in (("the float policy", f), ("the quantized policy", q), ("random actions", r)):
        for k in np.flatnonzero(~np.isfinite(returns))[:1]:
            raise FewbitError(
                f"episode {k} of {who} returned {returns[k]}, and no mean can be taken; make the environment's rewards finite"
            )


def _noise(f: np.ndarray, q: np.ndarray, r: np.ndarray, k: float) -> tuple[np.ndarray, int]:
    """(covariance [2, 2] of the means' (Q - R0, F - R0), degrees of freedom of Q - R0 - k (F - R0) by Satterthwaite)."""
    n, m = len(f), len(r)
    pairs, random = np.cov(q, f) / n, float(r.var(ddof=1)) / m if m > 1 else 0.0
    parts = np.array([_along(pairs, k), (k - 1) ** 2 * random])
    weighed = (parts**2 / [n - 1, max(1, m - 1)]).sum()
    degrees = parts.sum() ** 2 / weighed if weighed > 0 else n - 1
    return pairs + random, max(1, int(degrees + 1e-9))


def _along(covariance: np.ndarray, k: float) -> float:
    """The variance of the first minus k times the second."""
    return max(0.0, float(covariance[0, 0] - 2 * k * covariance[0, 1] + k * k * covariance[1, 1]))


def _limit(gain: float, span: float, spread: np.ndarray, sign: int) -> tuple[float, bool]:
    """(the last K on that side with (gain - K span)^2 <= the spread along K, is there one?); to first order where none is."""
    a, b, c = (float(x) for x in (span**2 - spread[1, 1], gain * span - spread[0, 1], gain**2 - spread[0, 0]))
    if a <= 0:
        k = gain / span
        return k + sign * math.sqrt(_along(spread, k)) / span, False
    return (b + sign * math.sqrt(max(0.0, b * b - a * c))) / a, True


@lru_cache
def student_975(df: int) -> float:
    """The 97.5% quantile of Student's t; above 1000 degrees of freedom that of 1000, which is 0.1% wide.

    The distribution is a finite sum in the angle atan(t / sqrt(df)) (Abramowitz and Stegun 26.7.3 and 26.7.4), which is
    inverted by bisection.
    """
    df = min(df, 1000)
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_within(middle, df) < 0.95 else (low, middle)
    return math.sqrt(df) * math.tan(low)


def _student_within(angle: float, df: int) -> float:
    """The probability that |t| / sqrt(df) is below the angle's tangent."""
    odd, cos = df % 2, math.cos(angle)
    total, term = 0.0, cos if odd else 1.0
    for k in range(2 + odd, df + 1, 2):
        total += term
        term *= (k - 1) / k * cos * cos
    total *= math.sin(angle)
    return (angle + total) * 2 / math.pi if odd else total


def episodes_needed(found: Kept, n: int, keep: float) -> int:
    """The least n with (DECIDES sd)^2 / n + (UNSEEN failure / n)^2 < (kept - keep)^2; sd of one episode, from the n run."""
    if found.kept is None:
        return 10**9
    gap = max(abs(found.kept - keep), 1e-6)
    noise = n * (DECIDES * found.se / gap) ** 2 / 2
    failures = UNSEEN * (found.failure if found.kept > keep else keep * found.failure_float) / gap
    return int(min(1e9, math.floor(noise + math.hypot(noise, failures) + 1e-6) + 1))
