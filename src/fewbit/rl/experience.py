"""Experience: the columns that a worker fills and a learner reads, over any memory; and the batch that is made of them."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

HEADER = 64  # bytes before the columns: two int64 counters of a fill, steps made and steps committed
Columns = dict[str, np.ndarray]


@dataclass(frozen=True)
class Layout:
    """What one step of one environment is: shape and dtype of an observation and of an action."""

    observation: tuple[tuple[int, ...], str]
    action: tuple[tuple[int, ...], str]

    def fields(self) -> dict[str, tuple[tuple[int, ...], str]]:
        one: tuple[int, ...] = ()
        return {
            "observations": self.observation,
            "next_observations": self.observation,
            "actions": self.action,
            "log_prob": (one, "f8"),
            "rewards": (one, "f4"),
            "terminated": (one, "?"),
            "truncated": (one, "?"),
            "valid": (one, "?"),
            "episode": (one, "i8"),
            "step": (one, "i4"),
        }

    def bytes(self, steps: int, envs: int) -> int:
        """That a segment of [steps, envs] takes, its header included."""
        return HEADER + sum(_padded(steps, envs, f) for f in self.fields().values())

    def columns(self, buffer: Any, steps: int, envs: int) -> Columns:
        """Arrays [steps, envs, ...] over a buffer of so many bytes."""
        made, at = {}, HEADER
        for name, (shape, dtype) in self.fields().items():
            made[name] = np.ndarray((steps, envs, *shape), np.dtype(dtype), buffer, at)
            at += _padded(steps, envs, (shape, dtype))
        return made


def _padded(steps: int, envs: int, one: tuple[tuple[int, ...], str]) -> int:
    size = steps * envs * int(np.prod(one[0])) * np.dtype(one[1]).itemsize
    return -(-size // 64) * 64


def counters(buffer: Any) -> np.ndarray:
    """int64 [2] of a segment: steps made, steps committed (whole, log-probabilities included) in the fill that runs."""
    return np.ndarray((2,), np.int64, buffer, 0)


@dataclass(frozen=True)
class Fault:
    """A worker that was replaced. discarded: transitions that it had made and not committed, None where nobody can know."""

    worker: int
    reason: str
    discarded: int | None


@dataclass(frozen=True)
class Batch:
    """Arrays [steps, environments, ...], an environment's steps in order; workers' environments side by side.

    observations, next_observations (what the step led to, before any reset)
    actions        what the policy's distribution is over: not clipped, or in [-1, 1] where it squashes, or numbers
    log_prob       float64, of actions under the quantized policy that took them
    rewards float32, terminated, truncated (an episode that a fault cut off is truncated)
    valid          False: no transition (an environment that had done its episodes, or that was being reset)
    episode, step  int64 within the environment, int32 within the episode: with the environment's column a transition's name; an
                   episode's number is generation * 2^32 + k, generations counting the worker's replacements
    version        of the actor that took them, from 0 on; faults: what happened meanwhile
    """

    observations: np.ndarray
    next_observations: np.ndarray
    actions: np.ndarray
    log_prob: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    valid: np.ndarray
    episode: np.ndarray
    step: np.ndarray
    version: int = 0
    faults: list[Fault] = field(default_factory=list)

    def __len__(self) -> int:
        """Transitions."""
        return int(self.valid.sum())

    def columns(self) -> Columns:
        return {k: v for k, v in vars(self).items() if isinstance(v, np.ndarray)}

    def transitions(self) -> Columns:
        """Every valid one, as arrays [n, ...], environment by environment."""
        keep = self.valid.T.reshape(-1)
        return {k: np.swapaxes(v, 0, 1).reshape(-1, *v.shape[2:])[keep] for k, v in self.columns().items()}

    def episodes(self) -> Iterator[Columns]:
        """Of each episode, or part of one, its steps as arrays [steps, ...]."""
        for env in range(self.valid.shape[1]):
            rows = np.flatnonzero(self.valid[:, env])
            for part in np.split(rows, np.flatnonzero(np.diff(self.episode[rows, env])) + 1):
                if len(part):
                    yield {k: v[part, env] for k, v in self.columns().items()}


def joined(workers: list[list[Columns]], version: int, faults: list[Fault]) -> Batch:
    """The batch of each worker's pieces, in order; the shorter ones are filled up with what is not valid."""
    steps = max(sum(len(p["valid"]) for p in pieces) for pieces in workers)
    envs = [pieces[0]["valid"].shape[1] for pieces in workers]
    made = {k: np.zeros((steps, sum(envs), *v.shape[2:]), v.dtype) for k, v in workers[0][0].items()}
    for pieces, last in zip(workers, np.cumsum(envs), strict=True):
        at = 0
        for piece in pieces:
            rows, width = piece["valid"].shape
            for name, values in piece.items():
                made[name][at : at + rows, last - width : last] = values
            at += rows
    return Batch(**made, version=version, faults=faults)
