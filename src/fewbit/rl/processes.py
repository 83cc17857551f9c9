"""Worker processes on this machine: started, given orders, watched, and replaced when they die or hang.

Experience lies in memory without a name, shared by its file descriptor: when the last process is gone, so is it. A worker that is
no longer alive, or has made no step for `patience` seconds, is killed; what it had committed is kept, and it is replaced.
"""

import contextlib
import mmap
import os
import pickle
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait

from fewbit.errors import FewbitError
from fewbit.rl.collector import Order, Spec
from fewbit.rl.experience import Columns, Fault, Layout, counters
from fewbit.rl.worker import Update

GRACE = 120.0  # seconds until a worker has imported its packages and made its environments
LOOK = 0.5  # seconds between two looks at whether workers go on


@dataclass(frozen=True)
class Piece:
    """What came of an order: rows of columns (copies), whether all that was ordered is done, and what went wrong."""

    columns: Columns
    done: bool
    fault: Fault | None = None


class Process:
    """One worker's process. Not to be used after `kill`."""

    def __init__(self, spec: Spec, steps: int, update: Update):
        self.spec, self.steps = spec, steps
        try:
            first = pickle.dumps((spec, steps, update))
        except Exception as e:
            raise FewbitError(f"env_args cannot be sent to a worker ({e}); give values that can be pickled") from None
        ours, theirs = socket.socketpair()
        waiting, self.lifeline = os.pipe()
        self.memory = _memory()
        self.connection = Connection(ours.detach())
        handed = [theirs.fileno(), self.memory, waiting]
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "fewbit.rl.worker", *map(str, handed)],
                pass_fds=handed,
                stdin=subprocess.DEVNULL,
                stdout=2,  # what environments print is no output of ours
                start_new_session=True,  # Ctrl-C is for who started it
                env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)},
            )
        finally:
            theirs.close()
            os.close(waiting)
        self.buffer: mmap.mmap | None = None
        self.made, self.since, self.limit = 0, time.monotonic(), GRACE
        self.order: Order | None = None
        try:
            self._send(first)
        except BaseException:  # Ctrl-C while it waits for room in the pipe
            self.kill()
            raise

    def _send(self, message: bytes) -> None:
        with contextlib.suppress(OSError):  # it is gone, which whoever waits for its answer will find
            self.connection.send_bytes(message)

    def update(self, update: Update) -> None:
        self._send(pickle.dumps(update))

    def begin(self, order: Order, patience: float) -> None:
        self.order, self.made, self.since = order, 0, time.monotonic()
        self.limit = patience if self.buffer is not None else max(patience, GRACE)
        if self.buffer is not None:
            counters(self.buffer)[:] = 0
            self._send(pickle.dumps(order))

    def answer(self, patience: float) -> Piece | None:
        """What came through the pipe: the piece of the order, or None while there is none. EOFError where it died."""
        kind, content = self.connection.recv()
        if kind == "error":
            raise FewbitError(f"worker {self.spec.seed[1]}: {content}")
        assert self.order is not None
        if kind == "layout":
            self.layout: Layout = content
            size = self.layout.bytes(self.steps, self.spec.envs)
            os.ftruncate(self.memory, size)
            self.buffer = mmap.mmap(self.memory, size)
            self.begin(self.order, patience)
            return None
        self.order = None
        return Piece(self._committed(), bool(content))

    def stuck(self) -> bool:
        """Has it made no step for too long?"""
        made = 0 if self.buffer is None else int(counters(self.buffer)[0])
        if made != self.made:
            self.made, self.since = made, time.monotonic()
        return time.monotonic() - self.since > self.limit

    def salvage(self, worker: int, reason: str) -> Piece:
        """Of a process that is no more: what it had committed."""
        if self.buffer is None:
            return Piece({}, False, Fault(worker, reason, 0))
        made, committed = (int(c) for c in counters(self.buffer))
        return Piece(self._committed(), False, Fault(worker, reason, (made - committed) * self.spec.envs))

    def _committed(self) -> Columns:
        assert self.buffer is not None
        rows = int(counters(self.buffer)[1])
        return {k: v[:rows].copy() for k, v in self.layout.columns(self.buffer, self.steps, self.spec.envs).items()}

    def kill(self) -> int | None:
        """The end of it, whatever it is doing; its exit status."""
        self.process.kill()
        status = self.process.wait()
        if not self.connection.closed:
            self.connection.close()
            os.close(self.lifeline)
            os.close(self.memory)
        return status


def _memory() -> int:
    """A file descriptor of memory that no name leads to."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("fewbit")
    with tempfile.TemporaryFile() as f:
        return os.dup(f.fileno())


class Processes:
    """Workers by number; `fill` gives every order's piece, faults included."""

    def __init__(self, specs: list[Spec], steps: int, update: Update, patience: float):
        self.steps, self.patience, self.latest = steps, patience, update
        self.workers: list[Process] = []
        try:
            for spec in specs:
                self.workers.append(Process(spec, steps, update))
        except BaseException:
            self.close()
            raise

    def update(self, update: Update) -> None:
        held = self.latest
        self.latest = update if update[0] is not None else (held[0], *update[1:])
        for worker in self.workers:
            worker.update(update)

    def fill(self, orders: dict[int, Order]) -> dict[int, Piece]:
        for k, order in orders.items():
            self.workers[k].begin(order, self.patience)
        pieces: dict[int, Piece] = {}
        while len(pieces) < len(orders):
            waiting = [k for k in orders if k not in pieces]
            ready = wait([self.workers[k].connection for k in waiting], LOOK)
            for k in waiting:
                piece = self._look(k, self.workers[k].connection in ready)
                if piece is not None:
                    pieces[k] = piece
        return pieces

    def _look(self, k: int, ready: bool) -> Piece | None:
        worker = self.workers[k]
        try:
            if ready:
                return worker.answer(self.patience)
        except (EOFError, OSError):
            status = worker.kill()
            return self._replaced(k, f"died ({f'signal {-status}' if status and status < 0 else f'exit status {status}'})")
        if worker.stuck():
            worker.kill()
            return self._replaced(k, f"made no step for {worker.limit:g} s")
        return None

    def _replaced(self, k: int, reason: str) -> Piece:
        old = self.workers[k]
        piece = old.salvage(k, reason)
        spec = replace(old.spec, seed=(*old.spec.seed[:-1], old.spec.seed[-1] + 1))
        self.workers[k] = Process(spec, self.steps, self.latest)
        return piece

    def close(self) -> None:
        for worker in self.workers:
            worker.kill()
