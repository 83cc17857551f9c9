"""A Stable-Baselines3 policy as one graph: normaliser with its clip, preprocessing, network, mode, squashing, rescaling.

The networks are built by stable-baselines3 and sb3-contrib themselves, so whatever they can build can be captured.
"""

import importlib
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fewbit.errors import FewbitError, MissingExtra, first_line
from fewbit.sources import Source, digest
from fewbit.sources.normalizer import Normalizer
from fewbit.sources.normalizer import read as read_normalizer

try:
    import gymnasium.spaces as spaces
    import torch
    from stable_baselines3.common.policies import BasePolicy
except ImportError as e:
    raise MissingExtra(e.name or "stable-baselines3", "sb3") from None

from fewbit.sources import original, sb3_archive, sb3_recurrent, torch_module
from fewbit.sources.recurrent import Remembered

# Tensors that acting does not read; a file without them is complete.
_UNUSED = (
    "critic",
    "lstm_critic",
    "q_net_target",
    "quantile_net_target",
    "actor_target",
    "value_net",
    "mlp_extractor.value_net",
    "vf_features_extractor",
)


def load(path: Path, normalizer: Path | None = None) -> Source:
    """The policy in an SB3 zip, with the normaliser given or lying beside it as vecnormalize.pkl."""
    policy = build(path)
    beside = path.with_name("vecnormalize.pkl")
    chosen = normalizer or (beside if beside.exists() else None)
    norm = read_normalizer(chosen) if chosen else None
    parts = [path.read_bytes()] + ([chosen.read_bytes()] if chosen else [])
    return capture(policy, norm, path.name, digest(*parts))


def build(path: Path) -> BasePolicy:
    """The policy object of an SB3 zip, for acting, on the CPU."""
    archive = sb3_archive.read(path)
    try:
        return _build(archive)
    except FewbitError as e:
        raise FewbitError(f"{path}: {e}") from None


def _build(archive: sb3_archive.Archive) -> BasePolicy:
    cls = _policy_class(archive)
    accepted = inspect.signature(cls.__init__).parameters
    kwargs = {k: v for k, v in archive.kwargs.items() if k != "use_sde" or k in accepted}
    unknown = set(kwargs) - set(accepted)
    if unknown:
        raise FewbitError(f"policy argument {sorted(unknown)[0]} is not known to the installed {cls.__name__}")
    if "lr_schedule" in accepted:
        kwargs["lr_schedule"] = lambda _: 0.0
    try:
        _check_size(archive)
        policy = cls(observation_space=archive.observation_space, action_space=archive.action_space, **kwargs)
    except FewbitError:
        raise
    except Exception as e:
        raise FewbitError(f"{cls.__name__} cannot be made with the file's arguments ({first_line(e)})") from None
    wanted = policy.state_dict()
    state = {
        k.replace("action_net.weight", "action_net.0.weight") if k not in wanted else k: v for k, v in archive.state.items()
    }  # ARS before 1.5
    for name, tensor in wanted.items():
        if name in state and state[name].shape != tensor.shape:
            raise FewbitError(f"tensor {name} is {list(state[name].shape)}, the policy needs {list(tensor.shape)}")
    result = policy.load_state_dict(state, strict=False)
    missing = [k for k in result.missing_keys if not k.startswith(_UNUSED)]
    surplus = [k for k in result.unexpected_keys if not k.startswith(_UNUSED)]
    if missing or surplus:
        raise FewbitError(
            f"its tensors do not fit {cls.__name__}: {'missing' if missing else 'unexpected'} {(missing or surplus)[0]}"
        )
    policy.set_training_mode(False)
    return policy


def _check_size(archive: sb3_archive.Archive) -> None:
    """Refuse arguments that describe far more weights than the file holds, before anything is made of them."""
    ends = sum(spaces.flatdim(s) for s in (archive.observation_space, archive.action_space))
    widths = [512, *_whole(archive.kwargs)]  # the widest of the defaults
    held = sum(v.numel() for v in archive.state.values())
    if (ends + sum(widths)) * max(widths) > 64 * held + (1 << 24):
        raise FewbitError(f"its arguments describe a network far larger than the {held} numbers that it holds; refused")


def _whole(value: Any) -> list[int]:
    """The whole numbers in nested arguments."""
    if isinstance(value, dict | list | tuple):
        return [n for v in (value.values() if isinstance(value, dict) else value) for n in _whole(v)]
    return [value] if isinstance(value, int) and not isinstance(value, bool) else []


