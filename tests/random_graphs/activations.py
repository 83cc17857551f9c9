"""Functions of one value, as operators or written out as exporters do, kept where they are defined and tame."""

from collections.abc import Callable

import numpy as np

from random_graphs.builder import Builder

Block = Callable[[Builder, str], str]


def activation(b: Builder, x: str) -> str:
    return b.one(*ACTIVATIONS)(b, x)


def unary(op: str, since: int = 7, **choices: list) -> Block:
    """An operator of one value; each attribute is left out half of the time."""

    def made(b: Builder, x: str) -> str:
        if b.opset < since or (op == "Celu" and b.habits.dtype != np.float32):
            return b.node("Tanh", x)
        return b.node(op, x, **{k: b.one(None, *v) for k, v in choices.items()})

    return made


def clip(b: Builder, x: str) -> str:
    low, high = b.one(-1.0, -0.5, 0.0, -3.4028235e38, None, None), b.one(1.0, 2.0, 6.0, 3.4028235e38, None)
    if b.opset < 11:
        return b.node("Clip", x, min=low, max=high)
    if b.habits.dtype == np.float16:
        low, high = (None if v is not None and abs(v) > 1e5 else v for v in (low, high))
    inputs = [x]
    for value in (low, high):
        inputs.append("" if value is None else b.constant(b.number(value), "bound"))
    while len(inputs) > 1 and not inputs[-1] and b.chance(0.8):
        inputs.pop()
    return b.node("Clip", *inputs)


def hard_limits(b: Builder, x: str) -> str:
    """Min and Max with constants, of a number or of each column."""
    if b.opset < 8:
        return clip(b, x)
    width = b.shapes[x][-1]
    for op, sign in (("Min", 1), ("Max", -1)) if b.chance(0.5) else (("Max", -1), ("Min", 1)):
        shape = b.one((), (1,), (width,))
        limit = b.constant(sign * (np.abs(b.random(*shape)) + b.number(0.5)), "limit")
        x = b.node(op, *((x, limit) if b.chance(0.7) else (limit, x)), shapes=[b.shapes[x]])
    return x


def prelu(b: Builder, x: str) -> str:
    shape = b.shapes[x]
    rest = b.one((1,), shape[1:], (shape[1], *(1 for _ in shape[2:])))
    return b.node("PRelu", x, b.constant(np.abs(b.random(*rest, scale=0.3)), "slope"))


def silu(b: Builder, x: str) -> str:
    if b.opset >= 24 and b.chance(0.5):
        return b.node("Swish", x, alpha=b.one(None, 1.0, 1.7))
    s = b.node("Sigmoid", x)
    return b.node("Mul", *((x, s) if b.chance(0.6) else (s, x)))


def gelu(b: Builder, x: str) -> str:
    """The operator, or what exporters write before opset 20."""
    if b.opset >= 20 and b.chance(0.8):
        return b.node("Gelu", x, approximate=b.one(None, "none", "tanh"))
    if b.opset < 9:
        return silu(b, x)
    scaled = b.node("Div", x, b.constant(b.number(2**0.5), "sqrt2"))
    one = b.node("Add", b.node("Erf", scaled), b.constant(b.number(1), "one"))
    return b.node("Mul", b.node("Mul", x, one), b.constant(b.number(0.5), "half"))


def leaky_where(b: Builder, x: str) -> str:
    """Where(x > 0, x, slope x), as jax writes leaky_relu; ELU through Exp and Min the same way."""
    if b.opset < 9:
        return b.node("LeakyRelu", x)
    zero = b.constant(b.number(0), "zero")
    above = b.node(b.one("Greater", "Greater", "GreaterOrEqual" if b.opset >= 12 else "Greater"), x, zero, dtypes=[bool])
    below = b.node("Mul", x, b.constant(b.number(0.1), "slope"))
    if b.chance(0.3):
        below = b.node("Sub", b.node("Exp", b.node("Min", x, zero)), b.constant(b.number(1), "one"))
    return b.node("Where", above, x, below, shapes=[b.shapes[x]], dtypes=[b.dtypes[x]])


def mish(b: Builder, x: str) -> str:
    if b.opset >= 18 and b.chance(0.5):
        return b.node("Mish", x)
    return b.node("Mul", x, b.node("Tanh", b.node("Softplus", x)))


def powers(b: Builder, x: str) -> str:
    """Pow, Sqrt, Exp, Log, Reciprocal where they are defined and tame."""
    way = b.one("square", "cube", "root", "exp", "log", "reciprocal", "norm")
    if way in ("square", "cube"):
        bounded = b.node("Tanh", x)
        return b.node("Pow", bounded, b.constant(b.number({"square": 2, "cube": 3}[way]), "exponent"))
    if way == "exp":
        return b.node("Exp", b.node("Tanh", x))
    one = b.constant(b.number(1), "one")
    above = b.node("Add", b.node("Relu", x) if b.chance(0.5) else b.node("Abs", x), one)
    if way == "norm":
        total = b.axes("ReduceL2", above, [-1], (*b.shapes[x][:-1], 1), 18)
        return b.node("Div", x, total)
    if way == "root" and b.chance(0.3):
        return b.node("Pow", above, b.constant(b.number(0.5), "exponent"))
    return b.node({"root": "Sqrt", "log": "Log", "reciprocal": "Reciprocal"}[way], above)


ACTIVATIONS: list[Block] = [
    unary("Relu"), unary("Relu"), unary("Relu"), unary("Tanh"), unary("Tanh"), unary("Sigmoid"), unary("Elu", alpha=[1.0, 0.7]),
    unary("LeakyRelu", alpha=[0.01, 0.2]), unary("Selu", alpha=[1.6], gamma=[1.1]), unary("Celu", 12, alpha=[1.0, 0.6]),
    unary("HardSigmoid", alpha=[0.2, 0.16666667], beta=[0.5]), unary("HardSwish", 14), unary("Softplus"), unary("Softsign"),
    unary("Erf", 9), unary("Abs"), unary("Neg"), unary("Sin"), unary("Cos"), clip, clip, hard_limits, prelu, silu, gelu,
    mish, leaky_where,
]  # fmt: skip
