"""The float operators that may stand behind a trained layer, in torch: one dict, the names and attributes of engine/float_ops.

ArgMax gives back what it chooses from: a choice has no gradient.
"""

from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
import torch

Tensor = torch.Tensor


def _numbers(x: Any) -> list[int]:
    return [int(i) for i in np.asarray(x).reshape(-1)]


def _reshape(a: dict, x: Tensor, shape: Any) -> Tensor:
    return x.reshape([x.shape[i] if d == 0 and not a.get("allowzero") else d for i, d in enumerate(_numbers(shape))])


def _slice(a: dict, x: Tensor, starts: Any, ends: Any, axes: Any = None, steps: Any = None) -> Tensor:
    index = [slice(None)] * x.ndim
    starts, ends = _numbers(starts), _numbers(ends)
    axes = range(len(starts)) if axes is None else _numbers(axes)
    steps = [1] * len(starts) if steps is None else _numbers(steps)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        index[axis] = slice(start, end, step)
    return x[tuple(index)]


def _split(a: dict, x: Tensor, sizes: Any = None) -> Tensor:
    axis, size = a.get("axis", 0), x.shape[a.get("axis", 0)]
    each = -(-size // a["num_outputs"])
    lengths = [each] * a["num_outputs"] if sizes is None else _numbers(sizes)
    start = sum(lengths[: a["output"]])
    return x.narrow(axis, start, min(lengths[a["output"]], size - start))


def _squeeze(a: dict, x: Tensor, axes: Any = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(_numbers(axes)))


def _unsqueeze(a: dict, x: Tensor, axes: Any) -> Tensor:
    for axis in sorted(_numbers(axes)):
        x = x.unsqueeze(axis)
    return x


def _clip(a: dict, x: Tensor, low: Any = None, high: Any = None) -> Tensor:
    x = x if low is None else torch.maximum(x, torch.as_tensor(low))
    return x if high is None else torch.minimum(x, torch.as_tensor(high))


def _transpose(a: dict, x: Tensor) -> Tensor:
    return x.permute(a.get("perm") or tuple(reversed(range(x.ndim))))


FLOATS: dict[str, Callable[..., Tensor]] = {
    "Identity": lambda a, x: x,
    "Reshape": _reshape,
    "Flatten": lambda a, x: x.flatten(1) if a.get("axis", 1) == 1 else x.reshape(int(np.prod(x.shape[: a["axis"]])), -1),
    "Transpose": _transpose,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Slice": _slice,
    "Split": _split,
    "Concat": lambda a, *x: torch.cat([torch.as_tensor(i) for i in x], a["axis"]),
    "Add": lambda a, x, y: x + y,
    "Sub": lambda a, x, y: x - y,
    "Mul": lambda a, x, y: x * y,
    "Div": lambda a, x, y: x / y,
    "Neg": lambda a, x: -x,
    "Min": lambda a, *x: reduce(torch.minimum, [torch.as_tensor(i) for i in x]),
    "Max": lambda a, *x: reduce(torch.maximum, [torch.as_tensor(i) for i in x]),
    "Clip": _clip,
    "Relu": lambda a, x: torch.relu(x),
    "Tanh": lambda a, x: torch.tanh(x),
    "Sigmoid": lambda a, x: torch.sigmoid(x),
    "Elu": lambda a, x: torch.nn.functional.elu(x, a.get("alpha", 1.0)),
    "Cast": lambda a, x: x,
    "ArgMax": lambda a, x: x,
}
