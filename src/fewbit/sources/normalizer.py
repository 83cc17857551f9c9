"""Read a vecnormalize.pkl without unpickling it: a reader that can build arrays and nothing else.

A pickle is a program. What this one names is never imported: arrays of plain numbers are made from their bytes here, whatever
Stable-Baselines3, Gymnasium or NumPy's generators are asked for becomes an inert record, and any other name (os.system,
builtins.eval, …) is refused before anything is called.
"""

import io
import pickle
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from fewbit.errors import FewbitError

MAX_BYTES = 64 << 20


@dataclass(frozen=True)
class Normalizer:
    """clip((observation - mean) / sqrt(var + epsilon), +-clip), per input name ("" for a plain Box observation)."""

    mean: dict[str, np.ndarray]
    var: dict[str, np.ndarray]
    epsilon: float
    clip: float

    def apply(self, name: str, observation: np.ndarray) -> np.ndarray:
        """float64 oracle of what the captured graph does in float32."""
        if name not in self.mean:
            return observation
        scaled = (observation - self.mean[name]) / np.sqrt(self.var[name] + self.epsilon)
        return np.clip(scaled, -self.clip, self.clip)


class _Record:
    """Stands in for every object that is not an array: keeps its state, does nothing."""

    def __init__(self, *args: Any, **kwargs: Any):
        self.args = args

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict):
            state = state[1]
        if isinstance(state, dict):
            self.__dict__.update({k: v for k, v in state.items() if isinstance(k, str)})

    def __setitem__(self, key: Any, value: Any) -> None:
        pass


class _Dtype:
    """A dtype of plain numbers: its name, and the byte order that is set afterwards."""

    def __init__(self, name: Any, *rest: Any):
        if not isinstance(name, str) or not re.fullmatch(r"[<>|=]?[biuf][0-9]{1,2}", name):
            raise FewbitError("the normaliser holds an array of objects, which could hide code; it is refused")
        self.dtype = np.dtype(name)

    def __setstate__(self, state: Any) -> None:
        _, order, *rest = state
        if order not in ("<", ">", "|", "=") or any(part is not None for part in rest[:3]):
            raise FewbitError("the normaliser holds an array of records; it is refused")
        self.dtype = self.dtype.newbyteorder("<" if order == "=" else order)  # as written where "=" is little-endian


class _Array:
    """An array of plain numbers, made from its bytes; a copy in this machine's byte order."""

    def __init__(self, *args: Any):
        self.value: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        self.set(data, dtype, shape, "F" if fortran else "C")

    def set(self, data: Any, dtype: Any, shape: Any, order: Any) -> None:
        flat = np.frombuffer(data, _plain(dtype))
        self.value = flat.reshape(shape, order="F" if order == "F" else "C").astype(flat.dtype.newbyteorder("="))

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        if self.value is None:
            raise ValueError("an array without content")
        return self.value if dtype is None else self.value.astype(dtype)


def _plain(dtype: Any) -> np.dtype:
    if not isinstance(dtype, _Dtype):
        raise FewbitError("the normaliser holds an array without a dtype; it is refused")
    return dtype.dtype


def _scalar(dtype: Any, data: bytes) -> Any:
    return np.frombuffer(data, _plain(dtype), 1)[0]


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any = "C", *rest: Any) -> _Array:
    made = _Array()
    made.set(data, dtype, shape, order)
    return made


@lru_cache(8)  # a pickle may ask for the bytes of one long text any number of times
def _latin1(text: str, encoding: str) -> bytes:
    return text.encode("latin1")


def _bytes(data: Any = b"", *rest: Any) -> bytes:
    """bytes as protocol 2 spells them; never of a number, which would be a length."""
    if not isinstance(data, str | bytes):
        raise FewbitError("the normaliser asks for memory without content; it is refused")
    return data.encode("latin1") if isinstance(data, str) else data


_NUMPY: dict[str, Any] = {
    "ndarray": _Record,
    "dtype": _Dtype,
    "_reconstruct": _Array,
    "scalar": _scalar,
    "_frombuffer": _from_buffer,
}
_NUMPY_MODULES = {"numpy", "numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric", "numpy._core.numeric"}
# Of these only records are made, whatever they are called: the spaces' generators have other parts in every version of NumPy.
_RECORD_ROOTS = ("stable_baselines3.", "gym.", "gymnasium.", "numpy.random.", "collections.")


class _Reader(pickle._Unpickler):  # type: ignore[name-defined]  # the Python one: its every step can be reasoned about
    def find_class(self, module: str, name: str) -> Any:
        if module in _NUMPY_MODULES and name in _NUMPY:
            return _NUMPY[name]
        if (module, name) == ("_codecs", "encode"):
            return _latin1
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if module in ("builtins", "__builtin__") and name in ("set", "bytes"):
            return set if name == "set" else _bytes
        if f"{module}.".startswith(_RECORD_ROOTS):
            return _Record
        raise FewbitError(f"it names {module}.{name}, which is no part of a VecNormalize and could execute code; nothing was run")


def read(path: Path) -> Normalizer | None:
    """The normaliser in path; None where it does not normalise observations."""
    if not path.exists():
        raise FewbitError(f"{path}: no such file")
    if path.stat().st_size > MAX_BYTES:
        raise FewbitError(f"{path}: larger than 64 MiB, which no VecNormalize is")
    try:
        record = _Reader(io.BytesIO(path.read_bytes())).load()
        return _normalizer(vars(record))
    except FewbitError as e:
        raise FewbitError(f"{path}: {e}") from None
    except Exception as e:
        raise FewbitError(f"{path}: not a VecNormalize pickle, or truncated ({type(e).__name__})") from None


def _normalizer(state: dict[str, Any]) -> Normalizer | None:
    if not state["norm_obs"]:
        return None
    rms = state["obs_rms"]
    keys = state.get("norm_obs_keys")
    by_name = {k: v for k, v in rms.items() if keys is None or k in keys} if isinstance(rms, dict) else {"": rms}
    mean = {k: np.asarray(v.mean, np.float64) for k, v in by_name.items()}
    var = {k: np.asarray(v.var, np.float64) for k, v in by_name.items()}
    for name, array in [*mean.items(), *var.items()]:
        if mean[name].shape != var[name].shape:
            raise FewbitError(f"mean and variance are {list(mean[name].shape)} and {list(var[name].shape)}, which differ")
        if not np.isfinite(array).all():
            raise FewbitError(f"the statistics of observation {name or 'observation'} hold NaN or infinity")
    epsilon, clip = float(state["epsilon"]), float(state["clip_obs"])
    if min((float(v.min(initial=0)) for v in var.values()), default=0) + epsilon <= 0 or not clip > 0:
        raise FewbitError("a variance plus epsilon, or the clip, is not positive")
    return Normalizer(mean, var, epsilon, clip)
