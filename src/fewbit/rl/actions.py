"""Actions of a policy as an environment's step takes them, or one line that says why they are none."""

from typing import Any

import gymnasium.spaces as spaces
import numpy as np

from fewbit.errors import FewbitError


def taken(actions: np.ndarray, space: spaces.Space, env: str) -> list[Any]:
    """What step is given, an action each.

    Args:
        actions: [n, ...], what the policy gave.
        space: the environment's, Discrete, MultiDiscrete, MultiBinary or Box.
        env: its name.

    Returns:
        n ints, or arrays of the space's shape and dtype.

    Raises:
        FewbitError: the shapes are not each other's, or the numbers are none of that space.
    """
    shape, wanted = actions.shape[1:], space.shape or ()
    said = f"the policy gives an action of shape {list(shape)} ({actions.dtype}), environment {env} takes {_named(space)}"
    flat = int(np.prod(wanted))
    if not (shape == wanted or (len(shape) <= 1 and int(np.prod(shape)) == flat)):
        raise FewbitError(f"{said}{_hint(space, shape)}")
    actions = actions.reshape(len(actions), *wanted)
    if isinstance(space, spaces.Box):
        if actions.dtype.kind in "iu" and space.dtype.kind == "f":  # type: ignore[union-attr]
            raise FewbitError(f"{said}: whole numbers are no action of it")
        return list(actions.astype(space.dtype))
    whole = np.rint(actions)
    if (whole != actions).any():
        raise FewbitError(f"{said}: {float(actions[whole != actions][0]):.6g} is no whole number{_hint(space, shape)}")
    count = space.nvec if isinstance(space, spaces.MultiDiscrete) else getattr(space, "n", 2)
    start = getattr(space, "start", 0)
    count = 2 if isinstance(space, spaces.MultiBinary) else count
    outside = (whole < start) | (whole >= start + count)
    if outside.any():
        raise FewbitError(f"{said}: {int(whole[outside][0])} is none of them")
    return [int(a) for a in whole] if isinstance(space, spaces.Discrete) else list(whole.astype(space.dtype))


def _named(space: spaces.Space) -> str:
    if isinstance(space, spaces.Discrete):
        return f"one action of {space}"
    return f"one of shape {list(space.shape or ())} ({type(space).__name__}, {space.dtype})"


def _hint(space: spaces.Space, shape: tuple[int, ...]) -> str:
    """Scores of the choices, instead of a choice?"""
    choices = int(space.n) if isinstance(space, spaces.Discrete) else 0
    if isinstance(space, spaces.MultiDiscrete):
        choices = int(space.nvec.sum())
    return "; these look like scores of the choices: end the graph with ArgMax" if shape == (choices,) and choices else ""
