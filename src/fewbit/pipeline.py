"""From source to artifact, and from artifact to evidence: what the command line and `import fewbit` both call."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from fewbit import sources
from fewbit.engine.load import Policy
from fewbit.engine.load import load as load_policy
from fewbit.engine.lower import lower
from fewbit.errors import FewbitError
from fewbit.graph import calibrate, metadata, qdq
from fewbit.graph.read import read
from fewbit.numerics.affine import check_finite
from fewbit.numerics.formats import INTEGERS
from fewbit.rl import evidence

PILOT, RANDOM_EPISODES, CALIBRATION_EPISODES, CALIBRATION_STEPS, STATES = 20, 20, 5, 5000, 100_000
CALIBRATION_SEED, RANDOM_SEED = 100_000, 200_000  # away from the evaluation's own seeds

Progress = Callable[[str, int, int], None]  # (what, done, of)


def _silent(what: str, done: int, of: int) -> None:
    pass


@dataclass(frozen=True)
class Artifact:
    """A quantized graph and its record (source, scheme, recipe, contract, evidence)."""

    model: ir.Model
    record: dict[str, Any]

    def save(self, path: str | Path) -> None:
        """Write beside, then rename: a reader never meets half a file."""
        path = Path(path)
        if not path.parent.is_dir():
            raise FewbitError(f"{path}: the folder {path.parent} does not exist")
        part = path.with_name(f".{path.name}.part")
        try:
            part.write_bytes(self.to_bytes())
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)

    def to_bytes(self) -> bytes:
        metadata.write(self.model, self.record)
        return ir.to_proto(self.model).SerializeToString(deterministic=True)


def quantize(
    source: Any,
    env: str | None = None,
    observations: str | Path | np.ndarray | None = None,
    scheme: qdq.Scheme | None = None,
    normalizer: str | Path | None = None,
    env_args: dict[str, Any] | None = None,
    keep: float = 0.95,
    episodes: int = 100,
    seed: int = 0,
    observation_shape: tuple[int, ...] | None = None,
    progress: Progress = _silent,
) -> Artifact:
    """Round-to-nearest quantization of a source, calibrated in env or on observations [n, ...]; measured where env is given."""
    scheme = scheme or qdq.Scheme()
    _check_scheme(scheme)
    if env is None and observations is None:
        raise FewbitError("nothing to calibrate on; give --env ID or --observations FILE.npy")
    original = sources.load(source, normalizer, observation_shape)
    feeds = _calibration(original, env, observations, env_args, seed)
    quantized = qdq.write(original.model.clone(), calibrate.ranges(original.model, feeds, qdq.tensors(original.model)), scheme)
    recipe = {
        "source": original.name,
        "source_sha256": original.digest,
        "method": "rtn",
        "weights": scheme.weights,
        "activations": scheme.activations,
        "inputs": scheme.inputs,
        "env": env,
        "env_args": env_args or {},
        "seed": seed,
        "calibration_sha256": sources.digest(*(v.tobytes() for v in feeds.values())),
    }
    artifact = Artifact(quantized, {"format": 1, "recipe": recipe, "contract": original.contract})
    if env is not None:
        artifact.record["evidence"] = measure(artifact.model, original.model, env, env_args, keep, episodes, seed, True, progress)
        for _ in range(3):  # the record holds the size of the file that holds the record
            artifact.record["evidence"]["size_bytes"] = len(artifact.to_bytes())
    return artifact


def evaluate(
    artifact: str | Path | Artifact,
    env: str,
    against: Any = None,
    env_args: dict[str, Any] | None = None,
    keep: float = 0.95,
    episodes: int = 100,
    seed: int = 0,
    normalizer: str | Path | None = None,
    progress: Progress = _silent,
) -> dict[str, Any]:
    """Exactly `episodes` episodes of the artifact and, where given, of its float source; the record of "Evidence"."""
    model = artifact.model if isinstance(artifact, Artifact) else read(artifact)
    size = len(artifact.to_bytes()) if isinstance(artifact, Artifact) else Path(artifact).stat().st_size
    original = sources.load(against, normalizer).model if against is not None else None
    found = measure(model, original, env, env_args, keep, episodes, seed, False, progress)
    return found | {"size_bytes": size}


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
    from fewbit.rl import returns

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
        record |= _fidelity(quantized, floating, original, returns._concatenate(seen), env, env_args)
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
    from fewbit.rl.returns import action_width

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
    width = action_width(env, env_args, actions)
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


def packed_bytes(program: Any) -> int:
    """Bytes of weights, biases and tables as integers, without the file around them."""
    arrays = [
        a
        for step in program.steps
        for a in (getattr(step, "weight", None), getattr(step, "bias", None), getattr(step, "knots", None))
    ]
    return int(sum(a.nbytes for a in arrays if a is not None))


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in ("gymnasium", "mujoco", "box2d", "numpy", "onnxruntime"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _check_scheme(scheme: qdq.Scheme) -> None:
    for option, name, allowed in (
        ("--weights", scheme.weights, ("int8", "int6", "int4", "int3", "int2")),
        ("--activations", scheme.activations, ("uint8", "int8")),
        ("--inputs", scheme.inputs, ("int16", "int8")),
    ):
        if name not in INTEGERS or name not in allowed:
            raise FewbitError(f"{option} {name} is not supported; choose one of {', '.join(allowed)}")


def _calibration(
    original: sources.Source, env: str | None, observations: Any, env_args: dict[str, Any] | None, seed: int
) -> dict[str, np.ndarray]:
    policy = load_policy(original.model, "onnxruntime")
    if observations is not None:
        given = observations if isinstance(observations, np.ndarray) else read_observations(Path(observations))
        name, shape = next(iter(policy.inputs.items()))
        if given.shape[1:] != tuple(shape) or not len(given):
            raise FewbitError(
                f"the observations have shape {list(given.shape)}, the policy takes [n, {', '.join(map(str, shape))}]"
            )
        check_finite(given, "observations")
        return {name: given.astype(np.float32)}
    from fewbit.rl import returns

    assert env is not None
    seeds = [CALIBRATION_SEED + seed + k for k in range(CALIBRATION_EPISODES)]
    _, states = returns.episodes(policy, env, seeds, env_args, CALIBRATION_STEPS, policy.inputs)
    feeds = states if isinstance(states, dict) else {next(iter(policy.inputs)): states}
    feeds = {k: v if v.dtype.kind in "iu" else v.astype(np.float32) for k, v in feeds.items()}
    for name, value in feeds.items():
        check_finite(value, f"observations of {env} ({name})")
    return feeds


def read_observations(path: Path) -> np.ndarray:
    """A .npy array of numbers; never unpickles."""
    if not path.exists():
        raise FewbitError(f"{path}: no such file")
    try:
        array = np.load(path, allow_pickle=False)
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
            raise ValueError
        return array
    except Exception:
        raise FewbitError(f"{path}: not a .npy array of numbers, or truncated; write it with numpy.save") from None
