"""What a policy sees: observations (and what it remembered before them) from an environment or a .npy file, for calibration."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from fewbit import sources
from fewbit.engine.load import load as load_policy
from fewbit.engine.policy import EPISODE, Policy, as_kind
from fewbit.errors import FewbitError
from fewbit.numerics.affine import check_finite

EPISODES, STEPS = 5, 5000
Observations = str | Path | np.ndarray | Iterable[Any]  # a file, an array [n, ...], a data loader
SEED = 100_000  # away from the evaluation's own seeds


def calibration(
    original: sources.Source, env: str | None, observations: Any, env_args: dict[str, Any] | None, seed: int
) -> dict[str, np.ndarray]:
    policy = load_policy(original.model, "onnxruntime")
    if observations is None and env is None:
        return {}
    if observations is not None:
        if len(policy.inputs) > 1:
            names = ", ".join(policy.inputs)
            raise FewbitError(
                f"the policy takes {names}, one array is not enough; give --env ID, or --state of what it remembers"
            )
        given = _given(observations)
        name, shape = next(iter(policy.inputs.items()))
        if policy.states and given.shape[2:] == tuple(shape) and len(given):
            check_finite(given, "observations")
            return _remembered(policy, name, as_kind(name, given, _kind(original, name)))
        if given.shape[1:] != tuple(shape) or not len(given):
            raise FewbitError(
                f"the observations have shape {list(given.shape)}, the policy takes "
                f"[{'episodes, steps' if policy.states else 'n'}, {', '.join(map(str, shape))}]"
            )
        check_finite(given, "observations")
        rows = as_kind(name, given, _kind(original, name))
        return _remembered(policy, name, rows[None]) if policy.states else {name: rows}
    from fewbit.rl import returns

    assert env is not None
    seeds = [SEED + seed + k for k in range(EPISODES)]
    _, states = returns.episodes(policy, env, seeds, env_args, STEPS, policy.inputs)
    return as_feeds(policy, states, env)


def as_feeds(policy: Policy, states: Any, env: str) -> dict[str, np.ndarray]:
    """What `returns.episodes` recorded, by the policy's names, in the dtypes that it takes; the rows of an episode together."""
    feeds = states if isinstance(states, dict) else {next(iter(policy.inputs)): states}
    if EPISODE in feeds:
        order = np.argsort(feeds[EPISODE], kind="stable")
        feeds = {k: v[order] for k, v in feeds.items()}
    feeds = {k: as_kind(k, v, policy.kinds[k]) if k in policy.kinds else v for k, v in feeds.items()}
    for name, value in feeds.items():
        check_finite(value, f"observations of {env} ({name})")
    return feeds


def _kind(original: sources.Source, name: str) -> np.dtype:
    """What the network takes: float32, or the integers of pixels."""
    dtype = next(v.dtype for v in original.model.graph.inputs if v.name == name)
    return np.dtype(np.float32) if dtype is None else dtype.numpy()


def _remembered(policy: Policy, name: str, observations: np.ndarray) -> dict[str, np.ndarray]:
    """observations [episodes, steps, ...] -> every step's, what the float policy remembered before it, and EPISODE, as rows."""
    state, rows, numbers = policy.initial(len(observations)), [], np.arange(len(observations))
    for k in range(observations.shape[1]):
        rows.append({name: observations[:, k], EPISODE: numbers} | state)
        state = policy.step(observations[:, k], state)[1]
    return {k: np.concatenate(np.stack([r[k] for r in rows], 1)) for k in rows[0]}


def _given(observations: Observations) -> np.ndarray:
    """[n, ...]; of a data loader's batches the inputs, which come first."""
    if isinstance(observations, np.ndarray):
        return observations
    if hasattr(observations, "detach"):  # a torch tensor, without importing torch
        return observations.detach().cpu().numpy()
    if isinstance(observations, str | Path):
        return read_observations(Path(observations))
    batches = [np.asarray(b[0] if isinstance(b, tuple | list) else b) for b in observations]
    if any(b.ndim == 0 for b in batches):
        raise FewbitError("the observations are neither an array [n, ...] nor batches of a data loader; use numpy.asarray")
    return np.concatenate(batches) if batches else np.zeros(0)


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
