"""Constants that a graph of fixed batch joins to its rows, one to each: one of them, repeated for whatever batch comes."""

import numpy as np
import onnx
from onnx import helper, numpy_helper


def constants_beside(graph: onnx.GraphProto, live: set[str]) -> list[str]:
    """The parts of Concats that no input reaches, beside one that an input does. live: names of what an input reaches."""
    joins = [node for node in graph.node if node.op_type == "Concat" and live & set(node.input)]
    return [name for node in joins for name in node.input if name not in live]


def repeat(model: onnx.ModelProto, live: set[str], values: dict[str, np.ndarray], batch: int) -> onnx.ModelProto:
    """The model whose Concats read a row of such a constant as often as the part beside it has rows.

    Args:
        model: in opset 15 or newer; it stays what it is.
        live: names of what an input reaches.
        values: what the constants are.
        batch: the fixed one. A constant of another first dimension, or whose rows differ, is left.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    del made.graph.node[:]
    for node in model.graph.node:
        reached = next((name for name in node.input if name in live), "")
        joined = onnx.NodeProto()
        joined.CopyFrom(node)
        for k, name in enumerate(node.input if node.op_type == "Concat" and reached and _axis(node) else []):
            value = values.get(name)
            if value is not None and value.ndim and value.shape[0] == batch and (value == value[:1]).all():
                joined.input[k] = _repeated(made.graph, f"{node.output[0]}.part{k}", value[:1], reached)
        made.graph.node.append(joined)
    return made


def _axis(node: onnx.NodeProto) -> int:
    return next(a.i for a in node.attribute if a.name == "axis")


def _repeated(graph: onnx.GraphProto, stem: str, row: np.ndarray, beside: str) -> str:
    """Put in what repeats the row [1, ...] as often as the other tensor has rows; its name."""
    for what, array in (("row", row), ("size", np.array(row.shape[1:], np.int64))):
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), f"{stem}.{what}"))
    rows, shape, out = f"{stem}.rows", f"{stem}.shape", f"{stem}.repeated"
    graph.node.append(helper.make_node("Shape", [beside], [rows], rows, start=0, end=1))
    graph.node.append(helper.make_node("Concat", [rows, f"{stem}.size"], [shape], shape, axis=0))
    graph.node.append(helper.make_node("Expand", [f"{stem}.row", shape], [out], out))
    return out
