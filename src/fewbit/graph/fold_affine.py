"""Batch normalisation, and any other factor or shift per channel, folded into the layer before or the dense layer behind it.

(Jacob et al. 2018, section 3.2.) Channels are axis 1. Before the first layer nothing is folded: there such nodes are the
observations' normaliser.
"""

import math

import numpy as np
import onnx_ir as ir

from fewbit.graph.edit import add_constant, const, new_node, replace_node
from fewbit.graph.fold_dense import plain_gemm
from fewbit.graph.infer import rank, size

AFFINE = {"Add", "Sub", "Mul", "Div"}


def fold_affine(graph: ir.Graph) -> bool:
    """One pass over the graph, in place; True where something changed."""
    changed = [_batch_norm(graph, node) for node in list(graph) if node.op_type == "BatchNormalization"]
    for node in list(graph):
        found = _read(node)
        if found is not None and node.graph is graph:
            changed.append(_into_layer_before(graph, node, *found) or _into_gemms_behind(graph, node, *found))
    return any(changed)


def _batch_norm(graph: ir.Graph, node: ir.Node) -> bool:
    """scale (x - mean) / sqrt(var + epsilon) + bias as one Mul and one Add, in float64 until it is written."""
    arrays, axes, x = [const(i) for i in node.inputs[1:5]], rank(node.inputs[0]), node.inputs[0]
    training = "training_mode" in node.attributes and node.attributes["training_mode"].value != 0
    if any(a is None for a in arrays) or training or x is None or axes is None or axes < 2:
        return False
    if any(o.uses() or o.is_graph_output() for o in node.outputs[1:]):
        return False
    scale, bias, mean, var = (np.asarray(a, np.float64) for a in arrays)
    epsilon = node.attributes["epsilon"].value if "epsilon" in node.attributes else 1e-5
    factor = scale / np.sqrt(var + epsilon)
    channels = [-1, *[1] * (axes - 2)]
    stem, value, nodes = node.name or node.outputs[0].name or "norm", x, []
    for op, array in (("Mul", factor), ("Add", bias - mean * factor)):
        constant = add_constant(graph, f"{stem}.{op.lower()}_by", array.astype(np.float32).reshape(channels))
        nodes.append(new_node(graph, op, [value, constant], f"{stem}.{op.lower()}"))
        value = nodes[-1].outputs[0]
        value.shape, value.dtype = x.shape, ir.DataType.FLOAT
    graph.insert_after(node, nodes)
    replace_node(graph, node, value)
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
    if c.dtype != np.float32 or not _by_channel(c.shape, x):
        return None
    v = c.reshape(-1).astype(np.float64)
    one, none = np.ones_like(v), np.zeros_like(v)
    with np.errstate(divide="ignore"):
        factor = {"Mul": v, "Div": 1 / v}.get(node.op_type, one)
    shift = {"Add": v, "Sub": -v}.get(node.op_type, none)
    return (x, factor, shift) if np.isfinite(factor).all() and np.isfinite(shift).all() else None


def _by_channel(shape: tuple[int, ...], x: ir.Value) -> bool:
    """Is a constant of that shape one number, or one for each index of x's axis 1, whatever the others are?"""
    axes = rank(x)
    if axes is None or len(shape) > axes or axes < 2:
        return False
    whole = (1,) * (axes - len(shape)) + shape
    return whole[1] in (1, size(x, 1)) and math.prod(whole) == whole[1]


def _layer(node: ir.Node | None) -> tuple[np.ndarray, np.ndarray] | None:
    """(weight [out, ...], bias [out]) in float64 of a plain Gemm or a Conv of constants."""
    if node is None or node.op_type != "Conv":
        held = plain_gemm(node)
        return None if held is None else (held[0].astype(np.float64), held[1].astype(np.float64))
    weight, given = const(node.inputs[1]), node.inputs[2] if len(node.inputs) > 2 else None
    bias = const(given) if given is not None else np.zeros(0 if weight is None else len(weight))
    return None if weight is None or bias is None else (weight.astype(np.float64), bias.astype(np.float64))


def _write(graph: ir.Graph, layer: ir.Node, weight: np.ndarray, bias: np.ndarray) -> None:
    """New constants of this layer alone: others may read the old ones."""
    layer.resize_inputs(3)
    for index, array in ((1, weight), (2, bias)):
        value = layer.inputs[index]
        stem = (value.name if value is not None else None) or f"{layer.name or layer.outputs[0].name}.bias"
        layer.replace_input_with(index, add_constant(graph, stem, np.ascontiguousarray(array.astype(np.float32))))


def _into_layer_before(graph: ir.Graph, node: ir.Node, x: ir.Value, factor: np.ndarray, shift: np.ndarray) -> bool:
    layer = x.producer()
    held = _layer(layer)
    if layer is None or held is None or len(x.uses()) != 1 or x.is_graph_output() or len(factor) not in (1, len(held[1])):
        return False
    weight, bias = held
    factor = np.broadcast_to(factor, len(bias))
    _write(graph, layer, weight * factor.reshape(-1, *[1] * (weight.ndim - 1)), bias * factor + shift)
    replace_node(graph, node, x)
    return True


def _into_gemms_behind(graph: ir.Graph, node: ir.Node, x: ir.Value, factor: np.ndarray, shift: np.ndarray) -> bool:
    """Only where x is as wide as the sum: a constant may widen it, and a dense layer may be narrower by then."""
    out = node.outputs[0]
    gemms = [n for n, index in out.uses() if index == 0]
    held = [plain_gemm(g) for g in gemms]
    if not gemms or len(gemms) != len(out.uses()) or out.is_graph_output() or not _behind_a_gemm(x):
        return False
    if any(h is None or rank(x) != 2 or size(x, 1) != h[0].shape[1] for h in held):
        return False
    for layer, h in zip(gemms, held, strict=True):
        assert h is not None
        weight, bias = (a.astype(np.float64) for a in h)
        _write(graph, layer, weight * factor, bias + weight @ np.broadcast_to(shift, weight.shape[1]))
    replace_node(graph, node, x)
    return True


def _behind_a_gemm(value: ir.Value) -> bool:
    """Does it depend on what a Gemm made?"""
    waiting, seen = [value], {value}
    while waiting:
        producer = waiting.pop().producer()
        if producer is None:
            continue
        if producer.op_type == "Gemm":
            return True
        new = [i for i in producer.inputs if i is not None and i not in seen]
        seen.update(new)
        waiting += new
    return False
