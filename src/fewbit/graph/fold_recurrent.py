"""LSTM and GRU operators of one forward step as plain nodes: one dense layer over [input, state], then functions (S8).

The operator cannot carry inner scales. What it remembers, [layers, batch, hidden] where the graph hands it in whole, becomes one
input and one output [batch, hidden] a layer: of the same name, or name_0, name_1, … where there are several layers.
"""

from typing import Any

import numpy as np
import onnx_ir as ir

from fewbit.errors import FewbitError
from fewbit.graph.edit import add_constant, const, fresh, give_up, label, replace_value
from fewbit.graph.fold_moves import is_one, places

GATES = {"LSTM": 4, "GRU": 3}
USUAL = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"]}
REMEMBERED = "fewbit.remembered"  # on what a step leaves: the name of the input that it becomes


def fold_recurrent(graph: ir.Graph) -> bool:
    """Rewrite each such operator that is one step; True where something changed. What is no step is left to who refuses it."""
    changed = False
    for node in list(graph):
        if node.op_type in GATES and not problem(node):
            _rewrite(graph, node)
            changed = True
    return _outputs_by_layer(graph) or changed


def problem(node: ir.Node) -> str:
    """What keeps an LSTM or GRU from being one forward step, or nothing."""
    x, weight, recurrence, bias, lengths, h, c, peephole = _inputs(node)
    kind, held = node.op_type, [h, c] if node.op_type == "LSTM" else [h]
    if any(const(w) is None for w in (weight, recurrence)) or (bias is not None and const(bias) is None):
        return "weights and bias that are not constants"
    if lengths is not None or peephole is not None:
        return "sequence lengths or peepholes"
    if _attribute(node, "direction", "forward") != "forward":
        return f"direction {_attribute(node, 'direction', '')}"
    if list(_attribute(node, "activations", USUAL[kind])) != USUAL[kind] or "clip" in node.attributes:
        return "activations of its own"
    if _attribute(node, "layout", 0) or _attribute(node, "input_forget", 0):
        return "layout=1 or coupled gates"
    if any(s is None or not _is_input(s) for s in held):
        return "no initial state among the graph's inputs"
    if x is None or not is_one(x, 0):
        return "more than one step in time"
    return ""


def remembered(graph: ir.Graph) -> dict[str, str]:
    """Input -> output of what the rewritten operators remember, where the graph hands both over."""
    inputs = {v.name for v in graph.inputs}
    pairs = {str(v.meta.get(REMEMBERED)): v.name or "" for v in graph.outputs if v.meta.get(REMEMBERED)}
    return {i: o for i, o in pairs.items() if i in inputs}


def refuse(node: ir.Node) -> None:
    why = problem(node) or "a state that is not read layer by layer"
    raise FewbitError(
        f"node {label(node)}: {node.op_type} with {why} is no step of a policy; "
        "export one step, its state an input and an output, or use --method dynamic"
    )


def _inputs(node: ir.Node) -> list[ir.Value | None]:
    return [*node.inputs, *[None] * 8][:8]


def _attribute(node: ir.Node, name: str, default: Any) -> Any:
    if name not in node.attributes:
        return default
    found = node.attributes[name]
    return found.as_string() if found.type == ir.AttributeType.STRING else found.value


def _is_input(value: ir.Value) -> bool:
    """Is it an input of the graph, moved about, or a layer's part of one?"""
    while (producer := value.producer()) is not None and producer.op_type in (
        "Squeeze", "Unsqueeze", "Slice", "Split", "Gather", "Transpose", "Identity",
    ):  # fmt: skip
        assert producer.inputs[0] is not None
        value = producer.inputs[0]
    return value.is_graph_input()


