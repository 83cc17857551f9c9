"""From source to artifact, and from artifact to evidence: what the command line and `import fewbit` both call."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from fewbit import sources
from fewbit.engine.load import load as load_policy
from fewbit.errors import FewbitError
from fewbit.graph import calibrate, dynamic, metadata, qdq
from fewbit.graph.read import read
from fewbit.numerics.affine import check_finite
from fewbit.numerics.formats import INTEGERS

METHODS = ("rtn", "dynamic")
CALIBRATION_EPISODES, CALIBRATION_STEPS = 5, 5000
CALIBRATION_SEED = 100_000  # away from the evaluation's own seeds

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
    method: str = "rtn",
    progress: Progress = _silent,
) -> Artifact:
    """Quantize a source: "rtn" calibrates in env or on observations [n, ...], "dynamic" needs neither; measured where env is."""
    scheme = scheme or qdq.Scheme()
    _check(method, scheme)
    if method != "dynamic" and env is None and observations is None:
        raise FewbitError("nothing to calibrate on; give --env ID or --observations FILE.npy")
    original = sources.load(source, normalizer, observation_shape)
    recipe = {"source": original.name, "source_sha256": original.digest, "method": method, "seed": seed}
    recipe |= {"env": env, "env_args": env_args or {}}
    if method == "dynamic":
        quantized = dynamic.write(original.model)
    else:
        feeds = _calibration(original, env, observations, env_args, seed)
        ranges = calibrate.ranges(original.model, feeds, qdq.tensors(original.model))
        quantized = qdq.write(original.model.clone(), ranges, scheme)
        recipe |= vars(scheme) | {"calibration_sha256": sources.digest(*(v.tobytes() for v in feeds.values()))}
    artifact = Artifact(quantized, {"format": 1, "recipe": recipe, "contract": original.contract})
    if env is not None:
        from fewbit.rl.measure import measure

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
    from fewbit.rl.measure import measure

    model = artifact.model if isinstance(artifact, Artifact) else read(artifact)
    size = len(artifact.to_bytes()) if isinstance(artifact, Artifact) else Path(artifact).stat().st_size
    original = sources.load(against, normalizer).model if against is not None else None
    found = measure(model, original, env, env_args, keep, episodes, seed, False, progress)
    return found | {"size_bytes": size}


def _check(method: str, scheme: qdq.Scheme) -> None:
    if method not in METHODS:
        raise FewbitError(f"--method {method} is not built; choose one of {', '.join(METHODS)}")
    if method == "dynamic" and scheme != qdq.Scheme():
        raise FewbitError(
            "--method dynamic has int8 weights and uint8 activations; --weights and the like do not apply"
        )
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
