"""Distillation without rewards: the student acts, the float network says what it would have done there, the student learns that.

DAgger (Ross et al. 2011): the states come from the student itself, more of them each round, because those are the states that it
will meet; what the float policy met is where it starts. The loss is the squared error of what the network gives, plus a little of
what its last layer makes before the squashing, which has a gradient where the action is saturated too.

Everything is a function of the seed and of the number of steps: a run that was killed goes on from its checkpoint to the same
result.
"""

import math
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from fewbit.train.qat import Codes
from fewbit.train.student import RAW, Student

Feeds = dict[str, np.ndarray]
Rows = dict[str, torch.Tensor]
MOST_BYTES = 128 << 20  # of states kept; the oldest go first
NOTHING = {"step": 0, "seconds": 0.0, "cpu_seconds": 0.0, "best": None}
WIDER = 0.15  # of the training with each width before the last
EVERY = 100  # steps between reports of progress


@dataclass(frozen=True)
class Plan:
    """steps of Adam on `batch` states each; new states after each of `rounds` equal parts; rate falls to 0 along a cosine."""

    steps: int = 30_000
    batch: int = 256  # or as many stretches of a network that remembers (train/unroll)
    length: int = 16  # steps of a stretch
    rounds: int = 20
    rate: float = 0.005  # in steps of the quantized weights
    scale_rate: float = 1.0  # of the rate, for the logarithms of the scales
    raw: float = 0.1  # the share of the last layer's own error
    memory: float = 0.1  # the share of the error in what is remembered
    loss: str = "mse"  # or "cross_entropy": of what the last layer makes, against the float network's
    seed: int = 0


@dataclass(frozen=True)
class Task:
    """teacher(feeds) -> what is wanted, [n, ...] by name; score(model): larger is better; collect(model, round) -> more feeds."""

    teacher: Callable[[Feeds], Feeds]
    score: Callable[[ir.Model], float]
    collect: Callable[[ir.Model, int], Feeds] | None = None


@dataclass(frozen=True)
class Run:
    """What changes while it trains. rows: of what enters the trained part ("x."), of what is wanted ("y."); done: counts."""

    student: Student
    adam: torch.optim.Adam
    generator: torch.Generator
    rows: Rows
    done: dict[str, Any] = field(default_factory=lambda: NOTHING | {"rounds": []})
    kept: dict[str, torch.Tensor] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)


def fit(
    student: Student,
    first: Feeds,
    task: Task,
    plan: Plan,
    progress: Callable[[str, int, int], None] = lambda what, done, of: None,
    resume: Callable[[Run], None] = lambda run: None,
    save: Callable[[Run], None] = lambda run: None,
) -> dict[str, Any]:
    """Train the student in place, from the states `first` on, and leave it at its best round; {"step", "seconds", "cpu_seconds",
    "best", "states", "rounds": [step, score or None] each}. resume and save: see train/checkpoint."""
    with one_thread():
        run = begin(student, first, task, plan)
        resume(run)
        while run.done["step"] < plan.steps:
            _round(run, task, plan, progress)
            save(run)
        student.module.load_state_dict(run.kept)
    return run.done | {"states": _count(run.rows)}


def begin(student: Student, first: Feeds, task: Task, plan: Plan) -> Run:
    named = list(student.module.named_parameters())
    scales = [p for n, p in named if n.endswith("log_scale")]
    others = [p for n, p in named if not n.endswith("log_scale")]
    groups = [{"params": others, "share": 1.0}, {"params": scales, "share": plan.scale_rate}]
    adam = torch.optim.Adam(groups, lr=plan.rate, fused=True)
    run = Run(student, adam, torch.Generator().manual_seed(plan.seed), {})
    _add(run, task, first)
    shares = {f"y.{s.output}": plan.memory for s in student.module.outside} | {f"y.{RAW}": plan.raw}
    for name, value in run.rows.items():
        if name.startswith("y.") and shares.get(name, 1.0):
            run.weights[name] = shares.get(name, 1.0) / max(float(value.double().var(0).mean()), 1e-12)
    return run


