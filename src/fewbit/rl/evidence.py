"""What a return proves: kept, its interval, the verdict (docs/design.md, "Evidence"). Arrays in, numbers out.

kept = (Q - R0) / (F - R0): mean returns of quantized, float and uniformly random actions. Never Q / F: returns may be
negative, and a ratio would then reward harm. Below 100 episodes the interval reaches as far as the wider of a bootstrap-t
(returns are skewed) and Student's t (a bootstrap of 20 heavy-tailed episodes alone covers 92%, not 95%: measured).
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

RESAMPLES = 4000
BOOTSTRAP_BELOW = 100
PILOT = 20  # episodes below which returns that are all alike prove nothing yet


@dataclass(frozen=True)
class Kept:
    """kept is None, and the verdict undecided, where the float policy is no better than random actions."""

    kept: float | None
    low: float | None
    high: float | None
    verdict: str
    se: float = 0.0


def judge(
    float_returns: np.ndarray, quantized_returns: np.ndarray, random_returns: np.ndarray, keep: float, seed: int = 0
) -> Kept:
    """Paired [n] returns of float and quantized on equal seeds, [m] of random actions; the 95% interval against keep."""
    f, q, r = (np.asarray(a, np.float64) for a in (float_returns, quantized_returns, random_returns))
    span = f.mean() - r.mean()
    scatter = np.sqrt(f.var(ddof=1) / len(f) + r.var(ddof=1) / len(r)) if len(f) > 1 else 0.0
    if span <= 2 * scatter or span <= 0 or len(f) < 2:
        return Kept(None, None, None, "undecided")
    k, se = (float(v[0]) for v in _kept(f[None], q[None], r[None]))
    if se <= 1e-12 * max(1.0, abs(k)):  # of n alike, 3 / n others may be unlike (rule of three), and lose everything
        low, high = k - abs(k) * (min(1.0, 3 / len(f)) if len(f) < PILOT else 0.0), k
    elif len(f) < BOOTSTRAP_BELOW:
        rng = np.random.default_rng(seed)
        pairs, others = rng.integers(0, len(f), (RESAMPLES, len(f))), rng.integers(0, len(r), (RESAMPLES, len(r)))
        k_star, se_star = _kept(f[pairs], q[pairs], r[others])
        usable = se_star > 0
        t = (k_star[usable] - k) / se_star[usable]
        student = student_975(min(len(f), len(r)) - 1)
        high = k + se * max(-np.quantile(t, 0.025), student)
        low = k - se * max(np.quantile(t, 0.975), student)
    else:
        low, high = k - 1.96 * se, k + 1.96 * se
    verdict = "pass" if low > keep or low == high >= keep else "fail" if high < keep else "undecided"
    return Kept(k, float(low), float(high), verdict, se)


def _kept(f: np.ndarray, q: np.ndarray, r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """kept and its standard error (delta method) of each row."""
    fm, qm, rm = (a.mean(axis=1) for a in (f, q, r))
    span = np.where(fm > rm, fm - rm, np.nan)
    k = (qm - rm) / span
    pair = (q - k[:, None] * f).var(axis=1, ddof=1) / f.shape[1]
    rand = ((k - 1)[:, None] * r).var(axis=1, ddof=1) / r.shape[1]
    return np.nan_to_num(k), np.nan_to_num(np.sqrt(pair + rand) / span)


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
    """n = ceil((3.24 sd / (margin - expected loss))^2), sd of one episode's kept from the n that were run."""
    if found.kept is None:
        return 10**9
    gap = abs(found.kept - keep)
    return int(min(1e9, np.ceil((3.24 * found.se * np.sqrt(n) / max(gap, 1e-6)) ** 2)))


def fidelity(float_actions: np.ndarray, other: np.ndarray, width: np.ndarray | None) -> dict[str, float]:
    """Discrete (width None): share of equal actions. Otherwise RMSE as a share of the action range, width [action]."""
    if width is None:
        return {"action_agreement": float((float_actions == other).mean())}
    error = (float_actions.astype(np.float64) - other) / width
    return {"action_rmse": float(np.sqrt((error**2).mean()))}


def faithful(measured: dict[str, float]) -> bool:
    """The fidelity rule: agreement of 99.5%, or RMSE of 1% of the action range."""
    return measured.get("action_agreement", 0.0) >= 0.995 or measured.get("action_rmse", 1.0) <= 0.01
