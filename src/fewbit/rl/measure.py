"""Run two policies in an environment and write down what the quantized one kept, how alike they act, and at what size."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from fewbit.engine.load import Policy
from fewbit.engine.load import load as load_policy
from fewbit.engine.lower import lower
from fewbit.engine.program import Float, Linear, Lookup, Program, Table
from fewbit.errors import FewbitError
from fewbit.rl import evidence, returns

PILOT, RANDOM_EPISODES, STATES = 20, 20, 100_000
RANDOM_SEED = 200_000  # away from the evaluation's own seeds

Progress = Callable[[str, int, int], None]  # (what, done, of)


def measure(
    model: ir.Model,
    original: ir.Model | None,
    env: str,
    env_args: dict[str, Any] | None,
    keep: float,
    episodes: int,
    seed: int,
    stop_early: bool,
    progress: Progress,
) -> dict[str, Any]:
    """Episodes in rounds (a pilot of 20, then as many as the verdict needs) up to the cap; fidelity, size and latency."""
    if episodes < 2:
        raise FewbitError(f"--episodes {episodes}: an interval needs at least 2")
    if not 0 < keep <= 1:
        raise FewbitError(f"--keep {keep}: give a share between 0 and 1")
    program = lower(model)
    quantized, floating = load_policy(model), load_policy(original, "onnxruntime") if original is not None else None
    q, f = np.zeros(0), np.zeros(0)
    seen: list[Any] = []
    random = np.zeros(0)
    target, found = min(PILOT if stop_early else episodes, episodes), None
    while len(q) < target:
        seeds = [seed + k for k in range(len(q), target)]
        step = _stepper(progress, "quantized", len(q), target)
        q = np.append(q, returns.episodes(quantized, env, seeds, env_args, 0, quantized.inputs, step)[0])
        if floating is None:
            break
        step = _stepper(progress, "float", len(f), target)
        more, states = returns.episodes(floating, env, seeds, env_args, STATES, floating.inputs, step)
        f, seen = np.append(f, more), [*seen, states]
        if not len(random):
            random = returns.random_returns(env, [RANDOM_SEED + seed + k for k in range(RANDOM_EPISODES)], env_args)
        found = evidence.judge(f, q, random, keep, seed)
        if stop_early and found.verdict == "undecided":
            target = min(episodes, max(len(q) + 1, evidence.episodes_needed(found, len(q), keep)))
    record: dict[str, Any] = {
        "env": env,
        "return_quantized": _summary(q),
        "packed_bytes": packed_bytes(program),
        "exact": program.exact,
        "latency_us": _latency(load_policy(model, "onnxruntime")),
        "latency_executor": "onnxruntime",
        "versions": _versions(),
        "seeds": [seed, seed + len(q) - 1],
    }
    if floating is not None and found is not None and original is not None:
        record |= {
            "return_float": _summary(f),
            "return_random": _summary(random),
            "kept": found.kept,
            "keep": keep,
            "kept_ci95": [found.low, found.high],
            "verdict": found.verdict,
            "latency_float_us": _latency(floating),
            "size_float_bytes": len(ir.to_proto(original).SerializeToString()),
        }
        record |= _fidelity(quantized, floating, original, returns.concatenate(seen), env, env_args)
    return record


def _stepper(progress: Progress, what: str, start: int, of: int) -> Callable[[int], None]:
    done = [start]

    def advance(n: int) -> None:
        done[0] += n
        progress(what, done[0], of)

    return advance


def _fidelity(
    quantized: Policy, floating: Policy, original: ir.Model, states: Any, env: str, env_args: dict[str, Any] | None
) -> dict[str, Any]:
    """Action fidelity on the float policy's own states, beside the noise floor: its weights perturbed by 2^-12."""
    cut = {k: v[:STATES] for k, v in states.items()} if isinstance(states, dict) else states[:STATES]
    noisy = original.clone()
    rng = np.random.default_rng(0)
    for value in noisy.graph.initializers.values():
        array = value.const_value.numpy() if value.const_value is not None else None
        if array is not None and array.dtype == np.float32 and array.ndim == 2:
            value.const_value = ir.tensor(
                (array * (1 + 2.0**-12 * rng.standard_normal(array.shape))).astype(np.float32), name=value.name
            )
    actions = _batched(floating, cut)
    width = returns.action_width(env, env_args, actions)
    measured = evidence.fidelity(actions, _batched(quantized, cut), width)
    floor = evidence.fidelity(actions, _batched(load_policy(noisy, "onnxruntime"), cut), width)
    return measured | {
        "fidelity_states": len(actions),
        "fidelity_met": evidence.faithful(measured),
        "fidelity_noise_floor": next(iter(floor.values())),
    }


def _batched(policy: Policy, states: Any, size: int = 4096) -> np.ndarray:
    feeds = states if isinstance(states, dict) else {next(iter(policy.inputs)): states}
    count = len(next(iter(feeds.values())))
    return np.concatenate([policy({k: v[i : i + size] for k, v in feeds.items()}) for i in range(0, count, size)])


def _summary(returns: np.ndarray) -> dict[str, float]:
    n = len(returns)
    return {"mean": float(returns.mean()), "se": float(returns.std(ddof=1) / np.sqrt(n)) if n > 1 else 0.0, "n": n}


def _latency(policy: Policy, calls: int = 300) -> float:
    """Median microseconds of one action, batch 1."""
    feeds = {k: np.zeros((1, *shape), np.float32) for k, shape in policy.inputs.items()}
    times = []
    for _ in range(calls):
        start = time.perf_counter_ns()
        policy(feeds)
        times.append(time.perf_counter_ns() - start)
    return float(np.median(times) / 1000)


def packed_bytes(program: Program) -> int:
    """Bytes of weights, biases and tables as integers, without the file around them."""
    total = 0
    for step in program.steps:
        match step:
            case Linear():
                total += step.weight.nbytes + step.bias.nbytes
            case Table():
                total += step.segments.c.nbytes
            case Lookup():
                total += step.table.nbytes
            case Float():
                total += sum(i.nbytes for i in step.inputs if isinstance(i, np.ndarray))
    return total


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in ("gymnasium", "mujoco", "box2d", "numpy", "onnxruntime"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
