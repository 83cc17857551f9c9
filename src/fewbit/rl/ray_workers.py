"""Workers as Ray actors, on one machine or a cluster: the same collectors, their experience through Ray's object store.

An actor that is gone, or has made no step for `patience` seconds, is replaced. What it had made of the order is lost with it,
and the batch says so (a Fault whose `discarded` is None: nobody can know).
"""

import time
from dataclasses import replace
from typing import Any

import numpy as np

from fewbit.errors import FewbitError, MissingExtra, first_line
from fewbit.rl.collector import Collector, Order, Spec
from fewbit.rl.experience import Columns, Fault
from fewbit.rl.processes import GRACE, LOOK, Piece
from fewbit.rl.worker import Update, apply

try:
    import ray
    from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError
except ImportError:
    raise MissingExtra("ray", "ray") from None


class Remote:
    """What runs in a Ray actor. `made` may be asked while `fill` runs."""

    def __init__(self, spec: Spec, steps: int, update: Update):
        self.steps, self.actor = steps, apply(update, None)
        self.collector, self.counts, self.columns = Collector(spec, self.actor), np.zeros(2, np.int64), {}  # type: ignore[var-annotated]

    def fill(self, order: Order, *updates: Update) -> tuple[Columns, bool]:
        for update in updates:
            self.actor = apply(update, self.actor)
            self.collector.load(self.actor)
        if not self.columns:
            layout, envs = self.collector.layout, self.collector.spec.envs
            self.columns = layout.columns(bytearray(layout.bytes(self.steps, envs)), self.steps, envs)
        done = self.collector.fill(self.columns, self.counts, order)
        return {k: v[: self.counts[1]] for k, v in self.columns.items()}, done

    def made(self) -> int:
        return int(self.counts[0])


class RayWorkers:
    """Workers by number; `fill` gives every order's piece, faults included."""

    def __init__(self, specs: list[Spec], steps: int, update: Update, patience: float):
        if not ray.is_initialized():
            ray.init(log_to_driver=False, include_dashboard=False)
        actor: Any = ray.remote  # its annotations know the options of functions only
        self.remote = actor(num_cpus=1, max_concurrency=2, scheduling_strategy="SPREAD")(Remote)
        self.specs, self.steps, self.patience, self.latest = list(specs), steps, patience, update
        self.workers = [self.remote.remote(s, steps, update) for s in specs]
        self.warm = [False] * len(specs)
        self.updates: list[list[Any]] = [[] for _ in specs]  # sent with the next order: calls of two threads keep no order

    def update(self, update: Update) -> None:
        held = self.latest
        self.latest = update if update[0] is not None else (held[0], *update[1:])
        sent = ray.put(update)
        for waiting in self.updates:
            waiting.append(sent)

    def fill(self, orders: dict[int, Order]) -> dict[int, Piece]:
        running = {self.workers[k].fill.remote(order, *self.updates[k]): k for k, order in orders.items()}
        for k in orders:
            self.updates[k] = []
        seen = {k: (0, time.monotonic()) for k in orders}
        pieces: dict[int, Piece] = {}
        while running:
            ready, _ = ray.wait(list(running), num_returns=1, timeout=LOOK)
            for ref in ready:
                k = running.pop(ref)
                pieces[k] = self._piece(k, ref)
            for ref, k in [] if ready else list(running.items()):
                seen[k] = self._progress(k, seen[k])
                if time.monotonic() - seen[k][1] > (self.patience if self.warm[k] else max(self.patience, GRACE)):
                    running.pop(ref)
                    pieces[k] = self._replaced(k, f"made no step for {self.patience:g} s")
        return pieces

    def _piece(self, k: int, ref: Any) -> Piece:
        try:
            columns, done = ray.get(ref)
        except RayTaskError as e:
            cause = e.cause if isinstance(e.cause, Exception) else e
            raise FewbitError(f"worker {k}: {first_line(cause)}") from None
        except RayActorError as e:
            return self._replaced(k, f"died ({first_line(e)})")
        self.warm[k] = True
        return Piece({name: np.array(v) for name, v in columns.items()}, done)

    def _progress(self, k: int, seen: tuple[int, float]) -> tuple[int, float]:
        try:
            made = ray.get(self.workers[k].made.remote(), timeout=LOOK)
        except (GetTimeoutError, RayActorError):
            return seen
        return (made, time.monotonic()) if made != seen[0] else seen

    def _replaced(self, k: int, reason: str) -> Piece:
        ray.kill(self.workers[k])
        seed = self.specs[k].seed
        self.specs[k] = replace(self.specs[k], seed=(*seed[:-1], seed[-1] + 1))
        self.workers[k] = self.remote.remote(self.specs[k], self.steps, self.latest)
        self.warm[k] = False
        return Piece({}, False, Fault(k, reason, None))

    def close(self) -> None:
        if ray.is_initialized():
            for worker in self.workers:
                ray.kill(worker)
