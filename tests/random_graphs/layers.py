"""Layers with weights and what joins them: dense, normalisation, residuals, branches, attention."""

import numpy as np

from random_graphs.activations import activation
from random_graphs.builder import Builder
from random_graphs.moves import split


def dense(b: Builder, x: str, width: int | None = None) -> str:
    """[..., n] -> [..., width]: Gemm in any layout on rank 2, else MatMul and Add."""
    shape = b.shapes[x]
    n, width = shape[-1], width or b.below(2, 14)
    assert n is not None
    out = (*shape[:-1], width)
    if len(shape) == 2 and b.chance(0.65):
        return gemm(b, x, n, width)
    y = b.node("MatMul", x, b.weight(b.random(n, width, scale=n**-0.5)), shapes=[out])
    if b.chance(0.85):
        bias = b.constant(bias_like(b, width, len(shape)), "bias")
        y = b.node("Add", *((y, bias) if b.chance(0.6) else (bias, y)), shapes=[out])
    return y


def dense_activation(b: Builder, x: str) -> str:
    return activation(b, dense(b, x))


def bias_like(b: Builder, width: int, rank: int) -> np.ndarray:
    shape = b.one((width,), (width,), (width,), (1,) * (rank - 1) + (width,), (1,), ())
    return b.random(*shape, scale=0.3)


def gemm(b: Builder, x: str, n: int, width: int) -> str:
    trans = b.chance(0.7)
    weight = b.weight(b.random(*((width, n) if trans else (n, width)), scale=n**-0.5))
    attributes = {"transB": 1} if trans else {"transB": b.one(None, 0)}
    if b.chance(0.15):
        attributes["alpha"] = b.one(1.0, 0.5, 2.0, -1.0)
    if b.chance(0.15):
        attributes["beta"] = b.one(1.0, 0.5, 0.0, 3.0)
    if b.chance(0.03):
        x = b.node("Transpose", x, shapes=[(n, None)], perm=[1, 0])
        attributes["transA"] = 1
    elif b.chance(0.1):
        attributes["transA"] = 0
    inputs = [x, weight]
    absent = b.opset >= 11 and b.chance(0.15)
    if not absent:
        inputs.append(b.constant(bias_like(b, width, 2), "bias"))
    elif b.chance(0.5):
        inputs.append("")
    return b.node("Gemm", *inputs, shapes=[(None, width)], **attributes)


def batch_norm(b: Builder, x: str) -> str:
    channels = b.shapes[x][1]
    make = [np.abs(b.random(channels)) + b.number(0.5), b.random(channels, scale=0.3), b.random(channels, scale=0.3),
            np.abs(b.random(channels)) + b.number(0.3)]  # fmt: skip
    inputs = [b.constant(a.astype(b.habits.dtype), h) for a, h in zip(make, ("scale", "B", "mean", "var"), strict=True)]
    training = {"training_mode": 0} if b.opset >= 14 and b.chance(0.2) else {}
    return b.node("BatchNormalization", x, *inputs, epsilon=b.one(None, 1e-5, 1e-3), momentum=b.one(None, 0.9), **training)


def layer_norm(b: Builder, x: str) -> str:
    """The operator from opset 17 on, or the nodes that exporters write before."""
    width, shape = b.shapes[x][-1], b.shapes[x]
    scale, bias = (
        b.constant(a.astype(b.habits.dtype), "norm") for a in (np.abs(b.random(width)) + 0.5, b.random(width, scale=0.2))
    )
    if b.opset >= 17 and b.chance(0.6):
        inputs = [x, scale] + ([bias] if b.chance(0.8) else [])
        return b.node("LayerNormalization", *inputs, axis=b.one(None, -1, len(shape) - 1), epsilon=b.one(None, 1e-5, 1e-3))
    one = (*shape[:-1], 1)
    mean = b.axes("ReduceMean", x, [-1], one, 18, keepdims=b.one(None, 1))
    centred = b.node("Sub", x, mean)
    two = b.constant(b.number(2), "two")
    square = b.node("Pow", centred, two) if b.chance(0.6) else b.node("Mul", centred, centred)
    variance = b.axes("ReduceMean", square, [-1], one, 18)
    root = b.node("Sqrt", b.node("Add", variance, b.constant(b.number(1e-3), "eps")))
    normed = b.node("Div", centred, root)
    return b.node("Add", b.node("Mul", normed, scale), bias)


