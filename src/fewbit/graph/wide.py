"""16 bits for what meets other values: the operands and results of joins, and what is remembered (S5, S8).

One scale a value, a power of two: 2^-15 for what cannot exceed 1, 2^-12 for what is only squashed next (S6), the calibrated range
otherwise. A state enters and leaves on one scale, so that every code comes back. A value that was zero in every row says nothing
of its scale: it takes that of what it meets.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from fewbit.graph.edit import const
from fewbit.graph.elementwise import chain
from fewbit.graph.layers import LAYERS, Shape, origin, readers
from fewbit.numerics import affine
from fewbit.numerics.formats import INTEGERS, IntFormat
from fewbit.numerics.ranges import Estimator

SQUASHING = {"Tanh", "Sigmoid"}
INT16 = INTEGERS["int16"]
UNIT, SQUASHED = np.float32(2.0**-15), np.float32(2.0**-12)
UNSEEN = 8.0  # the magnitude that is provided for where nothing but zero was seen


@dataclass(frozen=True)
class Wide:
    """A value of 16-bit codes and what one of them is worth."""

    value: ir.Value
    scale: np.float32


def values(graph: ir.Graph, shape: Shape) -> list[ir.Value]:
    """What joins read and make, and what the functions before them read, in order; then the outputs that are remembered."""
    found: list[ir.Value] = []
    for join in shape.joins:
        for operand in [i for i in join.inputs if i is not None and const(i) is None]:
            made = origin(operand)
            function = None if shape.is_root(made) else chain(made, shape.is_root)
            found += [origin(function.root)] if function is not None and function.nodes else []
            found.append(made)
        found.append(join.outputs[0])
    wanted = set(shape.states.values())
    found += [v for v in graph.outputs if v.name in wanted]
    return list(dict.fromkeys(found))


def plan(graph: ir.Graph, shape: Shape, ranges: dict[str, Estimator]) -> list[Wide]:
    """Every such value with its scale."""
    scales: dict[ir.Value, np.float32 | None] = {}  # None: nothing but zero was seen
    partner = _partners(graph, shape)
    for value in values(graph, shape):
        scales[value] = scales.get(partner.get(value, value)) or _scale(graph, value, shape, ranges, partner)
    for join in shape.joins:
        if join.op_type == "Concat":
            scales[join.outputs[0]] = _largest(scales, _operands(join))
        if join.op_type != "Mul":
            _give_unseen(scales, partner, [*_operands(join), join.outputs[0]])
    return [Wide(v, affine.power_of_two_scale(UNSEEN, INT16) if s is None else s) for v, s in scales.items()]


def _operands(join: ir.Node) -> list[ir.Value]:
    return [origin(i) for i in join.inputs if i is not None and const(i) is None]


def _largest(scales: dict[ir.Value, np.float32 | None], values: list[ir.Value]) -> np.float32 | None:
    return max((s for v in values if (s := scales[v]) is not None), default=None)


def _give_unseen(scales: dict[ir.Value, np.float32 | None], partner: dict[ir.Value, ir.Value], met: list[ir.Value]) -> None:
    """The largest scale of those that meet to those that have none; to a state's other end with it."""
    found = _largest(scales, met)
    for value in met:
        if scales[value] is None:
            scales |= {v: found for v in (value, partner.get(value, value)) if v in scales}


def range_of(estimator: Estimator, fmt: IntFormat, symmetric: bool) -> tuple[float, float]:
    """(low, high) that the estimator gives; UNSEEN where it saw nothing but zero."""
    low, high = estimator.range(fmt, symmetric)
    if is_seen(max(-low, high), fmt):
        return low, high
    return -UNSEEN if fmt.signed else 0.0, UNSEEN


def is_seen(high: float, fmt: IntFormat) -> bool:
    """Is it a magnitude that a scale can be taken from, not zero or as good as zero?"""
    return bool(high / fmt.quant_max >= affine.TINY)


def _partners(graph: ir.Graph, shape: Shape) -> dict[ir.Value, ir.Value]:
    """A state's input and output, each the other's."""
    inputs, outputs = {v.name: v for v in graph.inputs}, {v.name: v for v in graph.outputs}
    pairs = [(inputs[i], outputs[o]) for i, o in shape.states.items()]
    return dict(pairs) | {o: i for i, o in pairs}


def _scale(graph: ir.Graph, value: ir.Value, shape: Shape, ranges: dict[str, Estimator], partner: dict) -> np.float32 | None:
    pair = [value, partner[value]] if value in partner else [value]
    if _bounded(value, partner):
        return UNIT
    users = _users(value)
    made = value.producer()
    if len(pair) == 1 and users <= SQUASHING and made is not None and (made.op_type in LAYERS or made in shape.joins):
        return SQUASHED
    high = max(ranges[v.name or ""].range(INT16, True)[1] for v in pair)
    unseen = 2.0 if value in partner or made is None or not shape.is_root(value) else 1.25
    return affine.power_of_two_scale(unseen * high, INT16) if is_seen(high, INT16) else None


def _bounded(value: ir.Value, partner: dict[ir.Value, ir.Value]) -> bool:
    """Is its magnitude at most 1 whatever the input? A state is where its output is; episodes are taken to start within it."""
    waiting, seen = [value], {value}
    while waiting:
        one = waiting.pop()
        made = one.producer()
        if made is None and one in partner and partner[one].producer() is not None:
            factors: list[ir.Value] = [partner[one]]
        elif made is not None and made.op_type == "Mul" and all(i is not None and const(i) is None for i in made.inputs):
            factors = [origin(i) for i in made.inputs if i is not None]
        elif made is not None and made.op_type in SQUASHING:
            factors = []
        else:
            return False
        new = [f for f in factors if f not in seen]
        seen.update(new)
        waiting += new
    return True


def _users(value: ir.Value) -> set[str]:
    """Operators that read it, moved about or not; "" where the graph gives it back."""
    return {"" if node is None else node.op_type for node, _ in readers(value)}