def _round(run: Run, task: Task, plan: Plan, progress: Callable[[str, int, int], None]) -> None:
    """One round of steps; then the student is measured, kept if it is the best so far, and acts."""
    start, cpu, step = time.perf_counter(), time.process_time(), run.done["step"]
    run.student.module.refresh(run.rows)
    until = min(step + -(-plan.steps // plan.rounds), plan.steps)
    for k in range(step, until):
        _step(run, plan, k)
        if (k + 1) % EVERY == 0:
            progress("training", k + 1, plan.steps)
    run.done["step"] = until
    model = run.student.artifact()
    final = not run.student.module.narrow() or _extra_bits(run.done["step"] - 1, plan.steps) == 0
    score = task.score(model) if final else None
    if score is not None and (run.done["best"] is None or score >= run.done["best"]):
        run.done["best"] = score
        run.kept.update({k: v.clone() for k, v in run.student.module.state_dict().items()})
    run.done["rounds"].append([run.done["step"], score])
    if task.collect is not None and run.done["step"] < plan.steps:
        _add(run, task, task.collect(model, len(run.done["rounds"])))
    run.done["seconds"] += time.perf_counter() - start
    run.done["cpu_seconds"] += time.process_time() - cpu


def _extra_bits(k: int, steps: int) -> int:
    """Few bits are come to by steps: two more at first, then one."""
    return max(2 - int(k / (WIDER * steps)), 0)


def _step(run: Run, plan: Plan, k: int) -> None:
    extra = _extra_bits(k, plan.steps)
    if k == 0 or extra != _extra_bits(k - 1, plan.steps):
        for layer in run.student.module.narrow():
            layer.widen(extra)
    rate = plan.rate * (1 + math.cos(math.pi * k / plan.steps)) / 2
    for group in run.adam.param_groups:
        group["lr"] = rate * group["share"]
    index = run.student.module.draw(run.rows, plan.batch, plan.length, run.generator)
    rows = {name: value[index] for name, value in run.rows.items()}
    loss = loss_of(run.student, rows, run.weights, plan.loss)
    run.adam.zero_grad()
    loss.backward()
    run.adam.step()


def loss_of(student: Student, rows: Rows, weights: dict[str, float], kind: str) -> torch.Tensor:
    """Of rows "x.…" and "y.…"; a squared error is divided by the variance of what is wanted."""
    made = student.module.run({k[2:]: v for k, v in rows.items() if k.startswith("x.")})
    if kind == "cross_entropy":
        raw = _floats(made[student.raw]).flatten(1)
        return torch.nn.functional.cross_entropy(raw, rows[f"y.{RAW}"].reshape(raw.shape).softmax(1))
    total = torch.zeros(())
    for name, weight in weights.items():
        got = _floats(made[student.raw if name == f"y.{RAW}" else name[2:]])
        total = total + weight * ((got - rows[name].reshape(got.shape)) ** 2).mean()
    return total


def _floats(value: Any) -> torch.Tensor:
    return value.floats() if isinstance(value, Codes) else value


def _add(run: Run, task: Task, feeds: Feeds) -> None:
    """More states, as codes of the entry, and what is wanted in them."""
    new = rows_of(run.student, task.teacher, feeds)
    for name, value in new.items():
        run.rows[name] = torch.cat([run.rows[name], value]) if name in run.rows else value
    size = sum(v[:1].numel() * v.element_size() for v in run.rows.values())
    for name, value in run.rows.items():
        run.rows[name] = value[-max(MOST_BYTES // max(size, 1), 1) :]


def rows_of(student: Student, teacher: Callable[[Feeds], Feeds], feeds: Feeds) -> Rows:
    """What enters the trained part ("x.…") and what is wanted ("y.…") of feeds [n, ...]."""
    entered, wanted = student.module.enter(feeds), teacher(feeds)
    both = {f"x.{k}": v for k, v in entered.items()} | {f"y.{k}": v for k, v in wanted.items()}
    return {k: torch.from_numpy(np.array(v)) for k, v in both.items()}


def agreement(student: Student, teacher: Callable[[Feeds], Feeds], held: Feeds, plan: Plan) -> float:
    """Less the loss on feeds that are not learned from: what chooses where there is no environment."""
    rows = rows_of(student, teacher, held)
    remembered = {f"y.{s.output}" for s in student.module.outside}
    weights = {k: 1 / max(float(v.double().var()), 1e-12) for k, v in rows.items() if k.startswith("y.") and k not in remembered}
    index = student.module.all(rows)
    rows = {k: v[index] for k, v in rows.items()}
    with torch.no_grad():
        return -float(loss_of(student, rows, weights, plan.loss))


def _count(rows: Rows) -> int:
    return len(next(iter(rows.values())))


@contextmanager
def one_thread() -> Any:
    """Small matrices gain nothing from more, and one thread gives the same sums everywhere."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
