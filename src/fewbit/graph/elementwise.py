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
    nodes: list[ir.Node] = []

    def visit(value: ir.Value) -> bool:
        if is_root(value):
            if value not in roots:
                roots.append(value)
            return True
        producer = value.producer()
        if producer is None or producer.op_type not in ELEMENTWISE:
            return False
        if producer in nodes:
            return True
        for i in producer.inputs:
            constant = const(i)
            if i is None or (constant is not None and constant.size == 1):
                continue
            if constant is not None or not visit(i):
                return False
        nodes.append(producer)
        return True

    return Chain(roots[0], tuple(nodes)) if visit(end) and len(roots) == 1 else None
