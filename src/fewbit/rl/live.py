"""A Stable-Baselines3 policy that is still learning, as an actor: captured once, quantized again in about a millisecond.

What is captured is the graph, with numbers of its own in the place of every parameter, so that a layer's weight is known again by
them; the policy's own parameters are then read wherever they are wanted. Ranges of activations are kept until what the float
network does on recent observations has left them, or has shrunk within them; then the graph is quantized anew.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from fewbit.engine import reference
from fewbit.engine.lower import lower
from fewbit.engine.program import Float, Program
from fewbit.engine.reweigh import Codes, Weights, rounded
from fewbit.errors import FewbitError, MissingExtra
from fewbit.graph import calibrate, qdq
from fewbit.graph.edit import const
from fewbit.graph.layers import layers
from fewbit.numerics.formats import INTEGERS
from fewbit.rl.actor import Actor, Base
from fewbit.rl.explore import Exploration

try:
    import torch

    from fewbit.sources import sb3_heads
except ImportError as e:
    raise MissingExtra(e.name or "stable-baselines3", "sb3") from None

FORMATS = ("int8", "int6", "int4", "int3", "int2")
ROWS = 256  # recent observations that ranges are looked at on
OUTSIDE, WITHIN = 1.25, 0.4  # of its calibrated range, what a tensor may come to reach and must go on reaching
TOLERANCE = 1e-3  # of the float graph beside the policy, of its largest output


@dataclass(frozen=True)
class Capture:
    """graph: the float heads; layers: name of a layer's output -> its weight's and bias's parameter."""

    graph: ir.Model
    layers: dict[str, tuple[str, str | None]]