class _Nodes:
    """Nodes of one step in the making, put before the operator that they replace."""

    def __init__(self, graph: ir.Graph, node: ir.Node):
        self.graph, self.node, self.stem = graph, node, node.name or node.outputs[0].name or node.op_type
        self.count = 0

    def op(self, op: str, *inputs: ir.Value, width: int = 0, outputs: int = 1, **attributes: Any) -> Any:
        """The output, or a list of them; width: of a value [batch, width]."""
        self.count += 1
        name = fresh(self.graph, f"{self.stem}.{op.lower()}{self.count}")
        made = ir.node(op, list(inputs), attributes=attributes or None, name=name, num_outputs=outputs)
        for k, out in enumerate(made.outputs):
            out.name = fresh(self.graph, f"{name}.out{k if outputs > 1 else ''}")
            out.dtype = ir.DataType.FLOAT
            out.shape = ir.Shape(["batch", width]) if width else None
        self.graph.insert_before(self.node, made)
        return made.outputs[0] if outputs == 1 else list(made.outputs)

    def constant(self, array: np.ndarray) -> ir.Value:
        return add_constant(self.graph, f"{self.stem}.constant", np.ascontiguousarray(array))

    def axes(self, op: str, value: ir.Value, *axes: int, width: int = 0) -> ir.Value:
        return self.op(op, value, self.constant(np.array(axes, np.int64)), width=width)

    def dense(self, x: ir.Value, weight: np.ndarray, bias: np.ndarray) -> ir.Value:
        return self.op("Gemm", x, self.constant(weight), self.constant(bias), width=len(weight), transB=1)


def _rewrite(graph: ir.Graph, node: ir.Node) -> None:
    """ONNX LSTM-14, GRU-14: X [1, batch, in], states [1, batch, hidden] -> Y [1, 1, batch, hidden], Y_h, Y_c like the states."""
    _inputs_by_layer(graph, node)
    x, weight, recurrence, bias, _, *held = _inputs(node)[: 7 if node.op_type == "LSTM" else 6]
    w, r = const(weight)[0], const(recurrence)[0]  # type: ignore[index]
    hidden, given = r.shape[1], const(bias)
    b_x, b_h = np.split(given[0], 2) if given is not None else [np.zeros(len(r), r.dtype)] * 2
    made = _Nodes(graph, node)
    assert x is not None
    taken = made.axes("Squeeze", x, 0, width=w.shape[1])
    before = [made.axes("Squeeze", s, 0, width=hidden) for s in held if s is not None]
    if node.op_type == "LSTM":
        after = _lstm(made, taken, before[0], before[1], np.concatenate([w, r], 1), b_x + b_h)
    else:
        after = _gru(made, taken, before[0], (w, r, b_x, b_h), bool(_attribute(node, "linear_before_reset", 0)))
    for value, state in zip(after, before, strict=True):
        value.meta[REMEMBERED] = places(state)[0].name
    one = [made.axes("Unsqueeze", value, 0) for value in after]
    for old, new in zip(node.outputs, [made.axes("Unsqueeze", after[0], 0, 1), *one], strict=False):
        replace_value(graph, old, new)
    graph.remove(node, safe=True)


def _lstm(made: _Nodes, x: ir.Value, h: ir.Value, c: ir.Value, weight: np.ndarray, bias: np.ndarray) -> list[ir.Value]:
    """The next h and c; gates in ONNX's order: input, output, forget, cell."""
    hidden = len(weight) // 4
    gates = made.dense(made.op("Concat", x, h, width=weight.shape[1], axis=1), weight, bias)
    i, o, f, g = made.op("Split", gates, width=hidden, outputs=4, axis=1, num_outputs=4)
    i, o, f = (made.op("Sigmoid", v, width=hidden) for v in (i, o, f))
    kept = made.op("Mul", f, c, width=hidden)
    new = made.op("Mul", i, made.op("Tanh", g, width=hidden), width=hidden)
    cell = made.op("Add", kept, new, width=hidden)
    return [made.op("Mul", o, made.op("Tanh", cell, width=hidden), width=hidden), cell]


def _gru(made: _Nodes, x: ir.Value, h: ir.Value, weights: tuple[np.ndarray, ...], reset_after: bool) -> list[ir.Value]:
    """The next h = n + z (h - n); gates in ONNX's order: update, reset, new."""
    w, r, b_x, b_h = weights
    n = r.shape[1]
    k = 2 * n
    both = made.op("Concat", x, h, width=w.shape[1] + n, axis=1)
    gates = made.dense(both, np.concatenate([w[:k], r[:k]], 1), b_x[:k] + b_h[:k])
    z, reset = (made.op("Sigmoid", v, width=n) for v in made.op("Split", gates, width=n, outputs=2, axis=1, num_outputs=2))
    if reset_after:
        own = made.op("Mul", reset, made.dense(h, r[k:], b_h[k:]), width=n)
        total = made.op("Add", made.dense(x, w[k:], b_x[k:]), own, width=n)
    else:
        seen = made.op("Concat", x, made.op("Mul", reset, h, width=n), width=w.shape[1] + n, axis=1)
        total = made.dense(seen, np.concatenate([w[k:], r[k:]], 1), b_x[k:] + b_h[k:])
    new = made.op("Tanh", total, width=n)
    return [made.op("Add", new, made.op("Mul", z, made.op("Sub", h, new, width=n), width=n), width=n)]


