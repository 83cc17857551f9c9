"""A Stable-Baselines3 policy from its zip or live: the policy object and its normaliser, which sb3_capture makes a graph of.

The networks are built by stable-baselines3 and sb3-contrib themselves, so whatever they can build can be captured.
"""

import importlib
import inspect
from pathlib import Path
from typing import Any

from fewbit.errors import FewbitError, MissingExtra, first_line
from fewbit.sources import Source, digest
from fewbit.sources.normalizer import Normalizer
from fewbit.sources.normalizer import read as read_normalizer

try:
    import gymnasium.spaces as spaces
    from stable_baselines3.common.policies import BasePolicy
except ImportError as e:
    raise MissingExtra(e.name or "stable-baselines3", "sb3") from None

from fewbit.sources import beside, sb3_archive
from fewbit.sources.sb3_capture import capture

NONE = Path("none")  # --normalizer none: what lies beside the zip is not its

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
    """The policy in an SB3 zip, with the normaliser given or lying beside it (sources/beside); normalizer "none": without one."""
    archive = sb3_archive.read(path)
    policy = _policy(path, archive)
    chosen = None if normalizer == NONE else normalizer or beside.find(path)
    if chosen is None and normalizer is None and archive.normalized:
        raise FewbitError(
            f"{path}: it was trained behind a VecNormalize, whose file does not lie beside it; give --normalizer FILE, or "
            "--normalizer none where observations were not normalised"
        )
    norm = read_normalizer(chosen) if chosen else None
    parts = [path.read_bytes()] + ([chosen.read_bytes()] if chosen else [])
    return capture(policy, norm, path.name, digest(*parts), normalizer_file=chosen.name if chosen else None)


def build(path: Path) -> BasePolicy:
    """The policy object of an SB3 zip, for acting, on the CPU."""
    return _policy(path, sb3_archive.read(path))


def _policy(path: Path, archive: sb3_archive.Archive) -> BasePolicy:
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


def from_live(model: Any, normalizer: Path | None = None) -> Source:
    """A live algorithm object; its VecNormalize, if any, is captured too, unless another is given, or "none"."""
    wrapper = model.get_vec_normalize_env() if normalizer is None else None
    norm = read_normalizer(normalizer) if normalizer is not None and normalizer != NONE else None
    if wrapper is not None and wrapper.norm_obs:
        rms = wrapper.obs_rms if isinstance(wrapper.obs_rms, dict) else {"": wrapper.obs_rms}
        chosen = getattr(wrapper, "norm_obs_keys", None)
        rms = {k: v for k, v in rms.items() if chosen is None or k in chosen}
        norm = Normalizer(
            {k: v.mean for k, v in rms.items()}, {k: v.var for k, v in rms.items()}, wrapper.epsilon, wrapper.clip_obs
        )
    state = b"".join(t.detach().cpu().numpy().tobytes() for t in model.policy.state_dict().values())
    return capture(model.policy, norm, type(model).__name__, digest(state))
