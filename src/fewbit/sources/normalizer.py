"""Read a vecnormalize.pkl without unpickling it: a reader that can build arrays and nothing else.

A pickle is a program. This one may name only the classes below; those that are not arrays become inert records. Any other
name (os.system, builtins.eval, …) is refused before anything is called.
"""

import io
import pickle
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


def _dtype(name: Any, *rest: Any) -> np.dtype:
    dtype = np.dtype(name if isinstance(name, str) else "O")
    if dtype.kind not in "biuf":
        raise FewbitError("the normaliser holds an array of objects, which could hide code; it is refused")
    return dtype


def _array(*args: Any) -> np.ndarray:
    return np.ndarray((0,), np.uint8)


def _scalar(dtype: np.dtype, data: bytes) -> Any:
    return np.frombuffer(data, _dtype(np.dtype(dtype).str), 1)[0]


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any = "C", *rest: Any) -> np.ndarray:
    return np.frombuffer(data, _dtype(np.dtype(dtype).str)).reshape(shape, order="F" if order == "F" else "C")


@lru_cache(8)  # a pickle may ask for the bytes of one long text any number of times
def _latin1(text: str, encoding: str) -> bytes:
    return text.encode("latin1")


_NUMPY: dict[str, Any] = {
    "ndarray": _Record,
    "dtype": _dtype,
    "_reconstruct": _array,
    "scalar": _scalar,
    "_frombuffer": _from_buffer,
}
_NUMPY_MODULES = {"numpy", "numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric", "numpy._core.numeric"}
_RECORDS = {
    "VecNormalize",
    "RunningMeanStd",
    "Box",
    "Dict",
    "Discrete",
    "MultiDiscrete",
    "MultiBinary",
    "OrderedDict",
    "RandomState",
    "Generator",
    "__randomstate_ctor",
    "__generator_ctor",
    "__bit_generator_ctor",
    "PCG64",
    "MT19937",
    "RandomNumberGenerator",
    "SeedSequence",
}
_RECORD_ROOTS = ("stable_baselines3.", "gym.", "gymnasium.", "numpy.random.", "collections")


class _Reader(pickle._Unpickler):  # type: ignore[name-defined]  # the Python one: its every step can be reasoned about
    def find_class(self, module: str, name: str) -> Any:
        if module in _NUMPY_MODULES and name in _NUMPY:
            return _NUMPY[name]
        if (module, name) == ("_codecs", "encode"):
            return _latin1
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if module in ("builtins", "__builtin__") and name == "set":
            return set
        if name in _RECORDS and (module + ".").startswith(_RECORD_ROOTS):
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
