"""Episodes of a policy in a Gymnasium environment, many environments stepped with one batched call of the policy."""

import importlib
import json
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fewbit.engine.policy import EPISODE
from fewbit.errors import FewbitError, MissingExtra, first_line, install
from fewbit.graph.metadata import MASKS

try:
    import gymnasium
except ImportError:
    raise MissingExtra("gymnasium", "rl") from None

from fewbit.rl import masks
from fewbit.rl.actions import taken

AT_ONCE = 20
_EXTRAS = {"mujoco": "mujoco", "imageio": "mujoco", "Box2D": "box2d", "box2d": "box2d", "pygame": "box2d"}


def make(env: str, arguments: dict[str, Any] | None = None) -> gymnasium.Env:
    """gymnasium.make, with errors that say what to do. `module:Id` imports the module first."""
    check_id(env)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if ":" in env:
                importlib.import_module(env.split(":")[0])
            if "mujoco" in str(getattr(gymnasium.registry.get(env), "entry_point", "")):
                importlib.import_module("mujoco")
            _hush_mujoco()
            return gymnasium.make(env, **(arguments or {}))
    except ImportError as e:
        latest = _latest(env)
        if latest != env and not isinstance(e, ModuleNotFoundError):  # Gymnasium's own word for MuJoCo's v2 and v3
            raise FewbitError(f"environment {env} is not in this Gymnasium any more; give --env {latest}") from None
        missing = next((x for word, x in _EXTRAS.items() if word in str(e)), None)
        hint = f"run: {install(missing)}" if missing else "install the package that provides it, or put it on PYTHONPATH"
        raise FewbitError(f"environment {env} needs a package that is not installed ({first_line(e)}); {hint}") from None
    except Exception as e:
        if type(e).__name__ == "DependencyNotInstalled":
            missing = next((x for word, x in _EXTRAS.items() if word in str(e)), "rl")
            raise FewbitError(f"environment {env} needs a package that is not installed; run: {install(missing)}") from None
        raise FewbitError(f"environment {env} cannot be made: {first_line(e)}") from None


def check_id(env: Any) -> None:
    """Refuse what is no environment's id: it is made anew, many times over and in other processes."""
    if not isinstance(env, str):
        spec = getattr(env, "spec", None)
        known = f"env={spec.id!r}" if spec is not None else 'env="module:Id-v0" of a registered one'
        raise FewbitError(f"env: a {type(env).__name__} object was given; give the id, {known}, and its arguments as env_args")


def check_arguments(env: Any, arguments: Any) -> None:
    """Refuse what the artifact's record, in JSON, could not keep of how its environment is made."""
    check_id(env)
    for name, value in (arguments or {}).items():
        try:
            json.dumps({name: value})
        except (TypeError, ValueError):
            raise FewbitError(
                f"env_args: {name} is a {type(value).__name__}, which the record (JSON) cannot hold; give numbers, texts, "
                "lists or dictionaries of them, or register an environment that makes it itself"
            ) from None


def _latest(env: str) -> str:
    """The newest version of an environment that is registered, itself where there is none."""
    name, _, _ = env.rpartition("-v")
    versions = [spec.version for spec in gymnasium.registry.values() if spec.id.rpartition("-v")[0] == name and name]
    return f"{name}-v{max(v or 0 for v in versions)}" if versions else env


def _hush_mujoco() -> None:
    """MuJoCo prints a line for every deprecated word in a robot's file; the other warnings still reach standard error."""
    mujoco = sys.modules.get("mujoco")
    if mujoco is not None and hasattr(mujoco, "set_mju_user_warning"):
        mujoco.set_mju_user_warning(lambda m: None if "deprecated" in m else print(m, file=sys.stderr))


