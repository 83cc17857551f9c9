"""Dynamic quantization: weights int8 ahead of time, every activation's range taken as it comes (DynamicQuantizeLinear).

Dense layers become DynamicQuantizeLinear and MatMulInteger; LSTM and GRU a quantized projection of the whole sequence and
a Scan whose step quantizes the state. All standard ONNX (opset 11 on). The range is that of the whole batch, as the
operator defines it: an action depends on what else is in its batch.
"""

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from fewbit.errors import FewbitError
from fewbit.numerics.affine import check_finite
from fewbit.numerics.formats import INTEGERS
from fewbit.solvers import rtn

GATES = {"LSTM": 4, "GRU": 3}


class _Nodes:
    """Nodes and constants of one graph or Scan body in the making; methods return the name of what they make.

    taken: every name of the graph; nothing that is made begins as one of them does behind the stem.
    """

    def __init__(self, stem: str, taken: set[str]):
        k = 1
        self.stem, self.taken = stem, taken
        while any(name.startswith(f"{self.stem}.") for name in taken):
            self.stem, k = f"{stem}_{k}", k + 1
        taken.add(f"{self.stem}.")
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def op(self, op: str, *inputs: str, out: str | list[str] = "", **attributes: Any) -> str:
        outputs = out if isinstance(out, list) else [out or f"{self.stem}.{len(self.nodes)}"]
        self.nodes.append(helper.make_node(op, list(inputs), outputs, f"{self.stem}.{op}{len(self.nodes)}", **attributes))
        return outputs[0]

    def constant(self, array: np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(array), f"{self.stem}.c{len(self.constants)}"))
        return self.constants[-1].name

    def product(self, x: str, weight: np.ndarray) -> str:
        """x [..., in] times weight [out, in], both in 8 bits; the sum is scaled once.

        The codes are stored as uint8 with zero point 128: of signed weights ONNX Runtime adds two products in 16 bits on x86
        without VNNI, which saturates (docs/semantics.md); of unsigned ones it does not.
        """
        check_finite(weight, f"weight of {self.stem}")
        step = rtn.channel_scale(weight, INTEGERS["int8"])
        found = rtn.solve(weight, step, INTEGERS["int8"])
        k = len(self.nodes)
        q, s, z = (f"{self.stem}.{part}{k}" for part in ("codes", "scale", "zero_point"))
        self.op("DynamicQuantizeLinear", x, out=[q, s, z])
        codes = np.ascontiguousarray(found.T.astype(np.int16) + 128).astype(np.uint8)
        acc = self.op("MatMulInteger", q, self.constant(codes), z, self.constant(np.asarray(128, np.uint8)))
        scale = self.op("Mul", s, self.constant(step))
        return self.op("Mul", self.op("Cast", acc, to=TensorProto.FLOAT), scale)


def write(model: ir.Model) -> ir.Model:
    """A copy of the float graph with every Gemm, LSTM and GRU of constant weights dynamically quantized."""
    proto = ir.to_proto(model)
    arrays = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    nodes, constants, count = [], [], 0
    taken = {*arrays, *(v.name for v in proto.graph.input)}
    taken |= {name for node in proto.graph.node for name in (node.name, *node.output)}
    for node in proto.graph.node:
        dense = node.op_type == "Gemm" and all(i in arrays for i in node.input[1:])
        if not dense and node.op_type not in GATES:
            nodes.append(node)
            continue
        made = _Nodes(node.name or node.output[0], taken)
        (_dense if dense else _recurrent)(made, node, arrays)
        count += 1
        nodes += made.nodes
        constants += made.constants
    if not count:
        raise FewbitError("the graph has no Gemm, LSTM or GRU with constant weights; nothing to quantize")
    used = {i for n in nodes for i in n.input} | {o.name for o in proto.graph.output}
    kept = [t for t in proto.graph.initializer if t.name in used]
    graph = helper.make_graph(nodes, "dynamic", proto.graph.input, proto.graph.output, [*kept, *constants])
    return ir.from_proto(helper.make_model(graph, opset_imports=proto.opset_import, ir_version=proto.ir_version))


def _dense(made: _Nodes, node: onnx.NodeProto, arrays: dict[str, np.ndarray]) -> None:
    made.op("Add", made.product(node.input[0], arrays[node.input[1]]), node.input[2], out=node.output[0])