def affine(b: Builder, x: str) -> str:
    """Add, Sub, Mul or Div with a constant: a number, or one of each column."""
    op = b.one("Add", "Sub", "Mul", "Div")
    shape = b.one((), (1,), b.shapes[x][-1:], (1, *b.shapes[x][1:]))
    array = b.random(*shape) if op in ("Add", "Sub") else (np.abs(b.random(*shape)) + 0.5) * b.one(1, -1)
    c = b.constant(array.astype(b.habits.dtype), "operand")
    swapped = op != "Div" and b.chance(0.3)
    return b.node(op, *((c, x) if swapped else (x, c)), shapes=[b.shapes[x]])


def residual(b: Builder, x: str) -> str:
    """x and a function of it meet; the join is what networks have."""
    y = activation(b, dense(b, x, b.shapes[x][-1]))
    op = b.one("Add", "Add", "Add", "Sub", "Mul", "Max", "Min", "Sum")
    if op in ("Max", "Min", "Sum") and b.opset < 8:
        op = "Add"
    return b.node(op, *((x, y) if b.chance(0.5) else (y, x)))


def branches(b: Builder, x: str) -> str:
    """Two or three branches of one value, concatenated."""
    parts = [activation(b, dense(b, x, b.below(2, 6))) for _ in range(b.below(1, 2))]
    parts.insert(b.below(0, len(parts)), x)
    shape = (*b.shapes[x][:-1], sum(int(b.shapes[p][-1] or 0) for p in parts))
    return b.node("Concat", *parts, axis=b.one(-1, len(shape) - 1), shapes=[shape])


def split_join(b: Builder, x: str) -> str:
    """A Split, its parts used apart and joined again: GLU, dueling heads, mean and deviation."""
    width = b.shapes[x][-1]
    assert width is not None
    if width < 2:
        return x
    parts = split(b, x, min(b.below(2, 3), width))
    if b.chance(0.4) and b.shapes[parts[0]] == b.shapes[parts[1]]:
        return b.node("Mul", parts[0], b.node("Sigmoid", parts[1]))
    if b.chance(0.3):
        return parts[b.below(0, len(parts) - 1)]
    parts = [activation(b, p) if b.chance(0.5) else p for p in parts]
    if b.chance(0.3):
        parts = parts[::-1]
    shape = (*b.shapes[x][:-1], sum(int(b.shapes[p][-1] or 0) for p in parts))
    return b.node("Concat", *parts, axis=b.one(-1, len(shape) - 1), shapes=[shape])


def soft(b: Builder, x: str) -> str:
    """Softmax or its logarithm along the last axis (before opset 13 that is the default on rank 2 alone)."""
    axis = b.one(None, -1, len(b.shapes[x]) - 1) if b.opset >= 13 or len(b.shapes[x]) == 2 else len(b.shapes[x]) - 1
    if axis == -1 and b.opset < 11:
        axis = len(b.shapes[x]) - 1
    return b.node(b.one("Softmax", "Softmax", "LogSoftmax"), x, axis=axis)


def attention(b: Builder, x: str) -> str:
    """A product of two computed values: scores of columns seen as tokens, or of the tokens themselves."""
    shape = b.shapes[x]
    if len(shape) != 3:
        return split_join(b, x)
    q, k = (dense(b, x, 4) for _ in range(2))
    kt = b.node("Transpose", k, perm=[0, 2, 1], shapes=[(None, 4, shape[1])])
    scores = b.node("MatMul", q, kt, shapes=[(None, shape[1], shape[1])])
    scores = b.node("Div", scores, b.constant(b.number(2.0), "root"))
    weights = b.node("Softmax", scores, axis=-1 if b.opset >= 13 else 2)
    return b.node("MatMul", weights, x, shapes=[shape])
