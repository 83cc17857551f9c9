"""Run two policies in an environment and write down what the quantized one kept, how alike they act, and at what size."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from fewbit.engine.description import describe
from fewbit.engine.load import load as load_policy
from fewbit.engine.load import quickest
from fewbit.engine.policy import Policy
from fewbit.errors import FewbitError
from fewbit.fidelity import action_error, acts_alike
from fewbit.rl import evidence, returns
from fewbit.rl.endings import Endings

PILOT, RANDOM_EPISODES, STATES = 20, 20, 100_000
STATES_BYTES = 256 << 20  # of images, fewer states are kept
RANDOM_SEED = 200_000  # away from the evaluation's own seeds

Progress = Callable[[str, int, int], None]  # (what, done, of)


class Baseline:
    """The float policy's side of a comparison, in one environment on one row of seeds; each episode is run once."""

    def __init__(self, original: ir.Model, env: str, env_args: dict[str, Any] | None, seed: int):
        self.original, self.env, self.env_args, self.seed = original, env, env_args, seed
        self.policy = load_policy(original, "onnxruntime")
        self._returns, self._random = np.zeros(0), np.zeros(0)
        self.endings, self.random_endings = Endings(), Endings()
        self._states: list[Any] = []
        self._floor: dict[str, float] | None = None

    def returns(self, n: int, progress: Progress) -> np.ndarray:
        """[n] of the first n seeds."""
        have = len(self._returns)
        if have < n:
            seeds = [self.seed + k for k in range(have, n)]
            step = stepper(progress, "float", have, n)
            kept = self._room()
            more, states = returns.episodes(
                self.policy, self.env, seeds, self.env_args, kept, self.policy.inputs, step, self.endings.following(have)
            )
            self._returns, self._states = np.append(self._returns, more), [*self._states, states]
        return self._returns[:n]

    def _room(self) -> int:
        """How many observations an evaluation keeps."""
        each = sum(int(np.prod(shape)) for shape in self.policy.inputs.values())
        return min(STATES, max(1, STATES_BYTES // max(1, each)))

    @property
    def random(self) -> np.ndarray:
        """Returns of uniformly random actions [RANDOM_EPISODES]."""
        if not len(self._random):
            seeds = [RANDOM_SEED + self.seed + k for k in range(RANDOM_EPISODES)]
            ended = self.random_endings.following(0)
            self._random = returns.random_returns(self.env, seeds, self.env_args, ended, self.policy.inputs)
        return self._random

    @property
    def states(self) -> Any:
        """Up to so many observations that the float policy met."""
        states = returns.concatenate(self._states)
        return {k: v[: self._room()] for k, v in states.items()} if isinstance(states, dict) else states[: self._room()]

    def fidelity(self, quantized: Policy) -> dict[str, Any]:
        """Action fidelity on the float policy's own states, beside the noise floor: its weights perturbed by 2^-12."""
        states = self.states
        actions = batched(self.policy, states)
        space = returns.action_space(self.env, self.env_args)
        measured = _action_error(actions, batched(quantized, states), space)
        if self._floor is None:
            noisy = load_policy(_perturbed(self.original), "onnxruntime")
            self._floor = _action_error(actions, batched(noisy, states), space)
        return measured | {
            "fidelity_states": len(actions),
            "fidelity_met": acts_alike(measured),
            "fidelity_noise_floor": next(iter(self._floor.values())),
        }


def _action_error(want: np.ndarray, got: np.ndarray, space: Any) -> dict[str, float]:
    """Of actions [n, ...] as the environment takes them: discrete ones compared as whole numbers, others within its range."""
    if not hasattr(space, "low"):
        n = len(want)
        return action_error(want.reshape(n, -1).astype(np.int64), got.reshape(n, -1).astype(np.int64))
    shape = (len(want), *space.shape)
    return action_error(want.reshape(shape), got.reshape(shape), space.low, space.high)


def measure(
    model: ir.Model,
    baseline: Baseline,
    keep: float,
    episodes: int,
    stop_early: bool,
    progress: Progress,
    quick: bool = False,
    load: Callable[[ir.Model], Policy] = quickest,
) -> dict[str, Any]:
    """The record of a model against its baseline: `episodes` of them, or (stop_early) as many as the verdict needs up to that.

    quick leaves out latency and size, which a search does not decide by. load: the runtime that it is measured in.
    """
    check(episodes, keep)
    quantized, endings = load(model), Endings()
    q, f, found = compare(quantized, baseline, keep, episodes, stop_early, progress, endings)
    record = {
        "return_float": summary(f),
        "return_random": summary(baseline.random),
        "returns_float": [float(f"{v:.7g}") for v in f],
        "returns_quantized": [float(f"{v:.7g}") for v in q],
        "kept": found.kept,
        "keep": keep,
        "kept_ci95": [found.low, found.high],
        "verdict": found.verdict,
        "rare_failure_share": None if found.kept is None else found.unseen,
        "rare_failure_cost": None if found.kept is None else found.unseen * found.failure,
        "size_float_bytes": len(ir.to_proto(baseline.original).SerializeToString()),
        "latency_float_us": 0.0 if quick else median_us(baseline.policy, baseline.policy.inputs),
        "latency_float_executor": baseline.policy.executor,
    }
    record |= _endings(endings, baseline, len(q)) | baseline.fidelity(quantized)
    return alone(model, quantized, baseline.env, q, baseline.seed, quick) | record


def _endings(quantized: Endings, baseline: Baseline, n: int) -> dict[str, Any]:
    """Episodes that terminated, where any did, and that succeeded, where the environment says so: counts with their intervals."""
    terminated = {
        "terminated_float": baseline.endings.terminated(n),
        "terminated_quantized": quantized.terminated(n),
        "terminated_random": baseline.random_endings.terminated(RANDOM_EPISODES),
    }
    succeeded = {"success_float": baseline.endings.succeeded(n), "success_quantized": quantized.succeeded(n)}
    seen = any(t["count"] for t in terminated.values())
    return (terminated if seen else {}) | ({} if None in succeeded.values() else succeeded)


def compare(
    policy: Policy,
    baseline: Baseline,
    keep: float,
    episodes: int,
    stop_early: bool,
    progress: Progress,
    endings: Endings | None = None,
) -> tuple[np.ndarray, np.ndarray, evidence.Kept]:
    """(returns of policy, returns of float on the same seeds, what was kept) by the rules of "Evidence"; endings: of policy."""
    endings = endings or Endings()
    q, target = np.zeros(0), min(PILOT if stop_early else episodes, episodes)
    while True:
        step = stepper(progress, "quantized", len(q), target)
        seeds = [baseline.seed + k for k in range(len(q), target)]
        ended = endings.following(len(q))
        q = np.append(q, returns.episodes(policy, baseline.env, seeds, baseline.env_args, 0, policy.inputs, step, ended)[0])
        f = baseline.returns(target, progress)
        found = evidence.judge(f, q, baseline.random, keep, baseline.seed)
        if not stop_early or found.verdict != "undecided" or target >= episodes:
            return q, f, found
        target = min(episodes, max(target + 1, evidence.episodes_needed(found, target, keep)))


def alone(model: ir.Model, policy: Policy, env: str, q: np.ndarray, seed: int, quick: bool = False) -> dict[str, Any]:
    """What is known of a policy without its original."""
    described = describe(model)
    return {
        "env": env,
        "return_quantized": summary(q),
        "packed_bytes": described.packed_bytes,
        "exact": described.exact,
        "latency_us": 0.0 if quick else latency(model, policy),
        "latency_executor": policy.executor,
        "versions": _versions(),
        "seeds": [seed, seed + len(q) - 1],
    }


def without_original(
    model: ir.Model,
    env: str,
    env_args: dict[str, Any] | None,
    episodes: int,
    seed: int,
    progress: Progress,
    load: Callable[[ir.Model], Policy] = quickest,
) -> dict[str, Any]:
    """Exactly `episodes` episodes of one policy."""
    check(episodes, 1.0, seed)
    policy, step, endings = load(model), stepper(progress, "policy", 0, episodes), Endings()
    seeds = [seed + k for k in range(episodes)]
    q = returns.episodes(policy, env, seeds, env_args, 0, policy.inputs, step, endings.following(0))[0]
    found = {"terminated_quantized": endings.terminated(episodes)}
    succeeded = endings.succeeded(episodes)
    return alone(model, policy, env, q, seed) | found | ({"success_quantized": succeeded} if succeeded else {})


def check(episodes: int, keep: float, seed: int = 0) -> None:
    if episodes < 2:
        raise FewbitError(f"--episodes {episodes}: an interval needs at least 2")
    if not 0 < keep <= 1:
        raise FewbitError(f"--keep {keep}: give a share above 0 and up to 1")
    if seed < 0:
        raise FewbitError(f"--seed {seed}: give a whole number of at least 0")


def stepper(progress: Progress, what: str, start: int, of: int) -> Callable[[int], None]:
    done = [start]

    def advance(n: int) -> None:
        done[0] += n
        progress(what, done[0], of)

    return advance


def _perturbed(original: ir.Model) -> ir.Model:
    noisy, rng = original.clone(), np.random.default_rng(0)
    for value in noisy.graph.initializers.values():
        array = value.const_value.numpy() if value.const_value is not None else None
        if array is not None and array.dtype == np.float32 and array.ndim == 2:
            shaken = (array * (1 + 2.0**-12 * rng.standard_normal(array.shape))).astype(np.float32)
            value.const_value = ir.tensor(shaken, name=value.name)
    return noisy


def batched(policy: Policy, states: Any, size: int = 4096) -> np.ndarray:
    """Actions [n, ...] of states [n, ...] or a dict of them."""
    feeds = states if isinstance(states, dict) else {next(iter(policy.inputs)): states}
    count = len(next(iter(feeds.values())))
    return np.concatenate([policy({k: v[i : i + size] for k, v in feeds.items()}) for i in range(0, count, size)])


def summary(values: np.ndarray) -> dict[str, float]:
    n = len(values)
    return {"mean": float(values.mean()), "se": float(values.std(ddof=1) / np.sqrt(n)) if n > 1 else 0.0, "n": n}


def latency(model: ir.Model, policy: Policy) -> float:
    """Median microseconds of one action; of the native engine as a robot's loop calls it."""
    called: Any = load_policy(model) if policy.executor.startswith("native") else policy
    return median_us(called, policy.inputs, {v.name or "": v.dtype.numpy() for v in model.graph.inputs if v.dtype is not None})


def median_us(
    policy: Callable[[Any], Any], inputs: dict[str, tuple[int, ...]], kinds: dict[str, np.dtype] | None = None, calls: int = 300
) -> float:
    """Median microseconds of one call, batch 1; kinds: of inputs that are not float32."""
    feeds = {k: np.zeros((1, *shape), (kinds or {}).get(k, np.float32)) for k, shape in inputs.items()}
    observation = feeds if len(feeds) > 1 else next(iter(feeds.values()))
    times = []
    for _ in range(calls):
        start = time.perf_counter_ns()
        policy(observation)
        times.append(time.perf_counter_ns() - start)
    return float(np.median(times) / 1000)


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in ("gymnasium", "mujoco", "box2d", "numpy", "onnxruntime"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