def _inputs_by_layer(graph: ir.Graph, node: ir.Node) -> None:
    """A graph input [layers, batch, hidden] that the operator reads becomes one input [batch, hidden] a layer."""
    hidden = int(const(node.inputs[2]).shape[2])  # type: ignore[union-attr]
    for value in [v for v in _inputs(node)[5:7] if v is not None]:
        while (producer := value.producer()) is not None and producer.op_type in ("Slice", "Split", "Gather", "Identity"):
            value = producer.inputs[0]  # type: ignore[assignment]
        if not value.is_graph_input() or value.shape is None or len(value.shape) != 3:
            continue
        parts = [part for user, index in value.uses() for part in _parts(user, index)]
        if any(layer is None for _, layer in parts):
            refuse(node)
        count = 1 + max(layer for _, layer in parts if layer is not None)
        at, name = list(graph.inputs).index(value), value.name or "state"
        value.name = fresh(graph, f"{name}.layers")
        names = [f"{name}_{k}" if count > 1 else name for k in range(count)]
        for one in names:
            give_up(graph, one)
        new = [_input(one, hidden) for one in names]
        graph.inputs[at : at + 1] = new
        for read, layer in parts:
            _read_layer(graph, value, read, new[layer or 0])


def _input(name: str, hidden: int) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(["batch", hidden]), type=ir.TensorType(ir.DataType.FLOAT))


def _parts(user: ir.Node, index: int) -> list[tuple[ir.Value | tuple[ir.Node, int], int | None]]:
    """(what reads one layer: a value made of it, or the operator's input itself; the layer's number or None if it is not one)."""
    if user.op_type in GATES:
        return [((user, index), 0)]
    if (
        user.op_type == "Split"
        and "axis" not in user.attributes
        or user.op_type == "Split"
        and user.attributes["axis"].value == 0
    ):
        return [(out, k) for k, out in enumerate(user.outputs)]
    if user.op_type == "Slice" and len(user.inputs) > 3:
        start, end, axis = (const(i) for i in user.inputs[1:4])
        if start is not None and end is not None and axis is not None and axis.tolist() == [0]:
            k = int(start[0])
            return [(user.outputs[0], k if k >= 0 and int(end[0]) == k + 1 else None)]
    return [(user.outputs[0], None)]


def _read_layer(graph: ir.Graph, whole: ir.Value, read: ir.Value | tuple[ir.Node, int], layer: ir.Value) -> None:
    """Give what read one layer of the whole [1, batch, hidden] that layer's own input."""
    first = read[0] if isinstance(read, tuple) else read.producer()
    assert first is not None
    made = _Nodes(graph, first)
    made.stem = f"{layer.name}.{made.stem}"
    one = made.axes("Unsqueeze", layer, 0)
    users = [read] if isinstance(read, tuple) else list(read.uses())
    for user, index in users:
        user.replace_input_with(index, one)


def _outputs_by_layer(graph: ir.Graph) -> bool:
    """An output [layers, batch, hidden] of what steps leave becomes one output [batch, hidden] a layer."""
    changed = False
    for out in list(graph.outputs):
        producer = out.producer()
        stacked = producer is not None and producer.op_type == "Concat" and producer.attributes["axis"].value == 0
        parts = [places(v) for v in (producer.inputs if producer is not None and stacked else [out]) if v is not None]
        if producer is None or any(not s.meta.get(REMEMBERED) or where != [None, 0, 1] for s, where in parts):
            continue
        at, name = list(graph.outputs).index(out), out.name or "state"
        out.name = fresh(graph, f"{name}.layers")
        made = _Nodes(graph, producer)
        made.stem = f"{name}.by_layer"
        new = []
        for k, (source, _) in enumerate(parts):
            apart = source in graph.outputs
            new.append(made.op("Identity", source, width=int(source.shape[1])) if apart else source)  # type: ignore[index, arg-type]
            new[-1].meta[REMEMBERED] = source.meta[REMEMBERED]
            own = f"{name}_{k}" if len(parts) > 1 else name
            give_up(graph, own)
            new[-1].name = own
        graph.outputs[at : at + 1] = new
        changed = True
    return changed
