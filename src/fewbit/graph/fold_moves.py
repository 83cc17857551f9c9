"""Moves of values that come to nothing: an axis put in and taken out again, a slice of the whole, on any way between.

Exporters wrap a step of a recurrent layer in such moves, since its operator wants time and layers as axes of their own.
"""

import numpy as np
import onnx_ir as ir

from fewbit.graph.edit import add_constant, const, new_node, replace_node

MANY = 8  # axes of a value whose rank is unknown: more than any has
MOVING = ("Squeeze", "Transpose", "Reshape", "Slice", "Unsqueeze", "Gather")
Places = list[int | None]  # of a value's axes: the source's axis, or None for one of length 1 that was put in


def fold_moves(graph: ir.Graph) -> bool:
    """Nodes that give back what an earlier value was are left out; True where one was."""
    changed = any([_of_stack(graph, node) for node in list(graph)])
    for node in list(graph):
        if node.op_type not in MOVING or len(node.outputs) != 1:
            continue
        source, where = places(node.outputs[0])
        if source is node.outputs[0] or where != list(range(len(where))):
            continue
        if node.outputs[0].is_graph_output() and (source.is_graph_output() or source.is_graph_input()):
            continue
        replace_node(graph, node, source)
        changed = True
    return changed


def _of_stack(graph: ir.Graph, node: ir.Node) -> bool:
    """The k-th of values stacked along the first axis is that value: layers' states, stacked and taken apart again."""
    stack = node.inputs[0].producer() if node.op_type in ("Slice", "Gather") and node.inputs[0] is not None else None
    if stack is None or stack.op_type != "Concat" or stack.attributes["axis"].value != 0:
        return False
    parts = [i for i in stack.inputs if i is not None]
    k = taken(node)
    if k is None or not 0 <= k < len(parts) or not all(is_one(p, 0) for p in parts):
        return False
    part = parts[k]
    if node.op_type == "Slice" and node.outputs[0].is_graph_output() and (part.is_graph_output() or part.is_graph_input()):
        return False
    if node.op_type == "Gather":
        name = f"{node.name or node.outputs[0].name}.part"
        squeeze = new_node(graph, "Squeeze", [part, add_constant(graph, f"{name}.axis", np.array([0]))], name)
        graph.insert_before(node, squeeze)
        part = squeeze.outputs[0]
    replace_node(graph, node, part)
    return True


def taken(node: ir.Node) -> int | None:
    """Which one element of the first axis a Slice or Gather takes; None where it takes anything else."""
    given = [*node.inputs[1:], *[None] * 3][:4]
    first, *more = (const(i) for i in given)
    if node.op_type == "Gather":
        axis = node.attributes["axis"].value if "axis" in node.attributes else 0
        return int(first) if first is not None and first.ndim == 0 and axis == 0 else None
    axes = np.array([0]) if given[2] is None else more[1]
    steps = np.array([1]) if given[3] is None else more[2]
    if first is None or first.size != 1 or more[0] is None or axes is None or axes.tolist() != [0]:
        return None
    if steps is None or steps.tolist() != [1]:
        return None
    return int(first[0]) if more[0][0] == first[0] + 1 else None


def is_one(value: ir.Value, axis: int) -> bool:
    """Is this axis known to have length 1?"""
    source, where = places(value)
    if axis >= len(where):
        return False
    place, shape = where[axis], source.shape
    return place is None or (place > 0 and shape is not None and place < len(shape) and shape[place] == 1)


def places(value: ir.Value) -> tuple[ir.Value, Places]:
    """(the value that this one is, moved about; where its axes lie there): itself where nothing is known of how it was made."""
    path: list[ir.Node] = []
    source = value
    while (producer := source.producer()) is not None and producer.op_type in (*MOVING, "Identity") and not producer.domain:
        if producer.inputs[0] is None:
            break
        path.append(producer)
        source = producer.inputs[0]
    where = _own(source)
    for node in reversed(path):
        found = _moved(node, source, where)
        source, where = (source, found) if found is not None else (node.outputs[0], _own(node.outputs[0]))
    return source, where


def _own(value: ir.Value) -> Places:
    return list(range(len(value.shape) if value.shape is not None else MANY))


def _moved(node: ir.Node, source: ir.Value, where: Places) -> Places | None:
    """Places of the node's output, given those of its input; None where it does more than move."""
    if node.op_type == "Identity":
        return where
    if node.op_type == "Transpose" and "perm" in node.attributes:
        return [where[i] for i in node.attributes["perm"].value]
    given = const(node.inputs[1]) if len(node.inputs) > 1 else None
    if node.op_type == "Gather":
        axis = node.attributes["axis"].value if "axis" in node.attributes else 0
        return (
            _taken_out(where, [axis]) if given is not None and given.ndim == 0 and int(given) in (0, -1) and axis >= 0 else None
        )
    moves = node.op_type in ("Squeeze", "Unsqueeze", "Reshape")
    numbers = [int(v) for v in given.reshape(-1)] if given is not None and moves else []
    if node.op_type in ("Squeeze", "Unsqueeze") and numbers and min(numbers) >= 0:
        return _taken_out(where, numbers) if node.op_type == "Squeeze" else _put_in(where, numbers)
    if node.op_type == "Slice":
        return where if _whole(node, where) else None
    return _reshaped(numbers, source, where) if node.op_type == "Reshape" and numbers else None


def _taken_out(where: Places, axes: list[int]) -> Places | None:
    if any(a >= len(where) or where[a] is not None for a in axes):
        return None
    return [w for k, w in enumerate(where) if k not in axes]


def _put_in(where: Places, axes: list[int]) -> Places:
    found = list(where)
    for axis in sorted(axes):
        found.insert(axis, None)
    return found


def _whole(node: ir.Node, where: Places) -> bool:
    """Does a Slice take the one element of axes of length 1?"""
    starts, ends, axes, steps = [*(const(i) for i in node.inputs[1:]), *[None] * 4][:4]
    if starts is None or ends is None or axes is None or (steps is not None and (steps != 1).any()):
        return False
    taken = zip(starts.tolist(), ends.tolist(), axes.tolist(), strict=True)
    return all(start in (0, -1) and end >= 1 and 0 <= axis < len(where) and where[axis] is None for start, end, axis in taken)


def _reshaped(target: list[int], source: ir.Value, where: Places) -> Places | None:
    """A Reshape to the same lengths in the same order, apart from ones."""
    live, shape = [w for w in where if w is not None], source.shape
    named = [d for d in target if d != 1]
    if shape is None or live != list(range(len(shape))) or len(named) != len(live):
        return None
    if any(d != -1 and d != shape[k] for k, d in enumerate(named)):
        return None
    axes = iter(live)
    return [None if d == 1 else next(axes) for d in target]
