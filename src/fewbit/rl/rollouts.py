"""Rollouts: environments stepped by a quantized actor inside worker processes, on this machine or on a Ray cluster.

with fewbit.rl.rollout(actor, "HalfCheetah-v5", envs=8, workers=2) as rollout:
    batch = rollout.collect(4096)                # transitions; or rollout.collect(episodes=20)
    rollout.update(live.actor())                 # new weights: codes and scales alone
"""

import math
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fewbit.errors import FewbitError
from fewbit.rl import actor as actors
from fewbit.rl.actor import Actor
from fewbit.rl.collector import VECTORS, Order, Spec
from fewbit.rl.experience import Batch, Columns, Fault, joined
from fewbit.rl.processes import Piece, Processes
from fewbit.rl.worker import Update

SEGMENT, MEMORY = 32768, 64 << 20  # transitions that a worker makes at most between two answers, and bytes of their observations
FAULTS = 5  # of one worker in a row without a step that was kept, and the rollout gives up


class Backend(Protocol):
    """Workers by number, wherever they are. steps: that one makes at most between two answers."""

    steps: int

    def fill(self, orders: dict[int, Order]) -> dict[int, Piece]: ...

    def update(self, update: Update) -> None: ...

    def close(self) -> None: ...


def rollout(
    actor: Actor | str | Path | bytes,
    env: str,
    *,
    envs: int = 1,
    workers: int = 1,
    seed: int = 0,
    env_args: dict[str, Any] | None = None,
    vector: str = "gymnasium",
    backend: str = "process",
    patience: float = 60.0,
) -> "Rollout":
    """A Rollout of `workers` workers with `envs` environments each. actor: rl/actor's, or the path or bytes of an artifact.

    env: what gymnasium.make takes, or with vector="envpool" what EnvPool has. backend: "process", or "ray" in the cluster that
    Ray is, or will be, connected to. patience: seconds without a step after which a worker is replaced.
    The same seed, envs and workers give the same data, unless a worker had to be replaced.
    """
    for name, count in (("envs", envs), ("workers", workers)):
        if not isinstance(count, int) or count < 1:
            raise FewbitError(f"{name} {count}: at least one is needed")
    if vector not in VECTORS:
        raise FewbitError(f"vector {vector} is unknown; choose one of {', '.join(VECTORS)}")
    held = _actor(actor)
    specs = [Spec(env, env_args, envs, vector, (seed, k, 0)) for k in range(workers)]
    return Rollout(_backend(backend, specs, _segment(held, envs), _whole(held), patience), specs, held)


def _actor(given: Any) -> Actor:
    if not isinstance(given, Actor | str | Path | bytes):
        raise FewbitError(
            f"a {type(given).__name__} is no actor; fewbit.rl.Live(model.policy, observations).actor() makes one of it"
        )
    return given if isinstance(given, Actor) else actors.read(given)