class Live:
    """policy: of a Stable-Baselines3 model; observations [n, ...]: to calibrate on, as the policy is given them.

    noise: TD3's, as a share of half the action range; DQN's epsilon. every: steps that gSDE keeps a matrix for.
    """

    def __init__(
        self, policy: Any, observations: np.ndarray, scheme: qdq.Scheme | None = None, noise: float = 0.0, every: int = 0
    ):
        self.policy, self.noise, self.every = policy, noise, every
        self.scheme = scheme or qdq.Scheme()
        if self.scheme.method != "rtn":
            raise FewbitError(f"a policy that learns is rounded to nearest; --method {self.scheme.method} takes too long")
        if self.scheme.weights not in FORMATS:
            raise FewbitError(f"weights {self.scheme.weights} are not acted with; choose one of {', '.join(FORMATS)}")
        self.kind = sb3_heads.kind(policy)
        self.capture = _capture(policy)
        self.floats = lower(self.capture.graph)
        self.input = next(iter(self.floats.inputs))
        self._check(observations[:ROWS])
        self.recalibrated = -1  # how often the slow way was taken after the first
        self.calibrate(observations)

    def actor(self, observations: np.ndarray | None = None) -> Actor:
        """With the weights as they are now. observations [n, ...]: recent ones, which the ranges are held against."""
        weights = self.weights()
        if observations is not None and not self._fits(weights, observations):
            self._calibrate(weights, observations)
        codes: Codes = rounded(self.base.program, weights, INTEGERS[self.scheme.weights])
        return Actor(self.base, self.exploration(), codes)

    def calibrate(self, observations: np.ndarray) -> None:
        """Quantize the graph anew, with ranges from these observations [n, ...]."""
        self._calibrate(self.weights(), observations)

    def weights(self) -> Weights:
        """float32, the parameters themselves where they are on the CPU."""
        parameters = dict(self.policy.named_parameters())
        found = {}
        for layer, names in self.capture.layers.items():
            weight, bias = (None if n is None else parameters[n].detach().cpu().numpy() for n in names)
            assert weight is not None
            found[layer] = (weight, np.zeros(len(weight), np.float32) if bias is None else bias)
        return found

    def exploration(self) -> Exploration:
        """As it is now: std from the policy, noise as it was given."""
        return _exploration(self.policy, self.kind, self.noise, self.every)

    def _calibrate(self, weights: Weights, observations: np.ndarray) -> None:
        self.recalibrated += 1
        graph = _filled(self.capture.graph, weights)
        feeds = {self.input: np.ascontiguousarray(observations, self.floats.input_dtypes[self.input])}
        ranges, statistics = calibrate.observe(graph, feeds, *qdq.tensors(graph), self.scheme.ranges)
        self.base = Base(qdq.write(graph, ranges, self.scheme, statistics))
        self.reach = {k: r for k, r in self._reach(weights, observations).items() if r > 0}

    def _reach(self, weights: Weights, observations: np.ndarray) -> dict[str, float]:
        """Largest magnitude of each layer's output on up to ROWS of the observations, the last layers' left out."""
        rows = observations[:: max(1, len(observations) // ROWS)][:ROWS]
        registers = reference.run(_with_floats(self.floats, weights), {self.input: rows})
        return {k: float(np.abs(registers[k]).max()) for k in self.capture.layers if k not in self.floats.outputs} | {
            self.input: float(np.abs(rows).max())
        }

    def _fits(self, weights: Weights, observations: np.ndarray) -> bool:
        now = self._reach(weights, observations)
        return all(WITHIN * reach <= now[k] <= OUTSIDE * reach for k, reach in self.reach.items())

    def _check(self, observations: np.ndarray) -> None:
        """The graph with the policy's parameters gives what the policy gives: nothing was folded into something else."""
        program = _with_floats(self.floats, self.weights())
        made = reference.run(program, {self.input: observations.astype(program.input_dtypes[self.input])})
        with torch.no_grad():
            wanted = sb3_heads.Heads(self.policy, None, ["observation"])(torch.as_tensor(observations).to(self.policy.device))
        for name, want in zip(program.outputs, wanted if isinstance(wanted, tuple) else (wanted,), strict=True):
            error = np.abs(made[name] - want.cpu().numpy()).max()
            if not error <= TOLERANCE * max(1.0, float(want.abs().max())):
                raise FewbitError(
                    f"{type(self.policy).__name__}: its graph holds more of its parameters than layers' weights "
                    "(a normalisation, perhaps), which cannot be followed while it learns"
                )


def _exploration(policy: Any, kind: str, noise: float, every: int) -> Exploration:
    space = policy.action_space
    if kind in ("categorical", "epsilon"):
        return Exploration(kind, epsilon=noise if kind == "epsilon" else 0.0)
    bounds = {"low": space.low.reshape(-1), "high": space.high.reshape(-1), "shape": tuple(space.shape)}
    if kind == "deterministic":
        std = (noise * 0.5 * (space.high - space.low)).reshape(-1).astype(np.float32)
        return Exploration("gaussian", std=std, **bounds) if noise else Exploration(kind)
    if kind == "squashed":
        return Exploration(kind, squash=True, **bounds)
    holder = policy.actor if hasattr(policy, "actor") else policy
    with torch.no_grad():
        std = holder.log_std.exp() if kind == "gaussian" else holder.action_dist.get_std(holder.log_std)
    return Exploration(kind, std=std.cpu().numpy(), squash=bool(policy.squash_output), every=every, **bounds)


def _capture(policy: Any) -> Capture:
    with _numbered(policy) as parameters:
        graph = sb3_heads.capture(policy).model
        by_value = {(v.shape, v.tobytes()): k for k, v in parameters.items()}
    found: dict[str, tuple[str, str | None]] = {}
    for layer in layers(graph):
        arrays = [const(i) for i in layer.node.inputs[1:]]
        names = [None if a is None else by_value.get((a.shape, np.ascontiguousarray(a).tobytes())) for a in arrays]
        bias = arrays[1] if len(arrays) > 1 else None
        if layer.node.op_type != "Gemm" or names[0] is None or (bias is not None and bias.any() and names[1] is None):
            raise FewbitError(
                f"{type(policy).__name__}: layer {layer.node.name} is no Linear layer of it; its actors cannot follow it"
            )
        found[layer.node.outputs[0].name or ""] = (names[0], names[1] if len(names) > 1 else None)
    return Capture(graph, found)


@contextmanager
def _numbered(policy: Any) -> Iterator[dict[str, np.ndarray]]:
    """For a while every parameter holds numbers that no other one has, the policy is on the CPU and does not train."""
    device, training = policy.device, policy.training
    kept = {k: p.detach().clone() for k, p in policy.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    try:
        policy.cpu()
        with torch.no_grad():
            for p in policy.parameters():
                p.copy_(0.1 * torch.randn(p.shape, generator=generator))
        yield {k: p.detach().numpy().copy() for k, p in policy.named_parameters()}
    finally:
        policy.to(device)
        policy.set_training_mode(training)
        with torch.no_grad():
            for k, p in policy.named_parameters():
                p.copy_(kept[k])


def _filled(graph: ir.Model, weights: Weights) -> ir.Model:
    """A copy of the float graph with those weights."""
    model = graph.clone()
    for layer in layers(model):
        for value, array in zip(layer.node.inputs[1:], weights[layer.node.outputs[0].name or ""], strict=False):
            assert value is not None
            value.const_value = ir.tensor(np.ascontiguousarray(array), name=value.name)
    return model


def _with_floats(program: Program, weights: Weights) -> Program:
    """The float graph's program with those weights."""
    steps = []
    for s in program.steps:
        if isinstance(s, Float) and s.out in weights:
            weight, bias = weights[s.out]
            turned = weight if s.attributes.get("transB") else weight.T
            s = replace(s, inputs=(s.inputs[0], turned, *((bias,) if len(s.inputs) > 2 else ())))
        steps.append(s)
    return replace(program, steps=tuple(steps))
