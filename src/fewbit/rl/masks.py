"""Masks of forbidden actions: what an environment's `action_masks()` says, given to the policy beside the observations."""

import warnings
from typing import Any

import gymnasium
import numpy as np

from fewbit.errors import FewbitError
from fewbit.graph.metadata import MASKS


class Masked(gymnasium.Wrapper):
    """Observations become dictionaries that hold the masks too: float32 [count], 1 where a choice is allowed.

    name: what the observation is called where it is no dictionary.
    """

    def __init__(self, env: gymnasium.Env, name: str, count: int):
        super().__init__(env)
        self.name, self.count = name, count
        if not has_masks(env):
            warnings.warn(
                f"environment {_name(env)} has no action_masks(): the policy is told that every action is allowed. "
                "Where it was trained with masks, give an environment that tells them (sb3-contrib's ActionMasker adds them)",
                stacklevel=2,
            )

    def reset(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        observation, info = self.env.reset(**kwargs)
        return self._with_masks(observation), info

    def step(self, action: Any) -> tuple[dict[str, Any], Any, bool, bool, dict[str, Any]]:
        observation, *rest = self.env.step(action)
        return (self._with_masks(observation), *rest)  # type: ignore[return-value]

    def _with_masks(self, observation: Any) -> dict[str, Any]:
        given = dict(observation) if isinstance(observation, dict) else {self.name: observation}
        return given | {MASKS: self._masks()}

    def _masks(self) -> np.ndarray:
        if not has_masks(self.env):
            return np.ones(self.count, np.float32)
        masks = np.asarray(self.env.get_wrapper_attr(MASKS)()).reshape(-1) != 0
        if masks.size != self.count:
            raise FewbitError(
                f"{MASKS}() of environment {_name(self.env)} gives {masks.size} masks, the policy takes {self.count}"
            )
        return masks.astype(np.float32)


def _name(env: gymnasium.Env) -> str:
    return env.spec.id if env.spec is not None else str(env)


def has_masks(env: gymnasium.Env) -> bool:
    """Does the environment, or a wrapper of it, say which actions are allowed?"""
    try:
        env.get_wrapper_attr(MASKS)
        return True
    except AttributeError:
        return False


def draw(space: gymnasium.Space, masks: np.ndarray, rng: np.random.Generator) -> Any:
    """A uniformly random allowed action of a Discrete, MultiDiscrete or MultiBinary space; masks [choices of all its parts]."""
    discrete = isinstance(space, gymnasium.spaces.Discrete)
    sizes = [int(space.n)] if discrete else _sizes(space)  # type: ignore[attr-defined]
    parts = np.split(masks, np.cumsum(sizes)[:-1])
    chosen = [int(rng.choice(np.flatnonzero(part) if part.any() else len(part))) for part in parts]
    return chosen[0] if discrete else np.array(chosen)


def _sizes(space: gymnasium.Space) -> list[int]:
    if isinstance(space, gymnasium.spaces.MultiDiscrete):
        return [int(n) for n in space.nvec.reshape(-1)]
    return [2] * int(np.prod(space.shape or ()))
