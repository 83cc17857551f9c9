"""Pairs of QuantizeLinear and DequantizeLinear: put behind a value, and behind whatever only moves its signed 8-bit codes."""

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from fewbit.graph.edit import add_constant, const, fresh, new_node
from fewbit.graph.layers import MOVES
from fewbit.numerics.formats import IntFormat

CROSSED = MOVES | {"MaxPool"}  # what gives numbers that it was given: their codes are codes of its result


def insert(
    graph: ir.Graph,
    value: ir.Value,
    scale: np.float32,
    zero: int,
    fmt: IntFormat,
    users: Iterable[tuple[ir.Node, int]],
    beside: bool = False,
) -> ir.Value:
    """A pair between value and the given (node, index) uses; the dequantized value.

    beside: the value has wide codes too; these are a second reading, and graph outputs are the other's.
    """
    stem = f"{value.name}.narrow" if beside else value.name or ""
    s = add_constant(graph, f"{stem}.scale", np.asarray(scale, np.float32))
    z = add_constant(graph, f"{stem}.zero_point", np.asarray(zero, fmt.dtype))
    reading = _pair(graph, value, s, z, stem, users)
    if not beside:
        hand_over(graph, value, reading)
    return reading


def _pair(
    graph: ir.Graph, value: ir.Value, scale: ir.Value, zero: ir.Value, stem: str, users: Iterable[tuple[ir.Node, int]]
) -> ir.Value:
    q = new_node(graph, "QuantizeLinear", [value, scale, zero], f"{stem}.quantize", out=f"{stem}.codes")
    d = new_node(graph, "DequantizeLinear", [q.outputs[0], scale, zero], f"{stem}.dequantize", out=f"{stem}.dequantized")
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], [q, d])
    else:
        graph.insert_after(producer, [q, d])
    for node, index in users:
        node.replace_input_with(index, d.outputs[0])
    return d.outputs[0]


def hand_over(graph: ir.Graph, value: ir.Value, reading: ir.Value) -> None:
    """Where value is an output of the graph, its dequantized reading is, under its name. An input is given back as it came."""
    for k, out in enumerate(graph.outputs):
        if out is value and not value.is_graph_input():
            name = value.name
            value.name = fresh(graph, f"{name}.float")
            reading.name, reading.shape, reading.dtype = name, value.shape, value.dtype or ir.DataType.FLOAT
            graph.outputs[k] = reading


def repeat_behind_moves(graph: ir.Graph) -> None:
    """The pair of a signed 8-bit activation again behind every move of its reading: the same codes on the same scale.

    ONNX Runtime's optimiser would put a pair there itself, and fails on the one it makes: it gives QuantizeLinear the output
    type int8 (from opset 21 on), and turns the zero point to uint8 after that. A pair that is there is left alone.
    """
    for node in [n for n in graph if n.op_type == "DequantizeLinear" and len(n.inputs) > 2]:
        zero = const(node.inputs[2])
        if zero is None or zero.dtype != np.int8 or const(node.inputs[0]) is not None:
            continue
        waiting = [node.outputs[0]]
        while waiting:
            moves = [user for user, index in waiting.pop().uses() if index == 0 and user.op_type in CROSSED]
            for moved in [o for move in moves for o in move.outputs if _is_read(o)]:
                users = [(user, index) for user, index in moved.uses() if user.op_type != "QuantizeLinear"]
                reading = _pair(graph, moved, node.inputs[1], node.inputs[2], moved.name or "", users)  # type: ignore[arg-type]
                hand_over(graph, moved, reading)
                waiting.append(reading)


def _is_read(value: ir.Value) -> bool:
    """Is it read by what does not quantize it?"""
    return value.is_graph_output() or any(node.op_type != "QuantizeLinear" for node, _ in value.uses())
