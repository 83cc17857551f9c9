"""The process of one worker: takes orders from a pipe, puts experience into shared memory, ends when whoever started it does."""

import mmap
import os
import signal
import sys
import threading
from multiprocessing.connection import Connection
from typing import Any

from fewbit.errors import FewbitError
from fewbit.rl import actor as actors
from fewbit.rl.actor import Actor
from fewbit.rl.collector import Collector, Order, Spec
from fewbit.rl.experience import counters
from fewbit.rl.explore import Exploration

Update = tuple[bytes | None, Any, Exploration]  # (a new graph's file, codes in it, how it explores)


def apply(update: Update, held: Actor | None) -> Actor:
    """The actor that an update makes of the one held."""
    artifact, codes, exploration = update
    base = actors.read(artifact).base if artifact is not None else held.base if held is not None else None
    assert base is not None
    return Actor(base, exploration, codes)


def main(pipe: int, memory: int, lifeline: int) -> None:
    """Three file descriptors: orders and answers, the segment, and a pipe whose other end closes when the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_watch, args=(lifeline,), daemon=True).start()
    connection = Connection(pipe)
    try:
        _serve(connection, memory)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass
    except FewbitError as e:
        connection.send(("error", str(e)))
    except BaseException as e:
        connection.send(("error", f"the environment failed with {type(e).__name__}: {str(e).strip()[:300]}"))


def _serve(connection: Connection, memory: int) -> None:
    spec: Spec
    spec, steps, update = connection.recv()
    actor = apply(update, None)
    collector = Collector(spec, actor)
    connection.send(("layout", collector.layout))
    buffer = None
    while True:
        message = connection.recv()
        if isinstance(message, tuple):
            actor = apply(message, actor)
            collector.load(actor)
            continue
        assert isinstance(message, Order)
        if buffer is None:
            buffer = mmap.mmap(memory, collector.layout.bytes(steps, spec.envs))
            columns, counts = collector.layout.columns(buffer, steps, spec.envs), counters(buffer)
        connection.send(("filled", collector.fill(columns, counts, message)))


def _watch(lifeline: int) -> None:
    os.read(lifeline, 1)
    os._exit(1)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