def _policy_class(archive: sb3_archive.Archive) -> type[BasePolicy]:
    if not str(archive.module).startswith(("stable_baselines3.", "sb3_contrib.")):
        raise FewbitError(
            f"its policy class comes from {archive.module or 'nowhere'}; load the model yourself and pass the live object"
        )
    try:
        module = importlib.import_module(archive.module)
    except ImportError:
        raise FewbitError(
            f"{archive.module} is not in the installed version; install stable-baselines3 and sb3-contrib"
        ) from None
    name = archive.policy or ("ActorCriticPolicy" if archive.module.endswith("common.policies") else "MlpPolicy")
    cls = getattr(module, name, None)
    if not (isinstance(cls, type) and issubclass(cls, BasePolicy)):
        raise FewbitError(f"{archive.module}.{name} is no policy class of the installed version")
    return cls


def from_live(model: Any) -> Source:
    """A live algorithm object; its VecNormalize, if any, is captured too."""
    wrapper = model.get_vec_normalize_env()
    norm = None
    if wrapper is not None and wrapper.norm_obs:
        rms = wrapper.obs_rms if isinstance(wrapper.obs_rms, dict) else {"": wrapper.obs_rms}
        chosen = getattr(wrapper, "norm_obs_keys", None)
        rms = {k: v for k, v in rms.items() if chosen is None or k in chosen}
        norm = Normalizer(
            {k: v.mean for k, v in rms.items()}, {k: v.var for k, v in rms.items()}, wrapper.epsilon, wrapper.clip_obs
        )
    state = b"".join(t.detach().cpu().numpy().tobytes() for t in model.policy.state_dict().values())
    return capture(model.policy, norm, type(model).__name__, digest(state))


class Deterministic(torch.nn.Module):
    """observation(s) -> the action that SB3's predict(deterministic=True) returns."""

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
            limit = np.full(inv.shape, normalizer.clip)
            # S1: float32 cannot hold a mean of 1 beside a deviation of 1e-4; what its rounding loses is subtracted after it.
            lost = normalizer.mean[key] - normalizer.mean[key].astype(np.float32)
            self.remainders |= {k} if np.abs(lost * inv).max(initial=0) > 2.0**-20 else set()
            self.register_buffer(f"lost{k}", torch.tensor(lost, dtype=torch.float32))
            for kind, array in (("mean", normalizer.mean[key]), ("inv", inv), ("low", -limit), ("high", limit)):
                self.register_buffer(f"{kind}{k}", torch.tensor(array, dtype=torch.float32))
            self.normalised.append(k)
        box = policy.action_space if isinstance(policy.action_space, spaces.Box) else None
        if box is not None:
            low, high = torch.tensor(box.low), torch.tensor(box.high)
            self.register_buffer("low", low)
            self.register_buffer("high", high)
            self.unit = bool(policy.squash_output and (low == -1).all() and (high == 1).all())
        self.box = box is not None
        self.action_shape = policy.action_space.shape or ()

    def forward(self, *observations: torch.Tensor) -> torch.Tensor:
        return self.rescaled(self.policy._predict(self.prepared(*observations), deterministic=True))

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
        return torch.maximum(torch.minimum(action, self.high), self.low)


def capture(
    policy: BasePolicy,
    normalizer: Normalizer | None,
    name: str,
    fingerprint: str,
    module: Callable[..., torch.nn.Module] = Deterministic,
    outputs: Sequence[str] = ("action",),
) -> Source:
    """The deterministic policy as a straightened ONNX graph; or what another module(policy, normalizer, names) gives of it."""
    space = policy.observation_space
    parts = dict(space.spaces) if isinstance(space, spaces.Dict) else {"observation": space}
    if normalizer is not None:
        _check_normalizer(normalizer, parts, isinstance(space, spaces.Dict))
    examples = {}
    for key, part in parts.items():
        discrete = isinstance(part, spaces.Discrete | spaces.MultiDiscrete)
        image = isinstance(part, spaces.Box) and part.dtype == np.uint8
        dtype = torch.int64 if discrete else torch.uint8 if image else torch.float32
        examples[key] = torch.zeros((2, *(part.shape or ())), dtype=dtype)
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
    contract = _contract(policy, parts, normalizer) | {"recurrent_state": [s.name for s in states] or None}
    run = original.of_module(step, list(examples), [*outputs, *(s.output for s in states)])
    return Source(model, name, fingerprint, contract, tuple(s.record for s in states), run)


def _check_normalizer(normalizer: Normalizer, parts: dict[str, spaces.Space], is_dict: bool) -> None:
    for key, mean in normalizer.mean.items():
        part = parts.get(key if is_dict else "observation")
        if part is None or part.shape != mean.shape:
            raise FewbitError(
                f"the normaliser is for observations of shape {list(mean.shape)}, the policy takes "
                f"{list(part.shape or ()) if part is not None else list(parts)}"
            )


def _contract(policy: BasePolicy, parts: dict[str, spaces.Space], normalizer: Normalizer | None) -> dict[str, Any]:
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
    }