def _segment(actor: Actor, envs: int) -> int:
    size = 2 * actor.dtype.itemsize * math.prod(actor.shape)
    return max(1, min(SEGMENT, MEMORY // size) // envs)


def _backend(name: str, specs: list[Spec], steps: int, update: Update, patience: float) -> Backend:
    if name == "process":
        return Processes(specs, steps, update, patience)
    if name == "ray":
        from fewbit.rl.ray_workers import RayWorkers

        return RayWorkers(specs, steps, update, patience)
    raise FewbitError(f"backend {name} is unknown; choose process or ray")


def _whole(actor: Actor) -> Update:
    return Actor(actor.base, actor.exploration).to_bytes(), actor.codes, actor.exploration


class Rollout:
    """Workers, until it is closed: at the end of its `with`, by `close`, on Ctrl-C or any other exception in `collect`."""

    def __init__(self, backend: Backend, specs: list[Spec], actor: Actor):
        self.backend, self.specs, self.version, self.base = backend, specs, 0, actor.base
        self._end = weakref.finalize(self, backend.close)

    def update(self, actor: Actor | str | Path | bytes) -> int:
        """Act with it from the next batch on; its version. Of a graph that the workers have, codes and scales alone travel."""
        self._check_open()
        held = _actor(actor)
        self.backend.update((None, held.codes, held.exploration) if held.base is self.base else _whole(held))
        self.base = held.base
        self.version += 1
        return self.version

    def collect(self, steps: int | None = None, episodes: int | None = None) -> Batch:
        """At least `steps` transitions, as many of every environment, going on where the last batch of steps ended; or `episodes`
        whole ones, begun anew, as many of every environment as well as it divides (so that short ones are not more likely)."""
        self._check_open()
        if (steps is None) == (episodes is None) or (steps or episodes or 0) < 1:
            raise FewbitError("collect either a number of steps or a number of episodes")
        try:
            return self._collect([_Part(k, s, steps, episodes, self.specs) for k, s in enumerate(self.specs)])
        except BaseException:
            self.close()
            raise

    def _collect(self, parts: list["_Part"]) -> Batch:
        while any(not p.done for p in parts):
            for k, piece in self.backend.fill({p.worker: p.order(self.backend.steps) for p in parts if not p.done}).items():
                parts[k].take(piece)
        return joined([p.pieces for p in parts], self.version, [f for p in parts for f in p.faults])

    def _check_open(self) -> None:
        if not self._end.alive:
            raise FewbitError("this rollout is closed; start another one")

    def close(self) -> None:
        """No process and no memory of it is left."""
        self._end()

    def __enter__(self) -> "Rollout":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


class _Part:
    """What one worker has done of a batch and has still to do."""

    def __init__(self, worker: int, spec: Spec, steps: int | None, episodes: int | None, specs: list[Spec]):
        count, total = spec.envs, spec.envs * len(specs)
        self.worker = worker
        self.left = None if steps is None else -(-steps // total)  # of every environment
        share = np.full(total, (episodes or 0) // total) + (np.arange(total) < (episodes or 0) % total)
        self.quota = None if episodes is None else share[worker * count : (worker + 1) * count]
        self.pieces: list[Columns] = []
        self.faults: list[Fault] = []
        self.fresh, self.done, self.in_vain = episodes is not None, False, 0

    def order(self, most: int) -> Order:
        if self.quota is not None:
            return Order(most, tuple(int(q) for q in self.quota), self.fresh)
        assert self.left is not None
        return Order(min(self.left, most))

    def take(self, piece: Piece) -> None:
        rows = len(piece.columns["valid"]) if piece.columns else 0
        self.in_vain = 0 if rows else self.in_vain + 1
        self.fresh = False
        if piece.columns and (rows or not self.pieces):
            self.pieces.append(piece.columns)
        if self.left is not None:
            self.left -= rows
        if self.quota is not None and rows:
            self.quota = self.quota - _over(piece.columns).sum(0)
        if piece.fault is not None:
            self._fault(piece.fault)
        self.done = self.left == 0 if self.left is not None else piece.done

    def _fault(self, fault: Fault) -> None:
        """Episodes that were going on are over: truncated, or where whole ones were asked for, discarded."""
        dropped = 0
        if self.pieces and len(self.pieces[-1]["valid"]):
            last = self.pieces[-1]
            cut = last["valid"][-1] & ~_over(last)[-1]
            if self.quota is None:
                last["truncated"][-1] |= cut
            else:
                dropped = sum(_drop(p, cut, last["episode"][-1]) for p in self.pieces)
        self.fresh = self.quota is not None
        self.faults.append(replace(fault, discarded=None if fault.discarded is None else fault.discarded + dropped))
        if self.in_vain >= FAULTS:
            raise FewbitError(
                f"worker {self.worker} {fault.reason}, {self.in_vain} times in a row; nothing can be collected with it"
            )


def _over(columns: Columns) -> np.ndarray:
    return (columns["terminated"] | columns["truncated"]) & columns["valid"]


def _drop(piece: Columns, cut: np.ndarray, episode: np.ndarray) -> int:
    """Transitions of these episodes are none, in the environments [envs] that were cut; how many."""
    rows = piece["valid"] & cut & (piece["episode"] == episode)
    piece["valid"] &= ~rows
    return int(rows.sum())
