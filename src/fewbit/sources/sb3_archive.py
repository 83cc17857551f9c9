"""What an SB3 zip says in readable text, nothing unpickled: policy class, its arguments, spaces; and its tensors.

The `data` JSON keeps a pickle and, beside it, the text of every field; only the text is read. Spaces are parsed from it.
`policy.pth` goes through torch.load(weights_only=True), which takes the legacy (non-zip) tensor format too.
"""

import ast
import io
import json
import math
import re
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium.spaces as spaces
import numpy as np
import torch

from fewbit.errors import FewbitError

MAX_BYTES = {"data": 64 << 20, "policy.pth": 1 << 30}  # of a member, unpacked
MAX_SPACE = 1 << 24  # numbers in an observation or action
_IGNORED = {":type:", ":serialized:", "optimizer_class", "optimizer_kwargs", "device", "lr_schedule", "n_env", "n_steps"}


@dataclass(frozen=True)
class Archive:
    """policy: (module, class) as the file names them; kwargs for it; state: name -> tensor; normalized: was it trained behind a
    VecNormalize? Known of what keeps no replay buffer: the observation before normalisation is kept only there."""

    module: str
    policy: str
    kwargs: dict[str, Any]
    observation_space: spaces.Space
    action_space: spaces.Space
    state: dict[str, torch.Tensor]
    normalized: bool = False


def read(path: Path) -> Archive:
    """The archive in path; every defect is one FewbitError that names the path."""
    try:
        with zipfile.ZipFile(path) as z:
            members = {i.filename: i for i in z.infolist()}
            for name, most in MAX_BYTES.items():
                if name not in members:
                    raise FewbitError(f"holds no {name}; this is no Stable-Baselines3 model")
                if members[name].file_size > most:
                    raise FewbitError(f"its {name} unpacks to {members[name].file_size} bytes; refused")
            data, weights = json.loads(z.read("data")), z.read("policy.pth")
        _check_unpacked(weights)
        state = torch.load(io.BytesIO(weights), map_location="cpu", weights_only=True)
        return _archive(data, state)
    except FewbitError as e:
        raise FewbitError(f"{path}: {e}") from None
    except zipfile.BadZipFile:
        raise FewbitError(f"{path}: not a zip file, or truncated; save the model again") from None
    except Exception as e:
        reason = (
            "its policy.pth holds more than tensors, which could execute code; nothing was run"
            if "eights" in str(e)
            else f"damaged or not a Stable-Baselines3 model ({type(e).__name__})"
        )
        raise FewbitError(f"{path}: {reason}") from None


def _check_unpacked(weights: bytes) -> None:
    """policy.pth may itself be a zip file, of members that torch unpacks."""
    if zipfile.is_zipfile(io.BytesIO(weights)):
        with zipfile.ZipFile(io.BytesIO(weights)) as z:
            size = sum(i.file_size for i in z.infolist())
        if size > MAX_BYTES["policy.pth"]:
            raise FewbitError(f"its policy.pth unpacks to {size} bytes; refused")


def _archive(data: dict[str, Any], state: Any) -> Archive:
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise FewbitError("its policy.pth is no table of tensors")
    large = next((k for k, v in state.items() if v.numel() * v.element_size() > v.untyped_storage().nbytes()), None)
    if large is not None:
        raise FewbitError(f"tensor {large} declares {list(state[large].shape)}, more than the file holds; refused")
    bad = next((k for k, v in state.items() if v.is_floating_point() and not torch.isfinite(v).all()), None)
    if bad is not None:
        raise FewbitError(f"tensor {bad} holds NaN or infinity; the training diverged")
    described = data["policy_class"]
    found = re.search(r"<function (\w+)\.__init__", str(described.get("__init__", "")))
    given = data.get("policy_kwargs", {})
    kwargs = {k: _argument(k, v) for k, v in given.items() if k not in _IGNORED}
    if data.get("use_sde"):
        kwargs["use_sde"] = True
    return Archive(
        described.get("__module__", ""),
        found.group(1) if found else "",
        kwargs,
        space(data["observation_space"]),
        space(data["action_space"]),
        state,
        "buffer_size" not in data and data.get("_last_original_obs") is not None,
    )


def _argument(name: str, value: Any) -> Any:
    """A policy argument from its text: literals, and classes of torch.nn or Stable-Baselines3 by name."""
    if not isinstance(value, str):
        if isinstance(value, dict) and ":type:" in value:
            if "class" in value[":type:"] and "__module__" in value and "torch.nn" in str(value["__module__"]):
                raise FewbitError(f"policy argument {name} cannot be read from its text")
            return {k: _argument(k, v) for k, v in value.items() if k not in _IGNORED}
        return _net_arch(value) if name == "net_arch" else value
    found = re.fullmatch(r"<class '([\w.]+)\.(\w+)'>", value)
    if found:
        return _class(name, *found.groups())
    try:
        literal = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        raise FewbitError(f"policy argument {name} = {value[:80]} cannot be read without unpickling it") from None
    return _net_arch(literal) if name == "net_arch" else literal


