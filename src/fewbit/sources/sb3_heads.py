"""What a Stable-Baselines3 policy's distribution is made of, as one graph: means, logits or values instead of the action.

Outputs by kind, as rl/explore names them: gaussian "mean"; squashed "mean", "log_std"; categorical "logits"; epsilon "values";
gsde "mean", "features"; deterministic (TD3) "action", as the environment takes it.
"""

from collections.abc import Callable
from typing import Any

import torch
from stable_baselines3.common.distributions import (
    CategoricalDistribution,
    DiagGaussianDistribution,
    StateDependentNoiseDistribution,
)
from stable_baselines3.common.policies import ActorCriticPolicy, BaseModel, BasePolicy
from stable_baselines3.dqn.policies import DQNPolicy
from stable_baselines3.sac.policies import SACPolicy
from stable_baselines3.td3.policies import TD3Policy

from fewbit.errors import FewbitError
from fewbit.sources import Source, sb3_capture

OUTPUTS = {
    "gaussian": ("mean",),
    "squashed": ("mean", "log_std"),
    "categorical": ("logits",),
    "epsilon": ("values",),
    "gsde": ("mean", "features"),
    "deterministic": ("action",),
}


def kind(policy: BasePolicy) -> str:
    """Of OUTPUTS; refuses by name what has none."""
    if isinstance(policy, DQNPolicy):
        return "epsilon"
    if isinstance(policy, TD3Policy):
        return "deterministic"
    if isinstance(policy, SACPolicy):
        return "gsde" if policy.actor.use_sde else "squashed"
    if isinstance(policy, ActorCriticPolicy) and not hasattr(policy, "lstm_actor"):
        kinds = {
            DiagGaussianDistribution: "gaussian",
            CategoricalDistribution: "categorical",
            StateDependentNoiseDistribution: "gsde",
        }
        found = kinds.get(type(policy.action_dist))
        if found:
            return found
    raise FewbitError(f"{type(policy).__name__} on {policy.action_space} does not explore in a way that is known here")


def capture(policy: BasePolicy) -> Source:
    """The graph of the policy's heads; what is given to it is what the policy is given (no normaliser)."""
    how = kind(policy)
    return sb3_capture.capture(policy, None, type(policy).__name__, "", Heads, OUTPUTS[how])


class Heads(torch.nn.Module):
    """observation(s) -> the outputs of the policy's kind, in order."""

    def __init__(self, policy: BasePolicy, normalizer: None, names: list[str]):
        super().__init__()
        self.policy, self.names, self.of = policy, names, _READ[kind(policy)]
        self.is_dict = names != ["observation"]

    def forward(self, *observations: torch.Tensor) -> Any:
        return self.of(self.policy, dict(zip(self.names, observations, strict=True)) if self.is_dict else observations[0])


def _latent(policy: Any, given: Any) -> torch.Tensor:
    # ActorCriticPolicy's own extract_features would run the critic's too.
    return policy.mlp_extractor.forward_actor(BaseModel.extract_features(policy, given, policy.pi_features_extractor))


def _state_dependent(policy: Any, given: Any) -> tuple[torch.Tensor, torch.Tensor]:
    if isinstance(policy, SACPolicy):
        mean, _, rest = policy.actor.get_action_dist_params(given)
        return mean, rest["latent_sde"]
    latent = _latent(policy, given)
    return policy.action_net(latent), latent


def _stretched(policy: Any, given: Any) -> torch.Tensor:
    action, low, high = policy.actor(given), *sb3_capture.limits(policy.action_space)
    return action if (low == -1).all() and (high == 1).all() else low + (0.5 * (action + 1.0)) * (high - low)


_READ: dict[str, Callable[[Any, Any], Any]] = {
    "gaussian": lambda policy, given: policy.action_net(_latent(policy, given)),
    "categorical": lambda policy, given: policy.action_net(_latent(policy, given)),
    "squashed": lambda policy, given: policy.actor.get_action_dist_params(given)[:2],
    "epsilon": lambda policy, given: policy.q_net(given),
    "gsde": _state_dependent,
    "deterministic": _stretched,
}
