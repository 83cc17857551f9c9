"""`--method qat`: what distillation needs from an environment, or from observations alone, and the graph that comes of it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from fewbit import sources
from fewbit.engine.load import quickest
from fewbit.engine.policy import EPISODE
from fewbit.errors import FewbitError
from fewbit.graph.qdq import Scheme
from fewbit.observations import as_feeds

COLLECT_SEED, SELECT_SEED = 400_000, 500_000  # away from those of calibration, search and evaluation
COLLECT, SELECT, STATES = 5, 10, 5000  # episodes a round that are learned from, and that it is chosen by; most states a round
STRETCHES = 64  # of a network that remembers, in the place of 256 states
LOSSES = ("mse", "cross_entropy")
HELD_OUT = 10  # without an environment every tenth observation (or episode, of what remembers) chooses


@dataclass(frozen=True)
class Training:
    """Where the student acts (env None: it does not), how long it learns from what, and where it is kept meanwhile.

    loss: "mse" of what the network gives, or "cross_entropy" of its last layer against the float network's softmax.
    """

    env: str | None = None
    env_args: dict[str, Any] | None = None
    seed: int = 0
    steps: int = 30_000
    loss: str = "mse"
    checkpoint: Path | None = None
    progress: Callable[[str, int, int], None] = lambda what, done, of: None


def train(
    original: sources.Source, feeds: dict[str, np.ndarray], scheme: Scheme, how: Training
) -> tuple[ir.Model, dict[str, list[int]], dict[str, Any]]:
    """(the trained QDQ graph, exponents of what its columns were scaled by, record of the training). feeds: [n, ...]."""
    from fewbit.train import checkpoint, distill
    from fewbit.train.student import student, teacher

    if how.steps < 1:
        raise FewbitError(f"--train-steps {how.steps}: give at least 1")
    if how.loss not in LOSSES:
        raise FewbitError(f"loss {how.loss} is unknown; choose one of {', '.join(LOSSES)}")
    made = student(original.model, feeds, scheme)
    batch = {"batch": STRETCHES} if made.module.outside else {}
    plan = distill.Plan(how.steps, loss=how.loss, seed=how.seed, **batch)
    wanted = teacher(original.model)
    if how.env is None:
        rest = feeds.get(EPISODE, np.arange(len(next(iter(feeds.values()))))) % HELD_OUT != 0
        held = {k: v[~rest] if len(rest) > HELD_OUT else v for k, v in feeds.items()}
        task = distill.Task(wanted, lambda model: distill.agreement(made, wanted, held, plan))
        feeds = {k: v[rest] if rest.any() else v for k, v in feeds.items()}
    else:
        task = distill.Task(wanted, lambda model: _score(model, how), lambda model, k: _collect(model, how, k))
    belongs = [original.digest, repr(scheme), repr(plan), repr(replace(how, checkpoint=None, progress=print))]
    belongs.append(sources.digest(*(v.tobytes() for v in feeds.values())))
    resume, save = checkpoint.functions(how.checkpoint, " ".join(belongs))
    record = distill.fit(made, feeds, task, plan, how.progress, resume, save)
    return made.artifact(), made.moved, record


def _collect(model: ir.Model, how: Training, k: int) -> dict[str, np.ndarray]:
    """States that the student meets in round k, on seeds of that round."""
    from fewbit.rl import returns

    assert how.env is not None
    policy, first = quickest(model), COLLECT_SEED + how.seed + COLLECT * k
    seeds = range(first, first + COLLECT)
    return as_feeds(policy, returns.episodes(policy, how.env, seeds, how.env_args, STATES, policy.inputs)[1], how.env)


def _score(model: ir.Model, how: Training) -> float:
    """The student's mean return, always on the same seeds."""
    from fewbit.rl import returns

    assert how.env is not None
    policy, first = quickest(model), SELECT_SEED + how.seed
    return float(returns.episodes(policy, how.env, range(first, first + SELECT), how.env_args, 0, policy.inputs)[0].mean())
