"""Batch normalisation, and any other factor or shift per channel, folded into the dense layer before or behind it.

(Jacob et al. 2018, section 3.2.) Before the first layer nothing is folded: there such nodes are the observations' normaliser.
"""

import numpy as np
import onnx_ir as ir

from fewbit.graph.fold import add_constant, const, replace_node

AFFINE = {"Add", "Sub", "Mul", "Div"}


def fold_affine(graph: ir.Graph) -> bool:
    """One pass over the graph, in place; True where something changed."""
    changed = [_batch_norm(graph, node) for node in list(graph) if node.op_type == "BatchNormalization"]
    for node in list(graph):
        found = _read(node)
        if found is not None and node.graph is graph:
            changed.append(_into_gemm_before(graph, node, *found) or _into_gemms_behind(graph, node, *found))
    return any(changed)


def _batch_norm(graph: ir.Graph, node: ir.Node) -> bool:
    """scale (x - mean) / sqrt(var + epsilon) + bias as one Mul and one Add, in float64 until it is written."""
    arrays = [const(i) for i in node.inputs[1:5]]
    if any(a is None for a in arrays) or any(o.uses() for o in node.outputs[1:]):
        return False
    scale, bias, mean, var = (np.asarray(a, np.float64) for a in arrays)
    epsilon = node.attributes["epsilon"].value if "epsilon" in node.attributes else 1e-5
    factor = scale / np.sqrt(var + epsilon)
    stem = node.name or node.outputs[0].name or "norm"
    pair = [node.inputs[0], add_constant(graph, f"{stem}.factor", factor.astype(np.float32))]
    mul = ir.node("Mul", pair, name=f"{stem}.mul")
    mul.outputs[0].name = f"{stem}.scaled"
    shift = add_constant(graph, f"{stem}.shift", (bias - mean * factor).astype(np.float32))
    add = ir.node("Add", [mul.outputs[0], shift], name=f"{stem}.add")
    add.outputs[0].name = f"{stem}.shifted"
    graph.insert_after(node, [mul, add])
    replace_node(graph, node, add.outputs[0])
    return True


def _read(node: ir.Node) -> tuple[ir.Value, np.ndarray, np.ndarray] | None:
    """(x, factor, shift) of a node that is x * factor + shift with constants of one value a channel; None otherwise."""
    if node.op_type not in AFFINE or len(node.inputs) != 2:
        return None
    a, b = node.inputs
    first, second = const(a), const(b)
    x, c = (a, second) if second is not None else (b, first)
    if x is None or c is None or const(x) is not None or (first is not None and node.op_type in ("Sub", "Div")):
        return None
    if c.dtype != np.float32 or c.size != (c.shape[-1] if c.ndim else 1):
        return None
    v = c.reshape(-1).astype(np.float64)
    one, none = np.ones_like(v), np.zeros_like(v)
    with np.errstate(divide="ignore"):
        factor = {"Mul": v, "Div": 1 / v}.get(node.op_type, one)
    return (x, factor, {"Add": v, "Sub": -v}.get(node.op_type, none)) if np.isfinite(factor).all() else None


def _dense(node: ir.Node | None) -> tuple[np.ndarray, np.ndarray] | None:
    """(weight [out, in], bias [out]) of a Gemm as fold._dense writes it."""
    if node is None or node.op_type != "Gemm" or len(node.inputs) != 3 or "transB" not in node.attributes:
        return None
    weight, bias = const(node.inputs[1]), const(node.inputs[2])
    return None if weight is None or bias is None else (weight.astype(np.float64), bias.astype(np.float64))


def _write(graph: ir.Graph, gemm: ir.Node, weight: np.ndarray, bias: np.ndarray) -> None:
    for index, array in ((1, weight), (2, bias)):
        value = gemm.inputs[index]
        stem = (value.name if value is not None else None) or "folded"
        gemm.replace_input_with(index, add_constant(graph, stem, np.ascontiguousarray(array.astype(np.float32))))


def _into_gemm_before(graph: ir.Graph, node: ir.Node, x: ir.Value, factor: np.ndarray, shift: np.ndarray) -> bool:
    gemm = x.producer()
    held = _dense(gemm)
    if gemm is None or held is None or len(x.uses()) != 1 or x.is_graph_output() or len(factor) not in (1, len(held[1])):
        return False
    weight, bias = held
    factor = np.broadcast_to(factor, len(bias))
    _write(graph, gemm, weight * factor[:, None], bias * factor + shift)
    replace_node(graph, node, x)
    return True


def _into_gemms_behind(graph: ir.Graph, node: ir.Node, x: ir.Value, factor: np.ndarray, shift: np.ndarray) -> bool:
    out = node.outputs[0]
    gemms = [n for n, index in out.uses() if index == 0]
    held = [_dense(g) for g in gemms]
    if not gemms or len(gemms) != len(out.uses()) or out.is_graph_output() or not _behind_a_gemm(x):
        return False
    if any(h is None or len(factor) not in (1, h[0].shape[1]) for h in held):
        return False
    for gemm, h in zip(gemms, held, strict=True):
        assert h is not None
        weight, bias = h
        wide = np.broadcast_to(shift, weight.shape[1])
        _write(graph, gemm, weight * factor, bias + weight @ wide)
    replace_node(graph, node, x)
    return True


def _behind_a_gemm(value: ir.Value) -> bool:
    producer = value.producer()
    return producer is not None and (
        producer.op_type == "Gemm" or any(_behind_a_gemm(i) for i in producer.inputs if i is not None)
    )
