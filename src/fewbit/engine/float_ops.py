"""The float operators that may stand before, after or (exact: no) between the integer ones, in NumPy, one dict.

Each keeps its inputs' dtype: float32 when a program runs, float64 when a table's knots are computed.
"""

import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from fewbit.errors import Unsupported
from fewbit.graph import patches
from fewbit.numerics import affine
from fewbit.numerics.formats import INTEGERS

# One IEEE operation a number, the same bits on every machine: they may stand outside the integers without harm to "exact".
EXACT = {
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Min",
    "Max",
    "Clip",
    "Relu",
    "Neg",
    "Abs",
    "Concat",
    "Reshape",
    "Flatten",
    "Cast",
    "ArgMax",
    "Squeeze",
    "Unsqueeze",
    "Identity",
    "Slice",
    "Split",
    "Transpose",
}

# What only moves values about, and so does with codes what it does with the numbers they stand for.
MOVES = {"Identity", "Reshape", "Flatten", "Slice", "Split", "Transpose", "Squeeze", "Unsqueeze"}

_CAST = {
    **{1: np.float32, 2: np.uint8, 3: np.int8, 4: np.uint16, 5: np.int16, 6: np.int32, 7: np.int64, 9: np.bool_},
    **{10: np.float16, 11: np.float64, 12: np.uint32, 13: np.uint64, 16: ml_dtypes.bfloat16},
}


def cast_type(a: dict) -> np.dtype:
    """Of a Cast's attributes; refuses what NumPy has no numbers for."""
    if a["to"] not in _CAST:
        raise Unsupported(f"a Cast to ONNX's type {a['to']} is not run by the engine")
    return np.dtype(_CAST[a["to"]])


def _cast(a: dict, x: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # of NaN to an integer, which ONNX leaves open
        return x.astype(cast_type(a))


def _divide(a: dict, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Of integers towards zero, as C does."""
    if x.dtype.kind == "f":
        return x / y
    return (np.sign(x) * np.sign(y) * (np.abs(x) // np.abs(y))).astype(x.dtype)


def _gemm(a: dict, x: np.ndarray, w: np.ndarray, b: Any = None) -> np.ndarray:
    y = (x.T if a.get("transA") else x) @ (w.T if a.get("transB") else w)
    alpha, beta = (y.dtype.type(a.get(k, 1.0)) for k in ("alpha", "beta"))
    y = y if alpha == 1 else alpha * y
    return y if b is None else y + (b if beta == 1 else beta * b)


def _softmax(a: dict, x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(a.get("axis", -1), keepdims=True))
    return e / e.sum(a.get("axis", -1), keepdims=True)


def _log_softmax(a: dict, x: np.ndarray) -> np.ndarray:
    x = x - x.max(a.get("axis", -1), keepdims=True)
    return x - np.log(np.exp(x).sum(a.get("axis", -1), keepdims=True))


def _clip(a: dict, x: np.ndarray, low: Any = None, high: Any = None) -> np.ndarray:
    x = x if low is None else np.maximum(x, low.astype(x.dtype))
    return x if high is None else np.minimum(x, high.astype(x.dtype))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return (1 / (1 + np.exp(-np.clip(x, -80, 80)))).astype(x.dtype)


def _reshape(a: dict, x: np.ndarray, shape: np.ndarray) -> np.ndarray:
    return x.reshape([x.shape[i] if d == 0 and not a.get("allowzero") else int(d) for i, d in enumerate(shape)])


def _slice(a: dict, x: np.ndarray, starts: Any, ends: Any, axes: Any = None, steps: Any = None) -> np.ndarray:
    index = [slice(None)] * x.ndim
    axes = range(len(starts)) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        index[int(axis)] = slice(int(start), int(end), int(step))
    return x[tuple(index)]


def _split(a: dict, x: np.ndarray, sizes: Any = None) -> np.ndarray:
    """One output of a Split: the lowering says which."""
    axis, k = a.get("axis", 0), a["output"]
    if sizes is None:  # all alike, the last one smaller
        each = -(-x.shape[axis] // a["num_outputs"])
        sizes = [each] * a["num_outputs"]
    start = int(sum(sizes[:k]))
    return np.take(x, range(start, min(start + int(sizes[k]), x.shape[axis])), axis)


def _dynamic_quantize(a: dict, x: np.ndarray) -> np.ndarray:
    """DynamicQuantizeLinear-11: codes uint8, scale float32 or zero point uint8, as the lowering asks."""
    low, high = np.minimum(x.min(initial=0), np.float32(0)), np.maximum(x.max(initial=0), np.float32(0))
    scale = np.float32((high - low) / np.float32(255)) or np.float32(1)
    zero = np.uint8(np.clip(np.rint((np.float32(0) - low) / scale), 0, 255))
    return (affine.quantize(x, scale, int(zero), INTEGERS["uint8"]), np.asarray(scale), np.asarray(zero))[a["output"]]


def _matmul_integer(a: dict, x: np.ndarray, w: np.ndarray, zx: Any = 0, zw: Any = 0) -> np.ndarray:
    """Sums of products of codes, int32; formed in float64, which holds them exactly."""
    return ((x.astype(np.float64) - np.float64(zx)) @ (w.astype(np.float64) - np.float64(zw))).astype(np.int32)


def _argmax(a: dict, x: np.ndarray) -> np.ndarray:
    axis = a.get("axis", 0)
    best = x.shape[axis] - 1 - np.flip(x, axis).argmax(axis) if a.get("select_last_index") else x.argmax(axis)
    return np.expand_dims(best, axis) if a.get("keepdims", 1) else best


def _reduce_mean(a: dict, x: np.ndarray, axes: Any = None) -> np.ndarray:
    if axes is None or not len(axes):  # all of them, or none
        if a.get("noop_with_empty_axes"):
            return x
        axes = range(x.ndim)
    return np.asarray(x.mean(axis=tuple(int(i) for i in axes), keepdims=bool(a.get("keepdims", 1)), dtype=x.dtype))


def _elu(a: dict, x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, x.dtype.type(a.get("alpha", 1.0)) * np.expm1(np.minimum(x, 0))).astype(x.dtype)


def _selu(a: dict, x: np.ndarray) -> np.ndarray:
    alpha, gamma = a.get("alpha", 1.67326319217681884765625), a.get("gamma", 1.05070102214813232421875)
    return (gamma * np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))).astype(x.dtype)


def _celu(a: dict, x: np.ndarray) -> np.ndarray:
    alpha = a.get("alpha", 1.0)
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0) / alpha)).astype(x.dtype)


def _hard_sigmoid(a: dict, x: np.ndarray) -> np.ndarray:
    return np.clip(a.get("alpha", 0.2) * x + a.get("beta", 0.5), 0, 1).astype(x.dtype)


def _erf(x: np.ndarray) -> np.ndarray:
    """NumPy has none: the standard library's, number by number."""
    return np.array([math.erf(v) for v in x.ravel()], x.dtype).reshape(x.shape)


def _gelu(a: dict, x: np.ndarray) -> np.ndarray:
    if a.get("approximate", "none") == "tanh":
        return (x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))).astype(x.dtype)
    return (x / 2 * (1 + _erf(x / math.sqrt(2)))).astype(x.dtype)


