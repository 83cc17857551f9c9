"""Convolutions and pooling over images and signals: from an input to features [batch, n]."""

from collections.abc import Callable

import numpy as np

from random_graphs import moves
from random_graphs.activations import activation
from random_graphs.builder import Builder, number_of
from random_graphs.layers import batch_norm

ROWS = 48
Observation = Callable[..., str]


def image(b: Builder, feeds: dict[str, np.ndarray]) -> str:
    """Convolutions, pooling, then flat: [batch, channels, height, width] to [batch, features]."""
    channels, height, width = b.below(1, 3), b.below(5, 9), b.below(5, 9)
    if b.chance(0.3):
        name = b.input((channels, height, width), np.uint8)
        feeds[name] = b.rng.integers(0, 256, (ROWS, channels, height, width)).astype(np.uint8)
        x = b.node("Cast", name, to=number_of(b.habits.dtype), dtypes=[b.habits.dtype])
        x = b.node("Div", x, b.constant(b.number(255), "white"))
    else:
        x = b.input((channels, height, width), b.habits.dtype)
        feeds[x] = b.rng.normal(size=(ROWS, channels, height, width)).clip(-3, 3).astype(b.habits.dtype)
    for _ in range(b.below(1, 2)):
        x = conv(b, x)
        x = batch_norm(b, x) if b.chance(0.3) else x
        x = activation(b, x) if b.chance(0.8) else x
        x = pool(b, x) if b.chance(0.35) else x
        x = image_extra(b, x) if b.chance(0.25) else x
    return _flat(b, x)


def signal(b: Builder, feeds: dict[str, np.ndarray], observation: Observation) -> str:
    """A one-dimensional convolution over a history, channels first or brought there by a Transpose."""
    channels, length = b.below(1, 4), b.below(6, 12)
    if b.chance(0.5):
        x = observation(b, feeds, channels, length)
    else:
        x = observation(b, feeds, length, channels)
        x = b.node("Transpose", x, perm=[0, 2, 1], shapes=[(None, channels, length)])
    for _ in range(b.below(1, 2)):
        x = conv(b, x)
        x = batch_norm(b, x) if b.chance(0.3) else x
        x = activation(b, x)
        x = pool(b, x) if b.chance(0.3) else x
    return _flat(b, x)


def _flat(b: Builder, x: str) -> str:
    shape = b.shapes[x]
    rank, total = len(shape), int(np.prod([d for d in shape if d is not None]))
    way = b.one("flatten", "flatten", "reshape", "global", "mean")
    if way == "global":
        y = b.node(b.one("GlobalAveragePool", "GlobalAveragePool", "GlobalMaxPool"), x, shapes=[(*shape[:2], *[1] * (rank - 2))])
        if b.chance(0.4):
            return b.axes("Squeeze", y, list(range(2, rank)), shape[:2], 13)
        return b.node("Flatten", y, axis=b.one(None, 1), shapes=[shape[:2]])
    if way == "mean":
        axes = list(range(2, rank)) if b.opset < 11 or b.chance(0.5) else [k - rank for k in range(2, rank)]
        return b.axes("ReduceMean", x, axes, shape[:2], 18, keepdims=0)
    if way == "reshape":
        return moves.reshape_to(b, x, (total,))
    return b.node("Flatten", x, axis=b.one(None, 1), shapes=[(None, total)])


