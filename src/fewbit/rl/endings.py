"""Endings: how a policy's episodes ended, as the environment says: terminated or cut off by its time limit, successful or not."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

SUCCESS = ("is_success", "success")  # keys of the last step's info: Gymnasium-Robotics and Stable-Baselines3; Meta-World


class Endings:
    """Of one policy's episodes, by their number; `following(k)` is what returns.episodes calls."""

    def __init__(self) -> None:
        self._found: dict[int, tuple[bool, bool | None]] = {}

    def following(self, first: int) -> Callable[[int, bool, dict[str, Any]], None]:
        """A function of (row, terminated, the last step's info) that writes episode first + row down."""

        def ended(row: int, terminated: bool, info: dict[str, Any]) -> None:
            self._found[first + row] = (bool(terminated), _success(info))

        return ended

    def terminated(self, n: int) -> dict[str, Any]:
        """Of the first n episodes: {"count", "n", "share", "ci95"}."""
        return _share(sum(self._found[k][0] for k in range(n)), n)

    def succeeded(self, n: int) -> dict[str, Any] | None:
        """The same of successes; None where the environment does not say so of every episode."""
        said = [self._found[k][1] for k in range(n)]
        return None if None in said else _share(sum(map(bool, said)), n)


def _success(info: dict[str, Any]) -> bool | None:
    for key in SUCCESS:
        value = np.asarray(info.get(key), dtype=object).ravel()
        if len(value) == 1 and isinstance(value[0], bool | int | float | np.number | np.bool_) and value[0] == value[0]:
            return bool(value[0])
    return None


def _share(count: int, n: int) -> dict[str, Any]:
    return {"count": count, "n": n, "share": count / n, "ci95": list(wilson(count, n))}


def wilson(count: int, n: int) -> tuple[float, float]:
    """The 95% interval (low, high) of a probability of which n trials showed count (Wilson's score interval)."""
    z, share = 1.959964, count / n
    middle, scale = share + z * z / (2 * n), 1 + z * z / n
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)
