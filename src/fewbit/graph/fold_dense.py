"""Dense layers: MatMul (+ Add) by a constant, and Gemm in any layout, become Gemm(x, weight [out, in], bias [out]), transB=1.

Gemm takes matrices: what is no matrix is reshaped to one before it and back behind it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from fewbit.errors import FewbitError
from fewbit.graph.edit import add_constant, const, label, new_node, replace_node
from fewbit.graph.infer import rank, size


@dataclass(frozen=True)
class _Dense:
    """last: the node whose output it gives; weight [out, in]; added: what is still to be added, if it is no plain bias."""

    x: ir.Value
    weight: np.ndarray
    bias: np.ndarray
    last: ir.Node
    added: ir.Value | None = None


def fold_dense(graph: ir.Graph) -> bool:
    """One pass over the graph, in place; True where something changed."""
    return any([_rewrite(graph, node) for node in list(graph) if node.op_type in ("MatMul", "Gemm") and node.domain == ""])


def refuse_left(node: ir.Node) -> None:
    """A MatMul that stayed one, since too little is known of its input."""
    weight = const(node.inputs[1]) if node.op_type == "MatMul" and node.domain == "" else None
    if weight is not None and weight.dtype.kind == "f":
        x = node.inputs[0]
        name, shape = (x.name, x.shape or "") if x is not None else ("", "")
        raise FewbitError(f"node {label(node)}: a MatMul of {name} {shape}, whose shape is not fixed; export it with fixed sizes")


def plain_gemm(node: ir.Node | None) -> tuple[np.ndarray, np.ndarray] | None:
    """(weight [out, in], bias [out]) of a Gemm as this module writes it, or None."""
    if node is None or node.op_type != "Gemm" or len(node.inputs) != 3 or _number(node, "transB", 0) != 1:
        return None
    weight, bias = const(node.inputs[1]), const(node.inputs[2])
    if weight is None or bias is None or bias.shape != weight.shape[:1] or _number(node, "transA", 0):
        return None
    return (weight, bias) if _number(node, "alpha", 1.0) == _number(node, "beta", 1.0) == 1.0 else None


def gemm(graph: ir.Graph, x: ir.Value, weight: np.ndarray, bias: np.ndarray, stem: str) -> ir.Node:
    """A new plain Gemm, not yet in the graph."""
    held = [add_constant(graph, f"{stem}.{kind}", np.ascontiguousarray(a)) for kind, a in (("weight", weight), ("bias", bias))]
    return new_node(graph, "Gemm", [x, *held], f"{stem}.gemm", {"transB": 1}, out=f"{stem}.gemm_out")


def _number(node: ir.Node, name: str, default: float) -> Any:
    return node.attributes[name].value if name in node.attributes else default


def _rewrite(graph: ir.Graph, node: ir.Node) -> bool:
    weight = const(node.inputs[1])
    if weight is None or weight.dtype.kind != "f" or plain_gemm(node) is not None:
        return False
    found = _of_gemm(graph, node, weight) if node.op_type == "Gemm" else _of_matmul(node, weight)
    if found is None:
        return False
    stem = node.name or node.outputs[0].name or "dense"
    nodes, out = [], found.x
    if (target := _as_matrix(node)) is not None:
        nodes.append(_reshape(graph, out, target, f"{stem}.rows"))
        out = nodes[-1].outputs[0]
    nodes.append(gemm(graph, out, found.weight, found.bias, stem))
    if (target := _as_before(node, len(found.weight))) is not None:
        nodes.append(_reshape(graph, nodes[-1].outputs[0], target, f"{stem}.back"))
    if found.added is not None:
        nodes.append(new_node(graph, "Add", [nodes[-1].outputs[0], found.added], f"{stem}.add"))
    graph.insert_after(found.last, nodes)
    replace_node(graph, found.last, nodes[-1].outputs[0])
    if found.last is not node:
        graph.remove(node, safe=True)
    return True


def _reshape(graph: ir.Graph, value: ir.Value, target: Sequence[int], name: str) -> ir.Node:
    return new_node(graph, "Reshape", [value, add_constant(graph, f"{name}.shape", np.array(target, np.int64))], name)


def _of_gemm(graph: ir.Graph, node: ir.Node, weight: np.ndarray) -> _Dense:
    x = node.inputs[0]
    assert x is not None
    if _number(node, "transA", 0):
        turned = new_node(graph, "Transpose", [x], f"{node.name or node.outputs[0].name}.turned", {"perm": [1, 0]})
        graph.insert_before(node, turned)
        x = turned.outputs[0]
    weight = weight if _number(node, "transB", 0) else weight.T
    scaled = weight * np.asarray(_number(node, "alpha", 1.0), weight.dtype)
    bias, beta = np.zeros(len(weight), weight.dtype), np.asarray(_number(node, "beta", 1.0), weight.dtype)
    more = node.inputs[2] if len(node.inputs) > 2 else None
    given = const(more)
    if more is None or (given is not None and _is_row(given.shape, len(weight), 2)):
        bias = bias if given is None else np.broadcast_to(given.reshape(-1) * beta, len(weight)).astype(weight.dtype)
        return _Dense(x, scaled, bias, node)
    if beta != 1:  # one that is computed, or differs from row to row, is added behind the layer
        times = new_node(graph, "Mul", [more, add_constant(graph, f"{more.name}.beta", beta)], f"{more.name}.times_beta")
        graph.insert_before(node, times)
        more = times.outputs[0]
    return _Dense(x, scaled, bias, node, more)


def _of_matmul(node: ir.Node, weight: np.ndarray) -> _Dense | None:
    """None where it cannot be told how many axes its input has, and how long they are."""
    x, out = node.inputs[0], node.outputs[0]
    axes = rank(x)
    if x is None or axes is None or const(x) is not None:
        return None
    name = node.name or out.name
    if weight.ndim > 2:
        raise FewbitError(
            f"node {name}: MatMul by a {weight.ndim}-d constant, a batch of matrices, is not supported; export one for each"
        )
    if any(size(x, k) is None for k in range(1, axes)) and axes != 2:
        return None
    weight = weight.T if weight.ndim == 2 else weight[None]
    bias, last, uses = np.zeros(len(weight), weight.dtype), node, list(out.uses())
    if len(uses) == 1 and uses[0][0].op_type == "Add" and not out.is_graph_output() and not _is_vector(node):
        other = const(uses[0][0].inputs[1 - uses[0][1]])
        if other is not None and other.dtype == weight.dtype and _is_row(other.shape, len(weight), axes):
            bias, last = np.broadcast_to(other.reshape(-1), len(weight)), uses[0][0]
    return _Dense(x, weight, bias, last)


def _is_vector(node: ir.Node) -> bool:
    weight = const(node.inputs[1])
    return weight is not None and weight.ndim == 1


def _is_row(shape: tuple[int, ...], width: int, axes: int) -> bool:
    """Does a constant of that shape add one number a column to a value of so many axes, and change nothing of its shape?"""
    return len(shape) <= axes and math.prod(shape[:-1]) == 1 and (not shape or shape[-1] in (1, width))


def _as_matrix(node: ir.Node) -> list[int] | None:
    """What a MatMul's input is reshaped to, if it is no matrix."""
    axes = rank(node.inputs[0])
    if node.op_type == "Gemm" or axes == 2:
        return None
    width = size(node.inputs[0], -1)
    return [1 if axes == 1 else -1, width or 0]


def _as_before(node: ir.Node, width: int) -> list[int] | None:
    """What the matrix that a Gemm made is reshaped to, to be what the MatMul made."""
    x = node.inputs[0]
    axes = rank(x)
    if node.op_type == "Gemm" or (axes == 2 and not _is_vector(node)):
        return None
    inner = [size(x, k) or 0 for k in range(1, (axes or 0) - 1)]
    return [*([] if axes == 1 else [-1]), *inner, *([] if _is_vector(node) else [width])]
