"""Action error: how far one policy's actions lie from another's on the same observations. Arrays in, numbers out."""

import numpy as np

from fewbit.errors import FewbitError

AGREEMENT, RMSE = 0.995, 0.01  # from where on, and up to where, two policies act alike
ROUNDING = 1e-6  # of its magnitude: a number that moves less in float32 stands still


def action_error(
    want: np.ndarray, got: np.ndarray, low: np.ndarray | float | None = None, high: np.ndarray | float | None = None
) -> dict[str, float]:
    """The error of actions, as shares of the action range; of discrete actions the share that is equal.

    Args:
        want: [n, ...] actions to be met. Integers or booleans without `low` and `high` are discrete.
        got: [n, ...] actions of the other policy on the same n observations.
        low, high: ends of the action range, each a number or [...]; where one is missing or infinite, the range is
            what `want` uses.

    Returns:
        {"action_agreement": share of the n whose whole action is equal} of discrete actions; of others {"action_rmse": root
        mean square over all numbers, "action_p999": bound that the worst number of an action keeps in 99.9% of the n,
        "action_worst": the largest error of all}.

    Raises:
        FewbitError: the two differ in shape, there are none, or one of them is not finite.
    """
    want, got = np.asarray(want), np.asarray(got)
    if want.size == 0 or want.shape != got.shape:
        raise FewbitError(f"actions of shape {list(want.shape)} and {list(got.shape)} cannot be compared; give as many of both")
    rows = want.reshape(len(want), -1), got.reshape(len(got), -1)
    if want.dtype.kind in "iub" and low is None and high is None:
        return {"action_agreement": float((rows[0] == rows[1]).all(axis=1).mean())}
    real: list[np.ndarray] = [r.astype(np.float64) for r in rows]
    for name, actions in zip(("the original", "the policy compared with it"), real, strict=True):
        bad = int((~np.isfinite(actions)).any(axis=1).sum())
        if bad:
            raise FewbitError(f"{name} acts with NaN or infinity on {bad} of {len(actions)} observations: it overflows there")
    error = np.abs(real[1] - real[0]) / _width(real[0], want.shape[1:], low, high)
    worst = error.max(axis=1)
    return {
        "action_rmse": float(np.sqrt((error**2).mean())),
        "action_p999": float(np.quantile(worst, 0.999)),
        "action_worst": float(worst.max()),
    }


def _width(
    want: np.ndarray, shape: tuple[int, ...], low: np.ndarray | float | None, high: np.ndarray | float | None
) -> np.ndarray:
    """The range of each number of an action [numbers], never zero: one that stands still is measured by what the others use."""
    ends = [np.broadcast_to(np.inf if v is None else np.asarray(v, np.float64), shape).ravel() for v in (low, high)]
    with np.errstate(invalid="ignore"):
        stated = ends[1] - ends[0]
    used = np.ptp(want, axis=0)
    used = np.where(used > ROUNDING * np.abs(want).max(axis=0), used, 0.0)
    still = used.max() or np.abs(want).max() or 1.0
    return np.where(np.isfinite(stated) & (stated > 0), stated, np.where(used > 0, used, still))


def acts_alike(measured: dict[str, float]) -> bool:
    """The fidelity rule, of what action_error returned: agreement of 99.5%, or RMSE of 1% of the action range."""
    return measured.get("action_agreement", 0.0) >= AGREEMENT or measured.get("action_rmse", 1.0) <= RMSE
