"""Recognise a function of one value: the elementwise nodes between a dense layer's output and where it is next quantized.

SiLU written as Sigmoid and Mul, Clip then Tanh, ELU: all are one function of one number, and S6 makes each one table.
"""

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from fewbit.graph.edit import const

ELEMENTWISE = {
    "Relu",
    "Tanh",
    "Sigmoid",
    "Mul",
    "Clip",
    "Elu",
    "Softplus",
    "Min",
    "Max",
    "LeakyRelu",
    "Add",
    "Sub",
    "Div",
    "Neg",
    "Gelu",
    "HardSwish",
    "HardSigmoid",
    "Selu",
    "Celu",
    "Exp",
    "Erf",
    "Abs",
    "Mish",
}


@dataclass(frozen=True)
class Chain:
    """nodes compute end from root alone, in order."""

    root: ir.Value
    nodes: tuple[ir.Node, ...]


def chain(end: ir.Value, is_root: Callable[[ir.Value], bool]) -> Chain | None:
    """The function that ends at a value and starts at one that is_root accepts; None if it is not of one value."""
    roots: list[ir.Value] = []
    nodes: dict[ir.Node, None] = {}  # in order
    waiting = [(end, False)]
    while waiting:
        value, ready = waiting.pop()
        if is_root(value):
            roots += [] if value in roots else [value]
            continue
        node = value.producer()
        if node is None or node.op_type not in ELEMENTWISE or node.domain not in ("", "ai.onnx"):
            return None
        if ready:
            nodes[node] = None
        if node in nodes:
            continue
        constants = [const(i) for i in node.inputs]
        if any(c is not None and c.size != 1 for c in constants):
            return None
        live = [i for i, c in zip(node.inputs, constants, strict=True) if i is not None and c is None]
        waiting += [(value, True), *((i, False) for i in reversed(live))]
    return Chain(roots[0], tuple(nodes)) if len(roots) == 1 else None
