"""What one block of full size says of all of them: time left and peak memory."""

import ctypes
import resource
import sys
import time
from typing import Any


def peak_bytes() -> int:
    """The most memory this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def give_back() -> None:
    """Return freed memory to the system: glibc keeps it in pieces, which add up over blocks (2.7 GB where 1.2 were in use)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim:
        trim(0)


def now() -> dict[str, float]:
    return {"seconds": time.perf_counter(), "cpu_seconds": time.process_time()}


def since(began: dict[str, float]) -> dict[str, float]:
    return {k: v - began[k] for k, v in now().items()}


def forecast(block: dict[str, float], blocks_left: int) -> dict[str, Any]:
    """From what one block took; those after it are of the same size, and reuse its memory."""
    return {
        "block_seconds": block["seconds"],
        "seconds_left": block["seconds"] * blocks_left,
        "cpu_seconds_left": block["cpu_seconds"] * blocks_left,
        "peak_bytes": peak_bytes(),
        "began": now(),
    }


def clock(seconds: float) -> str:
    """ "12 min" or "90 s"."""
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"
