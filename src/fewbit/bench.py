"""Latency beside other runtimes: every runner in one process, in turns, medians; each is first checked for being right."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from fewbit.engine import native, reference
from fewbit.engine.description import describe
from fewbit.engine.load import load
from fewbit.engine.lower import lower
from fewbit.errors import FewbitError, Unsupported
from fewbit.graph.strip import strip
from fewbit.peers import PEERS, Given, Runner, Subject

ROUNDS, ROUND_SECONDS = 30, 0.004
ARTIFACT = ("fewbit", "artifact")  # how the labels of those that were given the artifact end
# Root mean square of the difference from what the runner was given, of the actions' range: beyond it, it runs something else.
WRONG = {"float32": 0.001, "eager": 0.001, "compile": 0.001, "artifact": 0.02, "fewbit": 0.0}  # by the label's end


@dataclass(frozen=True)
class Timing:
    """us: batch -> median microseconds of a call; error: RMS difference from the reference of the network that it was given, of
    the actions' range: whether it runs that network, not what quantization cost."""

    name: str
    us: dict[int, float]
    error: float
    right: bool


def bench(model: ir.Model, batches: list[int], against: list[str] | None = None, source: str | None = None) -> dict[str, Any]:
    """{"timings", "skipped": {peer: why}, "bare_us", "empty_call_us", "instruction_set", …} of an artifact.

    Where fewbit's engine lacks an operator it is among the skipped, and what is said of C++ alone is left out.
    """
    described = describe(model)
    program = described.program
    subject = _subject(model, max(batches), source)
    runners, skipped = _runners(subject, against or list(PEERS))
    wanted = {k: _actions(m, subject.feeds) for k, m in (("float", subject.floats), ("artifact", model))}
    whole = subject.first(max(batches))
    errors = {k: _error(r(whole), wanted["artifact" if k.endswith(ARTIFACT) else "float"]) for k, r in runners.items()}
    limits = WRONG if described.exact else WRONG | {"fewbit": WRONG["float32"]}  # of float sums the order is free
    us: dict[str, dict[int, float]] = {k: {} for k in runners}
    for n in batches:
        for name, value in medians(runners, subject.first(n)).items():
            us[name][n] = value
    found = {
        "timings": [Timing(k, us[k], errors[k], errors[k] <= limits.get(k.split()[-1], np.inf)) for k in runners],
        "skipped": skipped,
    }
    if program is None or described.reason:
        return found
    engine = native.load(program)
    return found | {
        "instruction_set": engine.instruction_set,
        "bare_us": {n: _bare_us(engine, subject.first(n), n) for n in batches},
        "empty_call_us": _empty_call_us(engine),
        "multiply_accumulates": sum(s.weight.size for s in program.steps if hasattr(s, "weight")),
    }


def _subject(model: ir.Model, rows: int, source: str | None) -> Subject:
    """Fed with normal noise, by name: what is remembered too."""
    rng, feeds = np.random.default_rng(0), {}
    for value in model.graph.inputs:
        shape = [d for d in (value.shape or [])[1:] if isinstance(d, int)]
        kind = np.dtype(np.float32) if value.dtype is None else value.dtype.numpy()
        feeds[value.name or ""] = rng.normal(0, 1, (rows, *shape)).astype(kind)
    return Subject(model, strip(model), feeds, source)


def _actions(model: ir.Model, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """The reference's, or ONNX Runtime's of what has no clause."""
    try:
        program = lower(model)
    except Unsupported:
        return load(model, "onnxruntime")(feeds)
    return reference.run(program, feeds)[program.outputs[0]]


def _error(got: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.sqrt(np.mean((got.reshape(wanted.shape) - wanted) ** 2.0)) / (np.ptp(wanted) or 1))


def _runners(subject: Subject, names: list[str]) -> tuple[dict[str, Runner], dict[str, str]]:
    runners: dict[str, Runner] = {}
    skipped: dict[str, str] = {}
    for name in dict.fromkeys(["fewbit", *names]):
        if name not in PEERS:
            raise FewbitError(f"--against {name} is unknown; choose from {', '.join(PEERS)}")
        try:
            runners |= PEERS[name](subject)
        except FewbitError as e:
            skipped[name] = str(e)
    return runners, skipped


def _bare_us(engine: Any, x: Given, rows: int) -> float:
    """Microseconds of one call without Python around it: as the runners' times, a median of turns."""
    return float(np.median([engine.nanoseconds(x, max(200 // rows, 5)) for _ in range(ROUNDS)])) / 1e3


def _empty_call_us(engine: Any, calls: int = 20000) -> float:
    """What any call from Python costs: of a built-in method that does nothing."""
    reset, best = engine.reset, float("inf")
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(calls):
            reset()
        best = min(best, (time.perf_counter() - start) / calls)
    return best * 1e6


def medians(runners: dict[str, Runner], x: Given) -> dict[str, float]:
    """Microseconds of one call of each: ROUNDS turns, each long enough to be timed, and their median."""
    calls = {}
    for name, run in runners.items():
        for _ in range(3):
            run(x)
        start = time.perf_counter()
        run(x)
        calls[name] = max(1, int(ROUND_SECONDS / max(time.perf_counter() - start, 1e-7)))
    times: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(ROUNDS):
        for name, run in runners.items():
            start = time.perf_counter()
            for _ in range(calls[name]):
                run(x)
            times[name].append((time.perf_counter() - start) / calls[name])
    return {name: float(np.median(t)) * 1e6 for name, t in times.items()}