def _recurrent(made: _Nodes, node: onnx.NodeProto, arrays: dict[str, np.ndarray]) -> None:
    """X [seq, batch, in] -> Y [seq, 1, batch, hidden], Y_h and Y_c [1, batch, hidden] (ONNX LSTM-14, GRU-14)."""
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    inputs = [*node.input, *[""] * 8][:8]
    x, weight, recurrence, bias, lengths, h, c, peephole = inputs
    states = [h, c] if node.op_type == "LSTM" else [h]
    _check(node, attributes, [weight, recurrence, *filter(None, [bias])], arrays, states, lengths or peephole)
    w, r = arrays[weight][0], arrays[recurrence][0]
    size = r.shape[1]
    b_x, b_h = np.split(arrays[bias][0], 2) if bias else [np.zeros(len(r), r.dtype)] * 2
    if node.op_type == "LSTM":  # only a GRU adds its recurrent bias behind the reset gate
        b_x, b_h = b_x + b_h, np.zeros_like(b_h)
    projected = made.op("Add", made.product(x, w), made.constant(b_x))
    first = made.constant(np.array([0]))
    started = [made.op("Squeeze", s, first) for s in states]
    body = (_lstm_step if node.op_type == "LSTM" else _gru_step)(made, r, b_h, size)
    ends = [f"{made.stem}.end{k}" for k in range(len(states))]
    every = f"{made.stem}.every"
    made.op("Scan", *started, projected, out=[*ends, every], body=body, num_scan_inputs=1)
    wanted = [*node.output, "", "", ""][:3]
    if wanted[0]:
        made.op("Unsqueeze", every, made.constant(np.array([1])), out=wanted[0])
    for end, name in zip(ends, wanted[1:], strict=False):
        if name:
            made.op("Unsqueeze", end, first, out=name)


def _check(
    node: onnx.NodeProto,
    attributes: dict[str, Any],
    weights: list[str],
    arrays: dict[str, np.ndarray],
    states: list[str],
    more: str,
) -> None:
    problem = (
        "weights and bias that are not constants"
        if any(w not in arrays for w in weights)
        else "sequence lengths or peepholes"
        if more
        else "no initial state"
        if not all(states)
        else f"direction {attributes['direction'].decode()}"
        if attributes.get("direction", b"forward") != b"forward"
        else "activations of its own"
        if "activations" in attributes or "clip" in attributes
        else "batch first"
        if attributes.get("layout")
        else "the reset gate before the product (linear_before_reset=0)"
        if node.op_type == "GRU" and not attributes.get("linear_before_reset")
        else ""
    )
    if problem:
        raise FewbitError(f"node {node.name}: {node.op_type} with {problem} is not supported by --method dynamic")


def _lstm_step(outer: _Nodes, recurrence: np.ndarray, bias: np.ndarray, size: int) -> onnx.GraphProto:
    """(h, c, projected) -> (h', c', h'); gates in ONNX's order: input, output, forget, cell."""
    g = _Nodes(f"{outer.stem}_step", outer.taken)
    gates = g.op("Add", g.op("Identity", "projected"), g.product("h", recurrence))
    parts = [f"{g.stem}.{k}" for k in ("i", "o", "f", "g")]
    g.op("Split", gates, out=parts, axis=-1, num_outputs=4)
    i, o, f = (g.op("Sigmoid", p) for p in parts[:3])
    g.op("Add", g.op("Mul", f, "c"), g.op("Mul", i, g.op("Tanh", parts[3])), out="c_next")
    g.op("Mul", o, g.op("Tanh", "c_next"), out="h_next")
    g.op("Identity", "h_next", out="y")
    return _body(g, {"h": size, "c": size, "projected": 4 * size}, {"h_next": size, "c_next": size, "y": size})


def _gru_step(outer: _Nodes, recurrence: np.ndarray, bias: np.ndarray, size: int) -> onnx.GraphProto:
    """(h, projected) -> (h', h'); gates in ONNX's order: update, reset, hidden; h' = n + z (h - n)."""
    g = _Nodes(f"{outer.stem}_step", outer.taken)
    own = g.op("Add", g.product("h", recurrence), g.constant(bias))
    given, mine = ([f"{g.stem}.{side}{k}" for k in "zrn"] for side in ("x", "h"))
    g.op("Split", "projected", out=given, axis=-1, num_outputs=3)
    g.op("Split", own, out=mine, axis=-1, num_outputs=3)
    z, r = (g.op("Sigmoid", g.op("Add", a, b)) for a, b in zip(given[:2], mine[:2], strict=True))
    n = g.op("Tanh", g.op("Add", given[2], g.op("Mul", r, mine[2])))
    g.op("Add", n, g.op("Mul", z, g.op("Sub", "h", n)), out="h_next")
    g.op("Identity", "h_next", out="y")
    return _body(g, {"h": size, "projected": 3 * size}, {"h_next": size, "y": size})


def _body(g: _Nodes, inputs: dict[str, int], outputs: dict[str, int]) -> onnx.GraphProto:
    """The Scan's body; its inputs and outputs, which go by their order, get names that nothing outside it has."""
    own = {name: f"{g.stem}.{name}" for name in ("h", "c", "projected", "h_next", "c_next", "y")}
    for node in g.nodes:
        node.input[:] = [own.get(i, i) for i in node.input]
        node.output[:] = [own.get(o, o) for o in node.output]
    inputs, outputs = ({own[k]: n for k, n in v.items()} for v in (inputs, outputs))
    values = [[helper.make_tensor_value_info(k, TensorProto.FLOAT, [None, n]) for k, n in v.items()] for v in (inputs, outputs)]
    return helper.make_graph(g.nodes, g.stem, values[0], values[1], g.constants)
