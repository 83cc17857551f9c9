"""A Stable-Baselines3 policy object as one graph: normaliser with its clip, preprocessing, network, mode, squashing, limits."""

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium.spaces as spaces
import numpy as np
import torch
from stable_baselines3.common.policies import BasePolicy

from fewbit.errors import FewbitError
from fewbit.graph.metadata import MASKS
from fewbit.sources import Source, original, sb3_masked, sb3_recurrent, torch_module
from fewbit.sources.normalizer import Normalizer
from fewbit.sources.recurrent import Remembered

LARGEST = float(np.finfo(np.float32).max)


class Deterministic(torch.nn.Module):
    """observation(s), and masks where the policy knows them -> the action that SB3's predict(deterministic=True) returns."""

    low: torch.Tensor
    high: torch.Tensor

    def __init__(self, policy: BasePolicy, normalizer: Normalizer | None, names: list[str]):
        super().__init__()
        self.policy, self.names, self.is_dict = policy, names, isinstance(policy.observation_space, spaces.Dict)
        self.normalised: list[int] = []
        self.remainders: set[int] = set()
        for k, name in enumerate(names):
            key = name if self.is_dict else ""
            if normalizer is None or key not in normalizer.mean:
                continue
            inv = 1.0 / np.sqrt(normalizer.var[key] + normalizer.epsilon)
            limit = np.full(inv.shape, min(normalizer.clip, LARGEST))
            # S1: float32 cannot hold a mean of 1 beside a deviation of 1e-4; what its rounding loses is subtracted after it.
            lost = normalizer.mean[key] - normalizer.mean[key].astype(np.float32)
            self.remainders |= {k} if np.abs(lost * inv).max(initial=0) > 2.0**-20 else set()
            self.register_buffer(f"lost{k}", torch.tensor(lost, dtype=torch.float32))
            for kind, array in (("mean", normalizer.mean[key]), ("inv", inv), ("low", -limit), ("high", limit)):
                self.register_buffer(f"{kind}{k}", torch.tensor(array, dtype=torch.float32))
            self.normalised.append(k)
        box = policy.action_space if isinstance(policy.action_space, spaces.Box) else None
        if box is not None:
            for kind, end in zip(("low", "high"), limits(box), strict=True):
                self.register_buffer(kind, end)
            self.unit = bool(policy.squash_output and (self.low == -1).all() and (self.high == 1).all())
            self.free = np.isinf(box.low).all() and np.isinf(box.high).all()
        self.box = box is not None
        self.action_shape = policy.action_space.shape or ()

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        count = len(self.names)
        given, masks = self.prepared(*inputs[:count]), inputs[count:]
        if masks:
            return sb3_masked.choose(self.policy, given, masks[0])
        return self.rescaled(self.policy._predict(given, deterministic=True))

    def prepared(self, *observations: torch.Tensor) -> Any:
        """What the policy is given: each part normalised and clipped, if it is."""
        prepared = list(observations)
        for k in self.normalised:
            centred = prepared[k] - getattr(self, f"mean{k}")
            centred = centred - getattr(self, f"lost{k}") if k in self.remainders else centred
            scaled = centred * getattr(self, f"inv{k}")
            prepared[k] = torch.maximum(torch.minimum(scaled, getattr(self, f"high{k}")), getattr(self, f"low{k}"))
        return dict(zip(self.names, prepared, strict=True)) if self.is_dict else prepared[0]

    def rescaled(self, action: torch.Tensor) -> torch.Tensor:
        """What env.step is given."""
        if not self.box:
            return action
        if len(self.action_shape) > 1:
            action = action.reshape(-1, *self.action_shape)
        if self.policy.squash_output:
            return action if self.unit else self.low + (0.5 * (action + 1.0)) * (self.high - self.low)
        if self.free:
            return action
        return torch.maximum(torch.minimum(action, self.high), self.low)


def limits(box: spaces.Box) -> tuple[torch.Tensor, torch.Tensor]:
    """(low, high) of an action space of any dtype as float32s within them; where there is no limit, the largest float32."""
    made = []
    for bound, inwards in ((box.low, np.inf), (box.high, -np.inf)):
        exact = np.clip(bound.astype(np.float64), -LARGEST, LARGEST)
        near = exact.astype(np.float32)
        outside = near < exact if inwards > 0 else near > exact
        made.append(torch.from_numpy(np.where(outside, np.nextafter(near, np.float32(inwards)), near)))
    return made[0], made[1]


