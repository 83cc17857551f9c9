"""Comparisons of whole numbers and rounded probabilities in the operators that every executor has: one-hot codes, switches."""

import numpy as np
import onnx_ir as ir

from fewbit.graph.edit import add_constant, const, replace_node

WHOLE = {ir.DataType[name] for name in ("INT8", "UINT8", "INT16", "UINT16", "INT32", "INT64")}
KEEPS_KIND = {"Identity", "Reshape", "Flatten", "Slice", "Split", "Squeeze", "Unsqueeze", "Transpose", "Expand", "Gather"}
LARGEST = 1 << 23  # whole numbers below it, and what lies beside them, are float32s of their own


def fold_choices(graph: ir.Graph) -> bool:
    """True where something changed."""
    return any([_one_hot(graph, node) or _switch(graph, node) for node in list(graph)])


def _one_hot(graph: ir.Graph, node: ir.Node) -> bool:
    """float(x == k) of whole numbers x is Relu(1 - |x - k|)."""
    if node.op_type != "Cast" or node.attributes["to"].value != ir.DataType.FLOAT:
        return False
    before = node.inputs[0].producer() if node.inputs[0] is not None else None
    while before is not None and before.op_type == "Cast" and before.inputs[0] is not None:
        before = before.inputs[0].producer()
    if before is None or before.op_type != "Equal":
        return False
    live = [i for i in before.inputs if const(i) is None]
    known = [array for array in map(const, before.inputs) if array is not None]
    if len(live) != 1 or live[0] is None or not _is_whole(live[0]) or np.abs(known[0]).max(initial=0) >= LARGEST:
        return False
    stem = node.outputs[0].name
    which = add_constant(graph, f"{stem}.which", known[0].astype(np.float32))
    one = add_constant(graph, f"{stem}.one", np.asarray(1, np.float32))
    cast = ir.node("Cast", [live[0]], attributes={"to": ir.DataType.FLOAT}, name=f"{stem}.cast")
    apart = ir.node("Sub", [cast.outputs[0], which], name=f"{stem}.apart")
    far = ir.node("Abs", [apart.outputs[0]], name=f"{stem}.far")
    near = ir.node("Sub", [one, far.outputs[0]], name=f"{stem}.near")
    hot = ir.node("Relu", [near.outputs[0]], name=f"{stem}.hot")
    _put(graph, node, [cast, apart, far, near, hot])
    return True


def _is_whole(value: ir.Value) -> bool:
    """Does it hold whole numbers, by its type or by where it comes from?"""
    while value.dtype is None and (made := value.producer()) is not None and made.op_type in KEEPS_KIND:
        if made.inputs[0] is None:
            return False
        value = made.inputs[0]
    made = value.producer()
    return value.dtype in WHOLE or (made is not None and made.op_type in ("ArgMax", "ArgMin"))


def _switch(graph: ir.Graph, node: ir.Node) -> bool:
    """round(sigmoid(x)) of a dense layer's x is which of 0 and x is larger, the first where they are equal."""
    sigmoid = node.inputs[0].producer() if node.op_type == "Round" and node.inputs[0] is not None else None
    if sigmoid is None or sigmoid.op_type != "Sigmoid" or sigmoid.inputs[0] is None:
        return False
    gemm = sigmoid.inputs[0].producer()
    if gemm is None or gemm.op_type != "Gemm" or len(gemm.inputs) != 3 or "transB" not in gemm.attributes:
        return False
    weight, bias = const(gemm.inputs[1]), const(gemm.inputs[2])
    if weight is None or bias is None or bias.shape != weight.shape[:1] or not gemm.attributes["transB"].value:
        return False
    stem, count = node.outputs[0].name, len(weight)
    pairs = np.stack([np.zeros_like(weight), weight], 1).reshape(2 * count, -1)
    both = add_constant(graph, f"{stem}.pairs_weight", pairs)
    biases = add_constant(graph, f"{stem}.pairs_bias", np.stack([np.zeros_like(bias), bias], 1).reshape(-1))
    shape = add_constant(graph, f"{stem}.pairs", np.array([-1, count, 2]))
    wide = ir.node("Gemm", [gemm.inputs[0], both, biases], attributes=dict(gemm.attributes), name=f"{stem}.pairs")
    apart = ir.node("Reshape", [wide.outputs[0], shape], name=f"{stem}.apart")
    larger = ir.node("ArgMax", [apart.outputs[0]], attributes={"axis": 2, "keepdims": 0}, name=f"{stem}.larger")
    number = ir.node("Cast", [larger.outputs[0]], attributes={"to": ir.DataType.FLOAT}, name=f"{stem}.number")
    _put(graph, node, [wide, apart, larger, number])
    return True


def _put(graph: ir.Graph, old: ir.Node, nodes: list[ir.Node]) -> None:
    """The nodes, the last of which makes the same, in the old one's place."""
    for new in nodes:
        new.outputs[0].name = f"{new.name}.out"
    nodes[-1].outputs[0].dtype = ir.DataType.FLOAT
    graph.insert_after(old, nodes)
    replace_node(graph, old, nodes[-1].outputs[0])