def check(env: str, space: gymnasium.Env, inputs: dict[str, tuple[int, ...]]) -> None:
    """Refuse an environment whose observations are not the policy's, naming both shapes."""
    o = space.observation_space
    given = {k: s.shape for k, s in o.spaces.items()} if isinstance(o, gymnasium.spaces.Dict) else {next(iter(inputs)): o.shape}
    for name, shape in inputs.items():
        if _turned(o, name, shape) or (name == MASKS and name not in given):
            continue
        if given.get(name) != tuple(shape):
            found = f"observations of shape {list(given[name] or ())}" if name in given else f"no observation {name}"
            raise FewbitError(f"environment {env} gives {found}, the policy takes {list(shape)}")


def _turned(space: gymnasium.Space, name: str, shape: tuple[int, ...]) -> bool:
    """Does the environment give 8-bit images with their channels last, where the policy takes them first?"""
    part = space.spaces.get(name) if isinstance(space, gymnasium.spaces.Dict) else space
    if part is None or part.dtype != np.uint8 or part.shape is None or len(part.shape) != 3:
        return False
    return tuple(shape) != part.shape and tuple(shape) == (part.shape[2], *part.shape[:2])


def facing(env: gymnasium.Env, inputs: dict[str, tuple[int, ...]]) -> gymnasium.Env:
    """The environment whose images have their channels where the policy takes them, as Stable-Baselines3 turns them, and which
    tells what is allowed where the policy takes masks."""
    turned = {name for name, shape in inputs.items() if _turned(env.observation_space, name, shape)}
    if turned:
        env = _turning(env, turned)
    space = env.observation_space
    if MASKS not in inputs or (isinstance(space, gymnasium.spaces.Dict) and MASKS in space.spaces):
        return env
    return masks.Masked(env, next(name for name in inputs if name != MASKS), inputs[MASKS][0])


def _turning(env: gymnasium.Env, turned: set[str]) -> gymnasium.Env:

    def turn(o: Any) -> Any:
        if isinstance(o, dict):
            return {k: np.moveaxis(v, -1, 0) if k in turned else v for k, v in o.items()}
        return np.moveaxis(o, -1, 0)

    return gymnasium.wrappers.TransformObservation(env, turn, None)


def episodes(
    policy: Callable[[Any], np.ndarray],
    env: str,
    seeds: Sequence[int],
    arguments: dict[str, Any] | None = None,
    record: int = 0,
    inputs: dict[str, tuple[int, ...]] | None = None,
    advance: Callable[[int], None] = lambda n: None,
    ended: Callable[[int, bool, dict[str, Any]], None] = lambda row, terminated, info: None,
) -> tuple[np.ndarray, Any]:
    """Returns [len(seeds)] of one episode a seed, and up to `record` of the observations met ([n, ...], or a dict of them).

    A policy that remembers (engine/policy) starts each episode with its initial state; what it remembered, and of which episode
    each observation is (EPISODE), is recorded too. ended is called with (which of the seeds, terminated, the last step's info).
    """
    envs = [make(env, arguments) for _ in range(min(AT_ONCE, len(seeds)))]
    try:
        if inputs is not None:
            check(env, envs[0], inputs)
            envs = [facing(e, inputs) for e in envs]
        return _run(policy, env, envs, list(seeds), record, advance, ended)
    finally:
        for e in envs:
            e.close()