def capture(
    policy: BasePolicy,
    normalizer: Normalizer | None,
    name: str,
    fingerprint: str,
    module: Callable[..., torch.nn.Module] = Deterministic,
    outputs: Sequence[str] = ("action",),
    normalizer_file: str | None = None,
) -> Source:
    """The deterministic policy as a straightened ONNX graph; or what another module(policy, normalizer, names) gives of it."""
    space = policy.observation_space
    parts = dict(space.spaces) if isinstance(space, spaces.Dict) else {"observation": space}
    if normalizer is not None:
        _check_normalizer(normalizer, parts, isinstance(space, spaces.Dict), normalizer_file)
    examples = {}
    for key, part in parts.items():
        discrete = isinstance(part, spaces.Discrete | spaces.MultiDiscrete)
        image = isinstance(part, spaces.Box) and part.dtype == np.uint8
        dtype = torch.int64 if discrete else torch.uint8 if image else torch.float32
        examples[key] = torch.zeros((2, *(part.shape or ())), dtype=dtype)
    masks = sb3_masked.width(policy)
    if masks is not None:
        if MASKS in parts:
            raise FewbitError(f"the policy's observation {MASKS} has the name of its masks; rename it in the environment")
        examples[MASKS] = torch.ones(2, masks)
    # Distributions check their arguments with data-dependent branches, which no exporter can follow.
    validate = torch.distributions.Distribution._validate_args
    torch.distributions.Distribution.set_default_validate_args(False)
    step = module(policy, normalizer, list(parts))
    states: tuple[Remembered, ...] = ()
    try:
        if hasattr(policy, "lstm_actor"):
            step, states = sb3_recurrent.step(step, list(examples))
            examples |= {s.name: torch.zeros(2, *s.shape) for s in states}
        model = torch_module.export(step, examples, [*outputs, *(s.output for s in states)])
    finally:
        torch.distributions.Distribution.set_default_validate_args(validate)
    contract = _contract(policy, parts, normalizer, normalizer_file) | {"recurrent_state": [s.name for s in states] or None}
    contract |= {} if masks is None else {MASKS: f"input {MASKS} [{masks}]: 1 where a choice is allowed, 0 where it is not"}
    run = original.of_module(step, examples, [*outputs, *(s.output for s in states)])
    return Source(model, name, fingerprint, contract, tuple(s.record for s in states), run)


def _check_normalizer(normalizer: Normalizer, parts: dict[str, spaces.Space], is_dict: bool, file: str | None) -> None:
    for key, mean in normalizer.mean.items():
        part = parts.get(key if is_dict else "observation")
        if part is not None and part.shape == mean.shape:
            continue
        takes = list(part.shape or ()) if part is not None else list(parts)
        raise FewbitError(
            f"the normaliser{f' {file}' if file else ''} is for observations{f' {key}' if key else ''} of shape "
            f"{list(mean.shape)}, the policy takes {takes}{_stacked(part, mean)}; give another --normalizer FILE, or "
            "--normalizer none and --observations as the policy sees them (normalised already)"
        )


def _stacked(part: spaces.Space | None, mean: np.ndarray) -> str:
    """Frames that are stacked after they were normalised are more than one observation, and the first ones are zeros of that."""
    shape = part.shape if part is not None else None
    if not shape or not mean.shape or shape[:-1] != mean.shape[:-1] or shape[-1] % mean.shape[-1] or shape == mean.shape:
        return ""
    count = shape[-1] // mean.shape[-1]
    return f", {count} of them (VecFrameStack over VecNormalize?), which a graph of raw observations cannot hold"


def _contract(
    policy: BasePolicy, parts: dict[str, spaces.Space], normalizer: Normalizer | None, file: str | None
) -> dict[str, Any]:
    action = policy.action_space
    described: dict[str, Any] = {"type": type(action).__name__, "shape": list(action.shape or ())}
    if isinstance(action, spaces.Box):
        described |= {"low": action.low.tolist(), "high": action.high.tolist()}
    elif isinstance(action, spaces.Discrete):
        described["n"] = int(action.n)
    return {
        "policy": type(policy).__name__,
        "observation": {k: list(p.shape or ()) for k, p in parts.items()},
        "action": described,
        "normalizer": None if normalizer is None else {"clip": normalizer.clip, "epsilon": normalizer.epsilon},
    } | ({} if file is None else {"normalizer_file": file})
