"""Masks of forbidden actions (sb3-contrib's MaskablePPO), as an input of the graph beside the observations."""

from typing import Any

import gymnasium.spaces as spaces
import torch
from stable_baselines3.common.policies import BaseModel, BasePolicy

FORBIDDEN = 1e8  # sb3-contrib gives a forbidden choice the logit -1e8


def width(policy: BasePolicy) -> int | None:
    """How many masks the policy is given with an observation, one a choice; None: it knows no masks."""
    maskable = any(c.__name__ == "MaskableActorCriticPolicy" for c in type(policy).__mro__)
    return sum(_choices(policy.action_space)) if maskable else None


def choose(policy: Any, given: Any, masks: torch.Tensor) -> torch.Tensor:
    """The likeliest allowed action.

    Args:
        policy: a MaskableActorCriticPolicy.
        given: what its features extractor takes, [n, ...] or a dict of them.
        masks: float32 [n, choices of all parts of the action, one after the other], 1 where a choice is allowed and 0 elsewhere.

    Returns:
        int64 [n] of a Discrete action space, [n, parts] of the others; as predict(action_masks=masks, deterministic=True).
    """
    features = BaseModel.extract_features(policy, given, policy.pi_features_extractor)
    logits = policy.action_net(policy.mlp_extractor.forward_actor(features))
    allowed = torch.minimum(logits, masks * (2 * FORBIDDEN) - FORBIDDEN)  # Min, not Where: every executor and C have it
    if isinstance(policy.action_space, spaces.Discrete):
        return allowed.argmax(1)
    return torch.stack([part.argmax(1) for part in torch.split(allowed, _choices(policy.action_space), 1)], 1)


def _choices(space: spaces.Space) -> list[int]:
    if isinstance(space, spaces.Discrete):
        return [int(space.n)]
    if isinstance(space, spaces.MultiDiscrete):
        return [int(n) for n in space.nvec.reshape(-1)]
    return [2] * int(space.n)  # type: ignore[attr-defined]  # MultiBinary, the last that sb3-contrib masks