def window(b: Builder, x: str, op: str) -> tuple[dict, list[int]]:
    """Attributes of a window over the axes behind the channels, and the sizes that come out."""
    sizes = [int(d or 0) for d in b.shapes[x][2:]]
    kernel = [b.below(1, min(3, s)) for s in sizes]
    attributes: dict = {"kernel_shape": kernel}
    strides = [b.below(1, 2) for _ in sizes] if b.chance(0.4) else [1] * len(sizes)
    if strides != [1] * len(sizes) or b.chance(0.3):
        attributes["strides"] = strides
    dilations = [1] * len(sizes)
    if b.chance(0.15) and (op == "Conv" or (op == "MaxPool" and b.opset >= 10) or (op == "AveragePool" and b.opset >= 19)):
        dilations = [2 if (k - 1) * 2 < s else 1 for k, s in zip(kernel, sizes, strict=True)]
        attributes["dilations"] = dilations
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    padding = b.one("none", "pads", "pads", "same", "valid", "explicit zero")
    skips = op != "Conv" and any(t > k for t, k in zip(strides, kernel, strict=True))  # runtimes disagree on what that means
    if padding == "same" and ("dilations" in attributes or skips):
        padding = "none"
    if padding == "same":
        attributes["auto_pad"] = b.one("SAME_UPPER", "SAME_LOWER")
        return attributes, [-(-s // t) for s, t in zip(sizes, strides, strict=True)]
    before, after = [0] * len(sizes), [0] * len(sizes)
    if padding == "pads":
        before, after = ([b.below(0, min(1, r - 1)) for r in reach] for _ in range(2))
        attributes["pads"] = before + after
    elif padding == "valid":
        attributes["auto_pad"] = b.one("VALID", "NOTSET")
    elif padding == "explicit zero":
        attributes["pads"] = before + after
    out = [(s + p + q - r) / t for s, p, q, r, t in zip(sizes, before, after, reach, strides, strict=True)]
    if op != "Conv" and b.opset >= 10 and b.chance(0.2) and padding != "valid" and not any(before + after):
        attributes["ceil_mode"] = 1
        return attributes, [int(np.ceil(o)) + 1 for o in out]
    return attributes, [int(o) + 1 for o in out]


def conv(b: Builder, x: str) -> str:
    channels = int(b.shapes[x][1] or 0)
    attributes, sizes = window(b, x, "Conv")
    kernel = attributes["kernel_shape"]
    group = channels if b.chance(0.15) else 1
    out = group * b.below(1, 2) if group > 1 else b.below(1, 5)
    if group > 1 or b.chance(0.3):
        attributes["group"] = group
    fan = channels // group * int(np.prod(kernel))
    inputs = [x, b.weight(b.random(out, channels // group, *kernel, scale=fan**-0.5), "kernel")]
    if b.chance(0.8):
        inputs.append(b.constant(b.random(out, scale=0.3), "bias"))
    elif b.chance(0.3):
        inputs.append("")
    if b.chance(0.2):
        del attributes["kernel_shape"]
    return b.node("Conv", *inputs, shapes=[(None, out, *sizes)], **attributes)


def pool(b: Builder, x: str) -> str:
    op = b.one("MaxPool", "MaxPool", "AveragePool")
    attributes, sizes = window(b, x, op)
    if op == "AveragePool":
        attributes["count_include_pad"] = b.one(None, 0, 1)
    return b.node(op, x, shapes=[(*b.shapes[x][:2], *sizes)], **attributes)


def image_extra(b: Builder, x: str) -> str:
    """What networks do to images between convolutions: a pad, a residual, a sum over channels, a number for each channel."""
    shape = b.shapes[x]
    way = b.one("pad", "residual", "concat", "channel", "affine")
    if way == "pad":
        rest = [0] * (len(shape) - 2)
        before = [0, 0, *(b.below(0, 1) for _ in rest)]
        after = [0, 0, *(b.below(0, 1) for _ in rest)]
        if any(d is not None and d < 2 for d in shape[2:]):
            return x
        return moves.pad(b, x, before, after)
    if way == "residual":
        return b.node(b.one("Add", "Mul"), x, activation(b, x))
    if way == "concat":
        parts = [x, activation(b, x)]
        return b.node(
            "Concat",
            *parts,
            axis=b.one(1, 1 - len(shape)) if b.opset >= 11 else 1,
            shapes=[(None, 2 * int(shape[1] or 0), *shape[2:])],
        )
    c = b.constant(np.abs(b.random(int(shape[1] or 0), *[1] * (len(shape) - 2))) + b.number(0.5), "channel")
    return b.node(b.one("Mul", "Div", "Add", "Sub"), x, c)