def _run(
    policy: Callable,
    env: str,
    envs: list[gymnasium.Env],
    seeds: list[int],
    record: int,
    advance: Callable,
    ended: Callable,
) -> tuple[np.ndarray, Any]:
    returns, waiting, seen, count = np.zeros(len(seeds)), iter(range(len(seeds))), [], 0
    active: list[tuple[gymnasium.Env, int]] = []
    observations: list[Any] = []
    for e in envs:
        k = next(waiting)
        active.append((e, k))
        observations.append(e.reset(seed=seeds[k])[0])
    remembers = getattr(policy, "states", ())
    state = policy.initial(len(active)) if remembers else {}  # type: ignore[attr-defined]
    while active:
        batch = _stack(observations)
        _refuse_nan(batch)
        if count < record:
            seen.append(_with_state(policy, batch, state, [k for _, k in active]))
            count += len(active)
        if remembers:
            actions, state = policy.step(batch, state)  # type: ignore[attr-defined]
        else:
            actions = np.asarray(policy(batch))
        actions = taken(actions, envs[0].action_space, env)
        following: list[Any] = []
        kept: list[tuple[gymnasium.Env, int]] = []
        stayed: list[int] = []
        began: list[int] = []
        for row, ((e, k), action) in enumerate(zip(active, actions, strict=True)):
            o, reward, terminated, truncated, info = e.step(action)
            returns[k] += float(reward)
            if terminated or truncated:
                ended(k, terminated, info)
                advance(1)
                nxt = next(waiting, None)
                if nxt is None:
                    continue
                o, k = e.reset(seed=seeds[nxt])[0], nxt
                began.append(len(kept))
            following.append(o)
            kept.append((e, k))
            stayed.append(row)
        observations, active = following, kept
        if remembers:
            state = {name: v[stayed] for name, v in state.items()}
            for name, first in policy.initial(len(began)).items():  # type: ignore[attr-defined]
                state[name][began] = first
    return returns, concatenate(seen)


def _with_state(policy: Any, batch: Any, state: dict[str, np.ndarray], numbers: list[int]) -> Any:
    """The observations, and what the policy remembered when it met them in which episodes, if it does."""
    if not state:
        return batch
    return (batch if isinstance(batch, dict) else {next(iter(policy.inputs)): batch}) | state | {EPISODE: np.array(numbers)}


def random_returns(
    env: str,
    seeds: Sequence[int],
    arguments: dict[str, Any] | None = None,
    ended: Callable[[int, bool, dict[str, Any]], None] = lambda row, terminated, info: None,
    inputs: dict[str, tuple[int, ...]] | None = None,
) -> np.ndarray:
    """Returns of uniformly random actions, of the allowed ones where inputs hold masks; ended as episodes has it."""
    e = make(env, arguments)
    e.action_space.seed(seeds[0])
    rng = np.random.default_rng(seeds[0])
    space = e.action_space

    def draw(o: Any) -> np.ndarray:
        if inputs is not None and MASKS in inputs:
            return np.stack([masks.draw(space, m, rng) for m in o[MASKS]])
        n = len(next(iter(o.values())) if isinstance(o, dict) else o)
        if isinstance(space, gymnasium.spaces.Box) and np.isfinite(space.low).all() and np.isfinite(space.high).all():
            return rng.uniform(space.low, space.high, (n, *space.shape)).astype(space.dtype)
        return np.stack([space.sample() for _ in range(n)])

    try:
        return episodes(draw, env, seeds, arguments, inputs=inputs if MASKS in (inputs or {}) else None, ended=ended)[0]
    finally:
        e.close()


def action_space(env: str, arguments: dict[str, Any] | None) -> gymnasium.Space:
    """What the environment takes."""
    e = make(env, arguments)
    space = e.action_space
    e.close()
    return space


def _refuse_nan(batch: Any) -> None:
    for name, array in batch.items() if isinstance(batch, dict) else [("observation", batch)]:
        if array.dtype.kind not in "biuf":
            raise FewbitError(f"the environment returned {name} of dtype {array.dtype}; a policy takes real numbers")
        if array.dtype.kind == "f" and np.isnan(array).any():
            index = tuple(int(i) for i in np.argwhere(np.isnan(array))[0][1:])
            raise FewbitError(f"the environment returned NaN in element {index} of {name}; the simulation has diverged")


def _stack(observations: list[Any]) -> Any:
    if isinstance(observations[0], dict):
        return {k: np.stack([o[k] for o in observations]) for k in observations[0]}
    return np.stack(observations)


def concatenate(batches: list[Any]) -> Any:
    if batches and isinstance(batches[0], dict):
        return {k: np.concatenate([b[k] for b in batches]) for k in batches[0]}
    return np.concatenate(batches) if batches else np.zeros(0)
