"""A recurrent Stable-Baselines3 policy (sb3-contrib's RecurrentPPO) as one step: each layer's state an input and an output.

The critic's LSTM, which acting does not read, is left out; where an episode starts, the caller gives zeros, as predict does.
"""

from typing import Any

import torch
from stable_baselines3.common.policies import BaseModel

from fewbit.errors import FewbitError
from fewbit.sources import recurrent
from fewbit.sources.recurrent import Remembered


def step(deterministic: Any, taken: list[str]) -> tuple[torch.nn.Module, tuple[Remembered, ...]]:
    """(the module, what it remembers) of sb3_capture.Deterministic over such a policy; taken: names of its inputs."""
    lstm = deterministic.policy.lstm_actor
    if lstm.bidirectional or lstm.batch_first:
        word = "bidirectional" if lstm.bidirectional else "batch_first"
        raise FewbitError(f"lstm_kwargs has {word}=True, with which Stable-Baselines3 mixes up time and environments")
    mark = "lstm_" if set(taken) & {"h", "c"} else ""
    layers = range(lstm.num_layers)
    names = [f"{mark}{kind}{k if lstm.num_layers > 1 else ''}" for kind in "hc" for k in layers]
    return Step(deterministic), tuple(Remembered(n, (lstm.hidden_size,)) for n in names)


class Step(torch.nn.Module):
    """(*observations, h of each layer, c of each layer) -> (action, the same after it); states [n, hidden]."""

    def __init__(self, deterministic: Any):
        super().__init__()
        self.deterministic = deterministic

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        policy, lstm = self.deterministic.policy, self.deterministic.policy.lstm_actor
        count = len(self.deterministic.names)
        observations, held = inputs[:count], list(inputs[count:])
        given = self.deterministic.prepared(*observations)
        # As the policy's own get_distribution does; ActorCriticPolicy's extract_features would run the critic's too.
        features = BaseModel.extract_features(policy, given, policy.pi_features_extractor)
        states = [held[: lstm.num_layers], held[lstm.num_layers :]]
        latent, new = recurrent.layers(features, states, lstm._flat_weights, "lstm", lstm.bias)
        distribution = policy._get_action_dist_from_latent(policy.mlp_extractor.forward_actor(latent))
        action = distribution.get_actions(deterministic=True)
        return (self.deterministic.rescaled(action), *new[0], *new[1])
