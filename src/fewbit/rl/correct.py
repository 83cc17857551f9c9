"""Experience of a policy that is not quite the one in training (quantized, or older): importance weights and what they cost.

log_prob     of the taken actions (tokens) under the policy in training, [sequences, steps] or [steps]
behaviour    of the same actions under the policy that took them, the same shape
mask         of the same shape, 1 where there is an action (token), 0 where there is padding; None: everywhere

NumPy arrays or torch tensors, and what comes back is the same kind; no gradient flows through a weight. A ratio is taken of an
action ("token"), or of a sequence as a product ("sequence") or a geometric mean ("geometric"), and then spread over the sequence.

Sources: Espeholt et al. 2018 (truncation), Hilton et al. 2022 (the proximal policy apart from the behaviour), Schulman 2020 (k3),
Liu, Li et al. 2025 and verl's rollout correction, whose formulas these are (tests/test_correct.py).
"""

from typing import Any

import numpy as np

from fewbit.errors import FewbitError

Array = Any  # np.ndarray or torch.Tensor
LEVELS = ("token", "sequence", "geometric")
BOUND = 20.0  # of a log-ratio: e^20 is 4.9e8, and a larger weight is as useless


def log_ratio(log_prob: Array, behaviour: Array, mask: Array | None = None, level: str = "token") -> Array:
    """log(training / behaviour) [sequences, steps], within +-BOUND; at level "sequence" the sum along steps, at "geometric" the
    mean, repeated along them."""
    new, old, mask = _checked(log_prob, behaviour, mask)
    if level not in LEVELS:
        raise FewbitError(f"level {level} is unknown; choose one of {', '.join(LEVELS)}")
    ratio = (new - old) * mask
    if level != "token":
        total = ratio.sum(axis=-1, keepdims=True)
        count = mask.sum(axis=-1, keepdims=True).clip(1, None) if level == "geometric" else 1
        ratio = total / count + 0 * ratio
    return ratio.clip(-BOUND, BOUND)


def weights(
    log_prob: Array,
    behaviour: Array,
    mask: Array | None = None,
    level: str = "token",
    truncate: float | None = None,
    normalise: bool = False,
) -> Array:
    """Importance weights [sequences, steps], 0 where there is padding.

    Plain, a sequence's weight is unbiased: the mean over behaviour's sequences of weight * f is the mean of f over those of the
    policy in training. truncate: weights above it become it (biased towards the behaviour, of less variance; `diagnostics`
    says how much of both). normalise: divided by their mean over tokens, at the other levels over sequences (biased by O(1/n)).
    """
    new, old, valid = _checked(log_prob, behaviour, mask)
    if truncate is not None and not truncate > 0:
        raise FewbitError(f"truncate {truncate}: a weight's bound is positive")
    found = _exp(log_ratio(new, old, valid, level))
    if truncate is not None:
        found = found.clip(None, truncate)
    found = found * valid
    return found / _mean_weight(found, valid, level) if normalise else found


def within(
    log_prob: Array,
    behaviour: Array,
    mask: Array | None = None,
    level: str = "token",
    high: float = 2.0,
    low: float | None = None,
) -> Array:
    """mask without what has a ratio outside [low, high] (low None: 1 / high); a mask multiplies the loss and divides its mean."""
    new, old, valid = _checked(log_prob, behaviour, mask)
    low = 1 / high if low is None else low
    if not 0 <= low < high:
        raise FewbitError(f"the band [{low}, {high}] is empty or negative")
    ratio = _exp(log_ratio(new, old, valid, level))
    return valid * (ratio >= low) * (ratio <= high)


def effective(weights: Array, mask: Array | None = None) -> float:
    """Effective sample size as a share of the samples, (sum w)^2 / (n sum w^2) (Kish 1965); 1 where all weights are equal."""
    valid = _ones(weights) if mask is None else mask
    w = weights * valid
    return float(w.sum()) ** 2 / max(float(valid.sum()) * float((w * w).sum()), 1e-300)


