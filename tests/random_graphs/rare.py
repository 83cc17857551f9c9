"""Operators that exporters write now and then: seldom in a policy, in one all the same."""

import numpy as np

from random_graphs.builder import Builder


def rare(b: Builder, x: str) -> str:
    """One of them on x [batch, n]; what an opset does not have yet is left out."""
    table = [group_norm, rms_norm, tile, einsum, cumulative, sums, top, logic, matmul_left, trigonometry, thresholds]
    return b.one(*table)(b, x)


def group_norm(b: Builder, x: str) -> str:
    """InstanceNormalization of two channels, or GroupNormalization (21: a scale of each channel)."""
    width = int(b.shapes[x][1] or 0)
    if width % 2 or width < 4:
        return x
    three = b.node("Reshape", x, b.constant(np.array([-1, 2, width // 2], np.int64), "shape"), shapes=[(None, 2, width // 2)])
    scale, bias = (b.constant(np.abs(b.random(2)) + b.number(0.5), "norm") for _ in range(2))
    if b.opset >= 21 and b.chance(0.5):
        three = b.node("GroupNormalization", three, scale, bias, num_groups=b.one(1, 2))
    else:
        three = b.node("InstanceNormalization", three, scale, bias, epsilon=b.one(None, 1e-3))
    return b.node("Flatten", three, shapes=[(None, width)])


def rms_norm(b: Builder, x: str) -> str:
    scale = b.constant(np.abs(b.random(int(b.shapes[x][1] or 0))) + b.number(0.5), "norm")
    if b.opset >= 23:
        return b.node("RMSNormalization", x, scale, axis=b.one(None, -1), epsilon=b.one(None, 1e-3))
    square = b.axes("ReduceSumSquare", x, [1], (None, 1), 18)
    root = b.node("Sqrt", b.node("Add", square, b.constant(b.number(1), "eps")))
    return b.node("Mul", b.node("Div", x, root), scale)


def tile(b: Builder, x: str) -> str:
    times = b.below(1, 3)
    return b.node(
        "Tile", x, b.constant(np.array([1, times], np.int64), "repeats"), shapes=[(None, times * int(b.shapes[x][1] or 0))]
    )


def einsum(b: Builder, x: str) -> str:
    if b.opset < 12:
        return x
    width, out = int(b.shapes[x][1] or 0), b.below(2, 6)
    weight = b.weight(b.random(width, out, scale=width**-0.5))
    return b.node("Einsum", x, weight, equation=b.one("bi,ij->bj", "...i,ij->...j", "ni, ij -> nj"), shapes=[(None, out)])


def cumulative(b: Builder, x: str) -> str:
    if b.opset < 11:
        return x
    scaled = b.node("Mul", x, b.constant(b.number(0.3), "scale"))
    return b.node("CumSum", scaled, b.constant(np.array(1, np.int64), "axis"), exclusive=b.one(None, 1), reverse=b.one(None, 1))


def sums(b: Builder, x: str) -> str:
    """A norm of the row beside it, or the mean of several values."""
    if b.opset >= 8 and b.chance(0.5):
        return b.node(b.one("Mean", "Sum"), x, b.node("Tanh", x), b.node("Relu", x))
    one = b.axes(b.one("ReduceL1", "ReduceSumSquare"), b.node("Tanh", x), [1], (None, 1), 18, keepdims=1)
    return b.node("Add", x, one)


def top(b: Builder, x: str) -> str:
    """The largest k of each row."""
    width = int(b.shapes[x][1] or 0)
    k = b.below(1, width)
    if b.opset < 10:
        return x
    count = b.constant(np.array([k], np.int64), "k")
    return b.node("TopK", x, count, shapes=[(None, k)] * 2, dtypes=[b.dtypes[x], np.int64], axis=b.one(None, 1, -1))[0]


def logic(b: Builder, x: str) -> str:
    """A mask of two comparisons, applied where the value is zero at its edge."""
    if b.opset < 9:
        return x
    low, high = (b.constant(b.number(v), "edge") for v in (-0.5, 0.0))
    both = b.node("And", b.node("Greater", x, low, dtypes=[bool]), b.node("Less", x, high, dtypes=[bool]))
    product = b.node("Mul", b.node("Sub", x, low), x)
    kept = b.node(
        "Where", b.node("Not", both), b.constant(b.number(0), "zero"), product, shapes=[b.shapes[x]], dtypes=[b.dtypes[x]]
    )
    return b.node("Add", x, kept)


def matmul_left(b: Builder, x: str) -> str:
    """W x^T, transposed back."""
    width, out = int(b.shapes[x][1] or 0), b.below(2, 6)
    turned = b.node("Transpose", x, shapes=[(width, None)])
    y = b.node("MatMul", b.constant(b.random(out, width, scale=width**-0.5), "weight"), turned, shapes=[(out, None)])
    return b.node("Transpose", y, perm=[1, 0], shapes=[(None, out)])


def trigonometry(b: Builder, x: str) -> str:
    op = b.one("Atan", "Sinh", "Asinh") if b.opset >= 9 else "Atan"
    return b.node(op, b.node("Tanh", x))


def thresholds(b: Builder, x: str) -> str:
    """x beyond a threshold less the threshold, as soft shrinkage does."""
    if b.opset < 9:
        return b.node("Abs", x)
    return b.node("Shrink", x, lambd=0.5, bias=0.5)