def _conv(a: dict, x: np.ndarray, w: np.ndarray, b: Any = None) -> np.ndarray:
    seen = patches.gather(x, patches.window(a, w.shape[2:], "Conv"), 0, False)
    y = seen @ w.reshape(len(w), -1).T + (0 if b is None else b)
    return np.moveaxis(y, -1, 1).astype(x.dtype)


OPS: dict[str, Callable[..., np.ndarray]] = {
    "Add": lambda a, x, y: x + y,
    "Sub": lambda a, x, y: x - y,
    "Mul": lambda a, x, y: x * y,
    "Div": _divide,
    "Min": lambda a, *x: np.minimum.reduce(np.broadcast_arrays(*x)),
    "Max": lambda a, *x: np.maximum.reduce(np.broadcast_arrays(*x)),
    "Neg": lambda a, x: -x,
    "Abs": lambda a, x: np.abs(x),
    "Exp": lambda a, x: np.exp(x),
    "Relu": lambda a, x: np.maximum(x, 0),
    "LeakyRelu": lambda a, x: np.where(x >= 0, x, x * x.dtype.type(a.get("alpha", 0.01))),
    "Elu": _elu,
    "Selu": _selu,
    "Celu": _celu,
    "Gelu": _gelu,
    "Mish": lambda a, x: (x * np.tanh(np.logaddexp(0, x))).astype(x.dtype),
    "Erf": lambda a, x: _erf(x),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": lambda a, x: (x * np.clip(x / 6 + 0.5, 0, 1)).astype(x.dtype),
    "Softplus": lambda a, x: np.logaddexp(0, x).astype(x.dtype),
    "Tanh": lambda a, x: np.tanh(x),
    "Sigmoid": lambda a, x: _sigmoid(x),
    "Clip": _clip,
    "Identity": lambda a, x: x,
    "Concat": lambda a, *x: np.concatenate(x, axis=a["axis"]),
    "Reshape": _reshape,
    "Flatten": lambda a, x: x.reshape(int(np.prod(x.shape[: a.get("axis", 1)])), -1),
    "Transpose": lambda a, x: x.transpose(a.get("perm")),
    "Squeeze": lambda a, x, axes=None: np.squeeze(x, None if axes is None else tuple(int(i) for i in axes)),
    "Unsqueeze": lambda a, x, axes: np.expand_dims(x, tuple(int(i) for i in axes)),
    "Slice": _slice,
    "Split": _split,
    "Cast": _cast,
    "ArgMax": _argmax,
    "ReduceMean": _reduce_mean,
    "DynamicQuantizeLinear": _dynamic_quantize,
    "MatMulInteger": _matmul_integer,
    "Shape": lambda a, x: np.array(x.shape[a.get("start", 0) : a.get("end")], np.int64),
    "Expand": lambda a, x, shape: x * np.ones([int(d) for d in shape], x.dtype),
    "Gather": lambda a, x, index: np.take(x, index, axis=a.get("axis", 0)),
    "MatMul": lambda a, x, w: x @ w,
    "Conv": _conv,
    "Gemm": _gemm,
    "Softmax": _softmax,
    "LogSoftmax": _log_softmax,
}