def _net_arch(value: Any) -> Any:
    """The old spelling [{'pi': …, 'vf': …}] is today's {'pi': …, 'vf': …}."""
    return value[0] if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict) else value


def _class(argument: str, module: str, name: str) -> Any:
    if module.startswith("torch.nn.modules."):
        kind = getattr(torch.nn, name, None)
        if isinstance(kind, type) and issubclass(kind, torch.nn.Module):
            return kind
    if module == "stable_baselines3.common.torch_layers":
        import stable_baselines3.common.torch_layers as layers

        kind = getattr(layers, name, None)
        if isinstance(kind, type) and issubclass(kind, torch.nn.Module):
            return kind
    raise FewbitError(
        f"policy argument {argument} is the class {module}.{name}, which is not in torch or Stable-Baselines3; "
        "load the model yourself and pass the live object to fewbit.quantize"
    )


def space(text: dict[str, Any]) -> spaces.Space:
    """A gymnasium space from the readable fields of its JSON entry."""
    kind = re.sub(r"\W", "", str(text[":type:"]).rsplit(".", 1)[-1])
    if kind == "Discrete":
        return spaces.Discrete(int(text["n"]), start=int(text.get("start", 0)))
    if kind == "MultiDiscrete":
        return spaces.MultiDiscrete(_numbers(str(text["nvec"])).astype(np.int64))
    if kind == "MultiBinary":
        return _switches(text["n"])
    if kind == "Dict":
        return _parts(str(text["spaces"]))
    if kind != "Box":
        raise FewbitError(f"a {kind} space is not supported")
    given = text.get("shape") or text.get("_shape")
    shape = _shape(ast.literal_eval(given) if isinstance(given, str) else given or ())
    dtype = np.dtype(str(text["dtype"])).type
    low, high = (_bounds(str(text[k]), shape, k) for k in ("low", "high"))
    return spaces.Box(low.astype(dtype), high.astype(dtype), shape, dtype)


_PARTS: dict[str, tuple[str, Any]] = {  # kind -> (its text within the brackets, what it becomes)
    "Box": (
        r"(.+?), (.+?), \(([\d, ]*)\), (\w+)\)",
        lambda lo, hi, s, t: spaces.Box(_bound(lo), _bound(hi), _shape(d for d in s.split(",") if d.strip()), np.dtype(t).type),
    ),
    "Discrete": (r"(\d+)(?:, start=(-?\d+))?\)", lambda n, start: spaces.Discrete(int(n), start=int(start or 0))),
    "MultiDiscrete": (r"\[([\d\s,]+)\]\)", lambda nvec: spaces.MultiDiscrete(_numbers(nvec).astype(np.int64))),
    "MultiBinary": (r"(\d+|[(\[][\d, ]+[)\]])\)", lambda n: _switches(n)),
}


def _parts(text: str) -> spaces.Dict:
    """A dictionary of spaces from its text, {'a': Box(…), 'b': Discrete(4)} or OrderedDict([('a', Box(…))])."""
    found = {}
    for part in re.finditer(r"'([^']+)'\s*[,:]\s*(\w+)\(", text):
        name, kind = part.groups()
        pattern, make = _PARTS.get(kind, ("", None))
        inside = re.compile(pattern, re.DOTALL).match(text, part.end()) if make else None
        if inside is None:
            raise FewbitError(
                f"part {name} of its observation is a {kind} space, which cannot be read from its text; "
                "load the model yourself and pass the live object to fewbit.quantize"
            )
        found[name] = make(*inside.groups())
    if not found:
        raise FewbitError("its dictionary observation space cannot be read from its text")
    return spaces.Dict(found)


def _switches(n: Any) -> spaces.MultiBinary:
    """n: how many, or a shape; or the text of either."""
    given = ast.literal_eval(n) if isinstance(n, str) else n
    return spaces.MultiBinary(_shape([given])[0] if isinstance(given, int) else list(_shape(given)))


def _shape(dims: Iterable[Any]) -> tuple[int, ...]:
    shape = tuple(int(d) for d in dims)
    if math.prod(shape) > MAX_SPACE:
        raise FewbitError(f"a space of shape {list(shape)} is refused")
    return shape


def _bound(text: str) -> float:
    """The common bound; observation bounds matter to images alone, and those are uniform."""
    return float(_numbers(text)[0])


def _numbers(text: str) -> np.ndarray:
    return np.array([float(w) for w in re.findall(r"[-+]?(?:inf|nan|\d+\.?\d*(?:e[-+]?\d+)?)", text)])


def _bounds(text: str, shape: tuple[int, ...], which: str) -> np.ndarray:
    numbers = _numbers(text)
    if numbers.size == math.prod(shape):
        return numbers.reshape(shape)
    if numbers.size and np.ptp(numbers) == 0 or numbers.size and np.isinf(numbers).all():
        return np.full(shape, numbers[0])  # NumPy shortens large arrays with "..."; equal ends are taken for the middle
    raise FewbitError(f"the bound {which} of a space cannot be read from its text")