def diagnostics(log_prob: Array, behaviour: Array, mask: Array | None = None, truncate: float = 2.0) -> dict[str, float]:
    """What the mismatch is, and what a truncation at `truncate` would do about it, at both levels.

    kl, k3                    KL(behaviour, training) an action: the mean log-ratio, and Schulman's estimator, never < 0
    chi2_{token,sequence}     chi-squared of training from behaviour: the variance of plain weights
    ess_{token,sequence}      effective sample size of the plain weights, as a share
    truncated_*               share of the weights that are cut
    bias_*                    mean of the truncated weights less that of the plain ones: how much mass is given up
    variance_*, variance_truncated_*     of the weights
    """
    new, old, valid = _checked(log_prob, behaviour, mask)
    n = float(valid.sum())
    ratio = (new - old) * valid
    found = {"kl": -float(ratio.sum()) / n, "k3": float(((_exp(ratio) - ratio - 1) * valid).sum()) / n}
    rows = valid[..., :1] * 0 + (valid.sum(axis=-1, keepdims=True) > 0)
    for level, counted in (("token", valid), ("sequence", rows)):
        columns = slice(None) if level == "token" else slice(0, 1)
        plain = _exp(log_ratio(new, old, valid, level))[..., columns]
        cut = plain.clip(None, truncate)
        found |= {
            f"chi2_{level}": _mean(plain * plain, counted) - 1,
            f"ess_{level}": effective(plain, counted),
            f"truncated_{level}": _mean((plain > truncate) * counted, counted),
            f"bias_{level}": _mean(cut, counted) - _mean(plain, counted),
            f"variance_{level}": _variance(plain, counted),
            f"variance_truncated_{level}": _variance(cut, counted),
        }
    return found


def old_log_prob(
    behaviour: Array,
    proximal: Array | None = None,
    mask: Array | None = None,
    level: str = "token",
    truncate: float | None = 2.0,
) -> tuple[Array, Array]:
    """(PPO's old log-probability, the weights of its loss).

    proximal None is the bypass: the behaviour's own log-probability serves as the old one, PPO's ratio corrects for it, and no
    second pass over the batch is needed. Otherwise PPO stays near `proximal`, and truncated weights correct for the behaviour.
    """
    if proximal is None:
        old, _, valid = _checked(behaviour, behaviour, mask)
        return old, valid
    return _checked(proximal, behaviour, mask)[0], weights(proximal, behaviour, mask, level, truncate)


def _checked(log_prob: Array, behaviour: Array, mask: Array | None) -> tuple[Array, Array, Array]:
    """Without gradients; the mask in their dtype, padding's log-probabilities (whatever they are) 0."""
    new, old = (x.detach() if hasattr(x, "detach") else np.asarray(x) for x in (log_prob, behaviour))
    if tuple(new.shape) != tuple(old.shape) or (mask is not None and tuple(mask.shape) != tuple(new.shape)):
        shapes = [list(x.shape) for x in (new, old, mask) if x is not None]
        raise FewbitError(f"log-probabilities and mask have shapes {', '.join(map(str, shapes))}; they must be one")
    valid = _ones(new) if mask is None else 0 * _ones(new) + (mask != 0)
    if not float(valid.sum()):
        raise FewbitError("the mask leaves no action (token) to correct")
    new, old = (_where(valid, x) for x in (new, old))
    if not bool((abs(new - old) < np.inf).all()):
        raise FewbitError("a log-probability is infinite or NaN: an action was taken that one of the policies never takes")
    return new, old, valid


def _mean_weight(found: Array, valid: Array, level: str) -> Array:
    if level == "token":
        return found.sum() / valid.sum()
    steps = valid.sum(axis=-1)
    return (found.sum(axis=-1) / steps.clip(1, None)).sum() / (steps > 0).sum()


def _mean(x: Array, valid: Array) -> float:
    return float((x * valid).sum()) / float(valid.sum())


def _variance(x: Array, valid: Array) -> float:
    return max(_mean(x * x, valid) - _mean(x, valid) ** 2, 0.0)


def _torch(x: Array) -> bool:
    return hasattr(x, "detach")


def _exp(x: Array) -> Array:
    return x.exp() if _torch(x) else np.exp(x)


def _ones(x: Array) -> Array:
    return x.new_ones(x.shape) if _torch(x) else np.ones(x.shape, x.dtype if x.dtype.kind == "f" else np.float64)


def _where(valid: Array, x: Array) -> Array:
    """x, and 0 where it is padding: NaN times 0 would be NaN."""
    return x.masked_fill(valid == 0, 0) if _torch(x) else np.where(valid == 0, 0, x)
