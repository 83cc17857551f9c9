"""Shapes that exporters compute while the network runs, where they are known before: sizes of a tensor, Reshape targets."""

import numpy as np
import onnx_ir as ir

from fewbit.graph.edit import add_constant, const, new_node, replace_node
from fewbit.graph.fold_moves import places, taken
from fewbit.graph.infer import rank


def fold_shapes(graph: ir.Graph) -> bool:
    """Known sizes become constants; a Reshape with one unknown size gets -1 for it. True where something changed."""
    steps = (_sizes, _size, _target, _widened)
    return any([any(step(graph, node) for step in steps) for node in list(graph)])


def _sizes(graph: ir.Graph, node: ir.Node) -> bool:
    """A Shape of which every size that it gives is known: of what lies behind the batch."""
    source = node.inputs[0] if node.op_type == "Shape" and not node.outputs[0].is_graph_output() else None
    if source is None or source.shape is None:
        return False
    start, end = (node.attributes[k].value if k in node.attributes else None for k in ("start", "end"))
    known = list(source.shape)[start:end]
    if not all(isinstance(k, int) for k in known):
        return False
    replace_node(graph, node, add_constant(graph, f"{node.outputs[0].name}.known", np.array(known, np.int64)))
    return True


def _size(graph: ir.Graph, node: ir.Node) -> bool:
    """One number of a Shape: 1 of an axis that was put in, or the source's own."""
    shape = node.inputs[0].producer() if node.op_type in ("Slice", "Gather") and node.inputs[0] is not None else None
    if shape is None or shape.op_type != "Shape" or shape.inputs[0] is None or node.outputs[0].is_graph_output():
        return False
    start = shape.attributes["start"].value if "start" in shape.attributes else 0
    axis = taken(node)
    if axis is None or start or "end" in shape.attributes:
        return False
    source, where = places(shape.inputs[0])
    if not 0 <= axis < len(where):
        return False
    place = where[axis]
    known = 1 if place is None else source.shape[place] if source.shape is not None and place < len(source.shape) else None
    if not isinstance(known, int):
        return False
    array = np.array([known]) if node.op_type == "Slice" else np.array(known)
    replace_node(graph, node, add_constant(graph, f"{node.outputs[0].name}.known", array))
    return True


def _widened(graph: ir.Graph, node: ir.Node) -> bool:
    """A constant of one element and more axes than what it meets: the axes are put in before the operator."""
    if node.op_type not in ("Add", "Sub", "Mul", "Div", "Min", "Max") or len(node.inputs) != 2:
        return False
    for k, value in enumerate(node.inputs):
        x, held = node.inputs[1 - k], const(value)
        axes = rank(x)
        if x is None or axes is None or held is None or held.size != 1 or held.ndim <= axes or const(x) is not None:
            continue
        name = f"{node.name or node.outputs[0].name}.widened"
        added = add_constant(graph, f"{name}.axes", np.arange(held.ndim - axes))
        wider = new_node(graph, "Unsqueeze", [x, added], name)
        graph.insert_before(node, wider)
        node.replace_input_with(1 - k, wider.outputs[0])
        node.replace_input_with(k, add_constant(graph, f"{name}.by", held.reshape(())))
        return True
    return False


def _target(graph: ir.Graph, node: ir.Node) -> bool:
    """Reshape to a Concat of sizes of which one, a size of the input itself, is unknown."""
    concat = node.inputs[1].producer() if node.op_type == "Reshape" and node.inputs[1] is not None else None
    if concat is None or concat.op_type != "Concat":
        return False
    parts = [const(i) for i in concat.inputs]
    unknown = [i for i, part in zip(concat.inputs, parts, strict=True) if part is None]
    if len(unknown) != 1 or unknown[0] is None or any(p is not None and (p < 1).any() for p in parts):
        return False
    size = unknown[0].producer()
    shape = size.inputs[0].producer() if size is not None and size.op_type == "Slice" and size.inputs[0] is not None else None
    if size is None or shape is None or shape.op_type != "Shape" or taken(size) is None:
        return False
    target = np.concatenate([np.array([-1]) if p is None else p.reshape(-1) for p in parts]).astype(np.int64)
    node.replace_input_with(1, add_constant(graph, f"{node.outputs[0].name}.shape", target))
    return True
