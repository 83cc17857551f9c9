"""Changes to a graph: constants and nodes put in, values replaced, what nothing needs taken out. Every name it makes is free."""

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import onnx_ir as ir

_TAKEN: WeakKeyDictionary[ir.Graph, set[str]] = WeakKeyDictionary()  # collected once a graph: looking takes a walk through it


def const(value: ir.Value | None) -> np.ndarray | None:
    """The constant array behind a value, or None."""
    return None if value is None or value.const_value is None else value.const_value.numpy()


def label(node: ir.Node) -> str:
    """What a line calls a node by: its name, or that of what it makes, where it has none."""
    return node.name or (node.outputs[0].name if node.outputs else "") or node.op_type


def fresh(graph: ir.Graph, stem: str) -> str:
    """A name that no value, node or initializer of the graph or of its subgraphs has: stem, or stem with a number behind it."""
    if graph not in _TAKEN:
        _TAKEN[graph] = _names(graph)
    taken, name, k = _TAKEN[graph], stem, 1
    while name in taken or name in graph.initializers:
        name, k = f"{stem}_{k}", k + 1
    taken.add(name)
    return name


def _names(graph: ir.Graph) -> set[str]:
    values = [*graph.inputs, *graph.outputs, *graph.initializers.values()]
    names = {v.name or "" for v in values}
    for node in graph.all_nodes():
        names |= {node.name or "", *(o.name or "" for o in node.outputs), *(i.name or "" for i in node.inputs if i is not None)}
        for a in node.attributes.values():
            inner = [a.value] if a.type == ir.AttributeType.GRAPH else a.value if a.type == ir.AttributeType.GRAPHS else []
            names |= {v.name or "" for g in inner for v in [*g.inputs, *g.initializers.values()]}
    return names


def give_up(graph: ir.Graph, name: str) -> None:
    """Rename whatever inside the graph has a name that an input or output of it is to have."""
    for value in [o for node in graph for o in node.outputs if o.name == name and not o.is_graph_output()]:
        value.name = fresh(graph, f"{name}.inner")
    held = graph.initializers.get(name)
    if held is not None:
        _rename_initializer(graph, held, fresh(graph, f"{name}.inner"))


def _rename_initializer(graph: ir.Graph, value: ir.Value, name: str) -> None:
    del graph.initializers[value.name or ""]
    value.name = name
    graph.register_initializer(value)


def add_constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """A new initializer; a number is appended where the name is taken."""
    unique = fresh(graph, name)
    value = ir.Value(name=unique, const_value=ir.tensor(array, name=unique))
    value.shape, value.dtype = ir.Shape(array.shape), ir.DataType.from_numpy(array.dtype)
    graph.register_initializer(value)
    return value


def new_node(
    graph: ir.Graph,
    op: str,
    inputs: Sequence[ir.Value | None],
    name: str,
    attributes: dict[str, Any] | None = None,
    out: str | None = None,
) -> ir.Node:
    """A node of one output with free names (out's: `name`.out unless given), not yet in the graph."""
    node = ir.node(op, list(inputs), attributes=attributes, name=fresh(graph, name))
    node.outputs[0].name = fresh(graph, out or f"{name}.out")
    return node


def replace_value(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    """Every use of old reads new, and a graph output keeps its name: new takes it, or a copy of new that has a name to keep."""
    for user, index in list(old.uses()):
        user.replace_input_with(index, new)
    if new.shape is None and old.dtype is not None:
        new.shape, new.dtype = old.shape, old.dtype
    if not old.is_graph_output():
        return
    maker = old.producer()
    if new.is_graph_input() or new.is_graph_output() or new.producer() is None:
        same = new_node(graph, "Identity", [new], f"{old.name}.same")
        if maker is None:
            graph.append(same)
        else:
            graph.insert_after(maker, same)
        new = same.outputs[0]
    name = old.name
    old.name = fresh(graph, f"{name}.replaced")
    new.name, new.shape, new.type = name, old.shape, old.type or new.type
    for k, out in enumerate(graph.outputs):
        if out is old:
            graph.outputs[k] = new


def replace_node(graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    """Give every use of the node's first output to value, and remove the node; graph outputs keep their names."""
    replace_value(graph, node.outputs[0], value)
    graph.remove(node, safe=True)


def remove_unused(graph: ir.Graph) -> bool:
    """Nodes and initializers that no output needs; True where something went."""
    removed = False
    for node in reversed(list(graph)):
        if not any(o.uses() or o.is_graph_output() for o in node.outputs):
            graph.remove(node, safe=True)
            removed = True
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]
    return removed


def make_outputs(graph: ir.Graph) -> None:
    """A graph output that is an initializer becomes a copy of it: outputs are what nodes make, or inputs."""
    for k, value in enumerate(graph.outputs):
        name = value.name or ""
        if name not in graph.initializers or value.is_graph_input():
            continue
        same = new_node(graph, "Identity", [value], f"{name}.same")
        same.outputs[0].shape, same.outputs[0].type = value.shape, value.type
        graph.append(same)
        graph.outputs[k] = same.outputs[0]
        _rename_initializer(graph, value, fresh(graph, f"{name}.constant"))
        same.outputs[0].name = name


def shape_constant_outputs(graph: ir.Graph) -> None:
    """An output that is a constant has the constant's own shape: it is no row of a batch."""
    for out in graph.outputs:
        node = out.producer()
        held = const(node.inputs[0]) if node is not None and node.op_type == "Identity" else None
        if held is not None:
            out.shape, out.dtype = ir.Shape(held.shape), ir.DataType.from_numpy(held.dtype)
