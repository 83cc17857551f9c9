"""What heads compute in vain: a softmax whose largest is sought, rows that nobody reads, quantiles that are averaged."""

import numpy as np
import onnx_ir as ir

from fewbit.graph.edit import add_constant, const, replace_node, replace_value
from fewbit.graph.fold_dense import gemm, plain_gemm
from fewbit.graph.infer import rank, size


def fold_heads(graph: ir.Graph) -> bool:
    """One pass over the graph, in place; True where something changed."""
    return any([_argmax(node) or _split(graph, node) or _mean_of_quantiles(graph, node) for node in list(graph)])


def _axis(node: ir.Node, default: int, axes: int | None) -> int | None:
    """The node's one axis, counted from the front where the number of axes is known."""
    axis = int(node.attributes["axis"].value) if "axis" in node.attributes else default
    return axis if axis >= 0 else axis + axes if axes is not None else None


def _only_user(value: ir.Value | None) -> bool:
    return value is not None and len(value.uses()) == 1 and not value.is_graph_output()


def _argmax(node: ir.Node) -> bool:
    """The largest of softmax(x), or of x less its row's log-sum-exp, is the largest of x, along the same axis."""
    x = node.inputs[0] if node.op_type == "ArgMax" else None
    before = x.producer() if x is not None else None
    if x is None or before is None:
        return False
    axes = rank(x)
    along = _axis(node, 0, axes)
    normal = before.op_type in ("Softmax", "LogSoftmax") and along is not None and _axis(before, -1, axes) == along
    if not normal and not (before.op_type == "Sub" and _is_log_sum(before.inputs[1], before.inputs[0], along, axes)):
        return False
    node.replace_input_with(0, before.inputs[0])
    return True


def _is_log_sum(value: ir.Value | None, x: ir.Value | None, along: int | None, axes: int | None) -> bool:
    """Is it x's log-sum-exp along that one axis, which is kept, so that all of a row are shifted alike?"""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "ReduceLogSumExp" or node.inputs[0] is not x or axes is None:
        return False
    found = const(node.inputs[1]) if len(node.inputs) > 1 else None
    kept = "keepdims" not in node.attributes or node.attributes["keepdims"].value == 1
    return kept and found is not None and [int(a) % axes for a in found.reshape(-1)] == [along]


def _split(graph: ir.Graph, node: ir.Node) -> bool:
    """A Split of a Gemm's output with one part used: the other rows of the Gemm are never computed."""
    x = node.inputs[0] if node.op_type == "Split" else None
    layer = x.producer() if x is not None else None
    held, used = plain_gemm(layer), [k for k, o in enumerate(node.outputs) if o.uses() or o.is_graph_output()]
    if x is None or layer is None or held is None or not _only_user(x) or len(used) != 1 or _axis(node, 0, 2) != 1:
        return False
    sizes = _sizes(node, len(held[1]))
    if sizes is None:
        return False
    rows = slice(sum(sizes[: used[0]]), sum(sizes[: used[0] + 1]))
    for index, array in enumerate(held, start=1):
        value = layer.inputs[index]
        layer.replace_input_with(index, add_constant(graph, f"{value.name if value else layer.name}.used", array[rows].copy()))
    x.shape = node.outputs[used[0]].shape
    replace_value(graph, node.outputs[used[0]], x)
    graph.remove(node, safe=True)
    return True


def _sizes(node: ir.Node, whole: int) -> list[int] | None:
    """Of a Split's parts: as given, or all alike and the last one smaller (ONNX Split-18); None where they are computed."""
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        given = const(node.inputs[1])
        return None if given is None else [int(s) for s in given]
    each = -(-whole // len(node.outputs))
    return [max(min(each, whole - k * each), 0) for k in range(len(node.outputs))]


def _mean_of_quantiles(graph: ir.Graph, node: ir.Node) -> bool:
    """QR-DQN: Gemm, Reshape to [batch, quantiles, actions], ReduceMean over quantiles = one Gemm with mean rows."""
    x = node.inputs[0] if node.op_type == "ReduceMean" else None
    reshape = x.producer() if x is not None else None
    made = reshape.inputs[0] if reshape is not None and reshape.op_type == "Reshape" else None
    layer = made.producer() if made is not None else None
    held = plain_gemm(layer)
    if layer is None or held is None or not _only_user(made) or not _only_user(x) or layer.inputs[0] is None:
        return False
    axes = const(node.inputs[1]) if len(node.inputs) > 1 else None
    keep = "keepdims" not in node.attributes or node.attributes["keepdims"].value != 0
    quantiles, actions = size(x, 1), size(x, 2)
    if axes is None or keep or rank(x) != 3 or [int(a) % 3 for a in axes.reshape(-1)] != [1]:
        return False
    if quantiles is None or actions is None or quantiles * actions != len(held[1]):
        return False  # the rows of one observation do not lie in one matrix
    weight, bias = (a.astype(np.float64).reshape(quantiles, actions, -1).mean(axis=0) for a in held)
    new = gemm(graph, layer.inputs[0], weight.astype(held[0].dtype), bias.reshape(-1).astype(held[1].dtype), f"{layer.name}.mean")
    graph.insert_after(node, new)
    replace_node(graph, node, new.outputs[0])
    return True
