"""What a policy sees: observations (and what it remembered before them), recorded or from an environment, for calibration."""

from typing import Any

import numpy as np

from fewbit import recorded, sources
from fewbit.engine.load import load as load_policy
from fewbit.engine.policy import EPISODE, Policy
from fewbit.errors import FewbitError
from fewbit.graph.metadata import MASKS
from fewbit.numerics.affine import check_finite

EPISODES, STEPS = 5, 5000
SEED = 100_000  # away from the evaluation's own seeds


def calibration(
    original: sources.Source, env: str | None, observations: Any, env_args: dict[str, Any] | None, seed: int
) -> dict[str, np.ndarray]:
    """Rows to calibrate on, by the names and in the dtypes of the policy's inputs: the observations given, or met in env."""
    policy = load_policy(original.model, "onnxruntime")
    if observations is None and env is None:
        return {}
    if observations is not None:
        return _rows(policy, _named(policy, observations))
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
    held = {s.input for s in policy.states}
    return {k: v if k == EPISODE or k in held else _typed(policy, k, v, f"observations of {env} ({k})") for k, v in feeds.items()}


def _named(policy: Policy, given: recorded.Observations) -> dict[str, np.ndarray]:
    """Arrays by the names of the policy's inputs; where no masks are given, everything is allowed."""
    observed = [name for name in policy.inputs if name != MASKS]
    found = recorded.named(given, observed, [name for name in policy.inputs if name == MASKS])
    if MASKS in policy.inputs and MASKS not in found:
        found[MASKS] = np.ones((len(found[observed[0]]), *policy.inputs[MASKS]), np.float32)
    return found


def _rows(policy: Policy, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The observations checked and typed; of a policy that remembers, with what it remembered before each."""
    first = next(iter(given))
    episodes = bool(policy.states) and given[first].shape[2:] == tuple(policy.inputs[first]) and given[first].ndim >= 2
    for name, array in given.items():
        shape = tuple(policy.inputs[name])
        if array.shape[1 + episodes :] != shape or not array.size or array.ndim != len(shape) + 1 + episodes:
            where = f" ({name})" if len(given) > 1 else ""
            raise FewbitError(
                f"the observations{where} have shape {list(array.shape)}, the policy takes "
                f"[{', '.join(['episodes, steps' if policy.states else 'n', *map(str, shape)])}]"
            )
        if array.shape[: 1 + episodes] != given[first].shape[: 1 + episodes]:
            raise FewbitError(f"there are {len(array)} observations {name} and {len(given[first])} {first}; give as many of each")
    typed = {k: _typed(policy, k, v, "observations" if len(given) == 1 else f"observations {k}") for k, v in given.items()}
    if not policy.states:
        return typed
    return _remembered(policy, typed if episodes else {k: v[None] for k, v in typed.items()})


def _typed(policy: Policy, name: str, array: np.ndarray, what: str) -> np.ndarray:
    """The array in the dtype that the policy takes; refused where that would change more than its rounding."""
    wanted = policy.kinds.get(name, np.dtype(np.float32))
    if array.dtype.kind not in "biuf":
        raise FewbitError(f"{what} are of dtype {array.dtype}; give real numbers")
    check_finite(array, what)
    with np.errstate(over="ignore", invalid="ignore"):
        typed = array.astype(wanted)
    if wanted.kind == "f":
        if not np.isfinite(typed).all():
            raise FewbitError(f"{what} hold {float(np.abs(array).max()):.3g}, which {wanted} cannot; scale them")
    elif (typed != array).any():
        raise FewbitError(f"{what} hold {array[typed != array][0]!s}, the policy takes whole numbers ({wanted})")
    return typed


def _remembered(policy: Policy, observations: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """observations [episodes, steps, ...] -> every step's, what the float policy remembered before it, and EPISODE, as rows."""
    episodes, steps = next(iter(observations.values())).shape[:2]
    state, rows, numbers = policy.initial(episodes), [], np.arange(episodes)
    for k in range(steps):
        seen = {name: array[:, k] for name, array in observations.items()}
        rows.append(seen | {EPISODE: numbers} | state)
        state = policy.step(seen, state)[1]
    return {k: np.concatenate(np.stack([r[k] for r in rows], 1)) for k in rows[0]}
