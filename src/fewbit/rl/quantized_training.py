"""Quantization-aware training inside reinforcement learning: a Stable-Baselines3 callback.

    model = PPO("MlpPolicy", "CartPole-v1")
    model.learn(100_000, callback=fewbit.rl.QuantizedTraining("int4"))
    artifact = fewbit.quantize(model, env="CartPole-v1", scheme=fewbit.Scheme("int4"))      # exactly the codes that were trained

The policy acts, and is improved, with the weights that it will have: those of every layer that the quantized graph will have.
Critics stay in float. How: rl/grids. Measured: docs/qat.md.
"""

import itertools
from typing import Any

import onnx_ir as ir

from fewbit.errors import FewbitError, MissingExtra
from fewbit.graph.edit import const
from fewbit.graph.layers import layers
from fewbit.numerics.formats import INTEGERS
from fewbit.rl.grids import GridStep
from fewbit.sources import sb3_capture

try:
    import torch
    from stable_baselines3.common.callbacks import BaseCallback
except ImportError as e:
    raise MissingExtra(e.name or "stable-baselines3", "sb3") from None

FORMATS = ("int8", "int6", "int4", "int3", "int2")
Optimizer = torch.optim.Optimizer
Weights = dict[Optimizer, dict[str, list[torch.nn.Parameter]]]


class QuantizedTraining(BaseCallback):
    """Keeps the acting policy's weights on grids of a format while learn() runs, and leaves them there.

    weights  int8, int6, int4, int3 or int2 (-1, 0, 1 times a scale); one scale an output channel, of least squared error

    What model.save writes, at any time, is an ordinary zip whose weights lie on their grids, and from which a learn() with this
    callback goes on. FewbitError before the first step where the policy cannot be trained so.
    """

    def __init__(self, weights: str = "int4", verbose: int = 0):
        super().__init__(verbose)
        if weights not in FORMATS:
            raise FewbitError(f"weights {weights} cannot be trained on; choose one of {', '.join(FORMATS)}")
        self.format = INTEGERS[weights]
        self._found: Weights = {}
        self._steps: list[GridStep] = []

    def _init_callback(self) -> None:
        self._found = acting_weights(self.model)

    def _on_training_start(self) -> None:
        self._on_training_end()  # of a learn() that was interrupted
        self._steps = [GridStep(o, weights, self.format) for o, weights in self._found.items()]

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        for step in self._steps:
            step.remove()
        self._steps = []


def acting_weights(model: Any) -> Weights:
    """By optimizer and name: those parameters of a Stable-Baselines3 model that are its quantized graph's weights."""
    policy, name = model.policy, type(model).__name__
    optimizers = [o for m in policy.modules() for o in vars(m).values() if isinstance(o, Optimizer)]
    holders = {
        key: [o for o in optimizers if any(p is q for g in o.param_groups for q in g["params"])]
        for key, p in policy.named_parameters()
        if p.requires_grad and p.ndim > 1
    }
    trained = {key: p for key, p in policy.named_parameters() if holders.get(key)}
    found: Weights = {}
    for layer in layers(_graph(policy)):
        weight = const(layer.node.inputs[1])
        assert weight is not None
        parts = _parts(torch.from_numpy(weight.copy()), trained)
        if not parts:
            raise FewbitError(
                f"{name}: layer {layer.node.name} {list(weight.shape)} of its quantized graph is no weight that an optimizer "
                "trains (but several merged into one, or one scaled by a normalisation); train in float, then --method qat"
            )
        for optimizer in holders[parts[0]]:
            found.setdefault(optimizer, {})[parts[0]] = [trained[key] for key in parts]
    return found


def _parts(weight: torch.Tensor, trained: dict[str, torch.nn.Parameter]) -> tuple[str, ...]:
    """Names of the one parameter that weight [out, ...] is, or of the two whose columns it joins (an LSTM's); none if unclear."""
    values = {key: p.detach().cpu() for key, p in trained.items() if len(p) == len(weight)}
    same = [(key,) for key, v in values.items() if torch.equal(v, weight)]
    pairs = [
        (a, b)
        for a, b in itertools.permutations(values, 2)
        if values[a].ndim == values[b].ndim == 2 and torch.equal(torch.cat([values[a], values[b]], 1), weight)
    ]
    return same[0] if len(same) == 1 else pairs[0] if len(pairs) == 1 else ()


def _graph(policy: Any) -> ir.Model:
    """What the policy is as a float graph; exported on the CPU, wherever it is trained."""
    device, training = policy.device, policy.training
    try:
        return sb3_capture.capture(policy.cpu(), None, type(policy).__name__, "").model
    finally:
        policy.to(device)
        policy.set_training_mode(training)
