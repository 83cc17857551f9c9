"""Straighten a float graph: constants folded, every dense layer a Gemm with weight [out, in], nothing unused left.

The graph's outputs stay what they were (to float rounding): tests/test_fold.py checks it.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx.shape_inference
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from fewbit.errors import FewbitError, first_line
from fewbit.graph import read

_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def const(value: ir.Value | None) -> np.ndarray | None:
    """The constant array behind a value, or None."""
    return None if value is None or value.const_value is None else value.const_value.numpy()


def add_constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """A new initializer; a number is appended where the name is taken."""
    unique, k = name, 1
    while unique in graph.initializers:
        unique, k = f"{name}_{k}", k + 1
    value = ir.Value(name=unique, const_value=ir.tensor(array, name=unique))
    value.shape, value.dtype = ir.Shape(array.shape), ir.DataType.from_numpy(array.dtype)
    graph.register_initializer(value)
    return value


def fold(model: ir.Model) -> ir.Model:
    """Rewrite in place until nothing changes; the same model is returned."""
    from fewbit.graph.fold_affine import fold_affine
    from fewbit.graph.fold_moves import fold_moves
    from fewbit.graph.fold_recurrent import fold_recurrent
    from fewbit.graph.fold_shapes import fold_shapes

    graph = model.graph
    layers = (_dense, fold_affine, _split_head, _quantile_mean)
    steps = (_constants, _identities, fold_recurrent, fold_shapes, fold_moves, _argmax, *layers, remove_unused)
    while any([step(graph) for step in steps]):
        pass
    return model


def _each(graph: ir.Graph, rewrite: Callable[[ir.Graph, ir.Node], bool]) -> bool:
    return any([rewrite(graph, node) for node in list(graph)])


def replace_node(graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    """Give every use of the node's first output to value, and remove the node; graph outputs keep their names."""
    old = node.outputs[0]
    for k, out in enumerate(graph.outputs):
        if out is old:
            value.name, old.name = old.name, f"{old.name}.folded"
            value.shape = old.shape
            if old.dtype is not None:
                value.dtype = old.dtype
            graph.outputs[k] = value
    for user, index in list(old.uses()):
        user.replace_input_with(index, value)
    graph.remove(node, safe=True)


def _constants(graph: ir.Graph) -> bool:
    def rewrite(graph: ir.Graph, node: ir.Node) -> bool:
        if any(o in graph.outputs for o in node.outputs) or len(node.outputs) != 1:
            return False
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") or any(a.type in _GRAPHS for a in node.attributes.values()):
            return False
        feeds: dict[str, np.ndarray] = {}
        for value in node.inputs:
            array = const(value)
            if value is not None and array is None:
                return False
            if value is not None and array is not None:
                feeds[value.name or ""] = array
        result = _computed(node, feeds)
        replace_node(graph, node, add_constant(graph, f"{node.outputs[0].name}.const", result))
        return True

    return _each(graph, rewrite)


def _computed(node: ir.Node, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """The node's one output; refused before it is made where it is far larger than any network's, whatever the file says."""
    kind = onnx.helper.np_dtype_to_tensor_dtype
    inputs = [onnx.helper.make_tensor_value_info(n, kind(a.dtype), a.shape) for n, a in feeds.items()]
    numbers = [onnx.numpy_helper.from_array(a, n) for n, a in feeds.items() if a.size <= 16]  # shapes, counts, ends
    out = onnx.helper.make_empty_tensor_value_info(node.outputs[0].name or "")
    graph = onnx.helper.make_graph([ir.to_proto(node)], "one", inputs, [out], numbers)
    one = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", read.OPSET)])
    try:
        shape = onnx.shape_inference.infer_shapes(one, data_prop=True).graph.output[0].type.tensor_type.shape
        count = math.prod(d.dim_value for d in shape.dim)
        if count > read.MAX_ELEMENTS:
            raise FewbitError(f"node {node.name} ({node.op_type}) makes a constant of {count} elements; export it again")
        (result,) = ReferenceEvaluator(one).run(None, feeds)
        return np.asarray(result)
    except FewbitError:
        raise
    except Exception as e:
        raise FewbitError(f"node {node.name} ({node.op_type}) cannot be computed ({first_line(e)}); export it again") from None


def _identities(graph: ir.Graph) -> bool:
    def rewrite(graph: ir.Graph, node: ir.Node) -> bool:
        x = node.inputs[0] if node.inputs else None
        if node.op_type not in ("Identity", "Dropout") or x is None or node.outputs[0] in graph.outputs:
            return False
        replace_node(graph, node, x)
        return True

    return _each(graph, rewrite)


def _argmax(graph: ir.Graph) -> bool:
    """The largest of softmax(x), or of x less its row's log-sum-exp, is the largest of x: categorical policies."""

    def rewrite(graph: ir.Graph, node: ir.Node) -> bool:
        before = node.inputs[0].producer() if node.op_type == "ArgMax" and node.inputs[0] is not None else None
        if before is None:
            return False
        shift = before.inputs[1].producer() if before.op_type == "Sub" and before.inputs[1] is not None else None
        if before.op_type in ("Softmax", "LogSoftmax") or (shift is not None and shift.op_type == "ReduceLogSumExp"):
            node.replace_input_with(0, before.inputs[0])
            return True
        return False

    return _each(graph, rewrite)


def _dense(graph: ir.Graph) -> bool:
    """MatMul (+ Add) with a constant matrix, and Gemm in any layout, become Gemm(x, weight [out, in], bias), transB=1."""

    def rewrite(graph: ir.Graph, node: ir.Node) -> bool:
        if node.op_type not in ("MatMul", "Gemm") or const(node.inputs[1]) is None:
            return False
        weight = const(node.inputs[1])
        assert weight is not None
        gemm = node.op_type == "Gemm"

        def number(k: str, d: float) -> Any:
            return node.attributes[k].value if k in node.attributes else d

        if gemm and number("transB", 0) == 1 and len(node.inputs) == 3 and number("alpha", 1.0) == number("beta", 1.0) == 1.0:
            return False
        if weight.ndim != 2 or number("transA", 0):
            raise FewbitError(f"node {node.name}: {node.op_type} of a {weight.ndim}-d weight is not supported yet")
        weight = weight if gemm and number("transB", 0) else weight.T
        bias, last = np.zeros(len(weight), weight.dtype), node
        if gemm and len(node.inputs) == 3:
            given = const(node.inputs[2])
            if given is None:
                return False
            bias = np.broadcast_to(given.reshape(-1) * number("beta", 1.0), len(weight)).astype(weight.dtype)
        uses = list(node.outputs[0].uses())
        if not gemm and len(uses) == 1 and uses[0][0].op_type == "Add":
            other = const(uses[0][0].inputs[1 - uses[0][1]])
            if other is not None and other.size == len(weight):
                bias, last = other.reshape(-1), uses[0][0]
        weight = np.ascontiguousarray(weight * np.asarray(number("alpha", 1.0), weight.dtype))
        stem = node.name or node.outputs[0].name or "dense"
        new = ir.node(
            "Gemm",
            [
                node.inputs[0],
                add_constant(graph, f"{stem}.weight", weight),
                add_constant(graph, f"{stem}.bias", np.ascontiguousarray(bias)),
            ],
            attributes={"transB": 1},
            name=f"{stem}.gemm",
        )
        new.outputs[0].name = f"{stem}.gemm_out"
        graph.insert_after(last, new)
        replace_node(graph, last, new.outputs[0])
        if last is not node:
            graph.remove(node, safe=True)
        return True

    return _each(graph, rewrite)


def _split_head(graph: ir.Graph) -> bool:
    """A Split of a Gemm's output with one part used: the other rows of the Gemm are never computed."""

    def rewrite(graph: ir.Graph, node: ir.Node) -> bool:
        x = node.inputs[0] if node.inputs else None
        producer = x.producer() if x is not None else None
        used = [o for o in node.outputs if o.uses() or o in graph.outputs]
        if node.op_type != "Split" or producer is None or producer.op_type != "Gemm" or len(used) != 1:
            return False
        weight, bias = const(producer.inputs[1]), const(producer.inputs[2])
        axis = node.attributes["axis"].value if "axis" in node.attributes else 0
        if weight is None or bias is None or axis not in (1, -1) or used[0] in graph.outputs or len(x.uses()) != 1:  # type: ignore[union-attr]
            return False
        sizes = const(node.inputs[1]) if len(node.inputs) > 1 else None
        if sizes is None:
            sizes = np.array([len(p) for p in np.array_split(np.arange(len(weight)), len(node.outputs))])
        k = list(node.outputs).index(used[0])
        rows = slice(int(sizes[:k].sum()), int(sizes[: k + 1].sum()))
        producer.replace_input_with(1, add_constant(graph, f"{producer.name}.weight_used", weight[rows].copy()))
        producer.replace_input_with(2, add_constant(graph, f"{producer.name}.bias_used", bias[rows].copy()))
        for user, index in list(used[0].uses()):
            user.replace_input_with(index, x)
        graph.remove(node, safe=True)
        return True

    return _each(graph, rewrite)


def _quantile_mean(graph: ir.Graph) -> bool:
    """QR-DQN: Gemm, Reshape to [batch, quantiles, actions], ReduceMean over quantiles = one Gemm with mean rows."""

    def rewrite(graph: ir.Graph, node: ir.Node) -> bool:
        reshape = node.inputs[0].producer() if node.op_type == "ReduceMean" and node.inputs[0] is not None else None
        gemm = (
            reshape.inputs[0].producer()
            if reshape is not None and reshape.op_type == "Reshape" and reshape.inputs[0] is not None
            else None
        )
        if gemm is None or gemm.op_type != "Gemm" or len(gemm.outputs[0].uses()) != 1 or len(reshape.outputs[0].uses()) != 1:  # type: ignore[union-attr]
            return False
        shape, axes = const(reshape.inputs[1]), const(node.inputs[1]) if len(node.inputs) > 1 else None  # type: ignore[union-attr]
        weight, bias = const(gemm.inputs[1]), const(gemm.inputs[2])
        keep = node.attributes["keepdims"].value if "keepdims" in node.attributes else 1
        if shape is None or axes is None or list(axes) != [1] or len(shape) != 3 or keep or weight is None or bias is None:
            return False
        quantiles = int(shape[1])
        mean = weight.astype(np.float64).reshape(quantiles, -1, weight.shape[1]).mean(axis=0).astype(weight.dtype)
        new = ir.node(
            "Gemm",
            [
                gemm.inputs[0],
                add_constant(graph, f"{gemm.name}.mean_weight", mean),
                add_constant(
                    graph,
                    f"{gemm.name}.mean_bias",
                    bias.astype(np.float64).reshape(quantiles, -1).mean(axis=0).astype(bias.dtype),
                ),
            ],
            attributes={"transB": 1},
            name=f"{gemm.name}.mean",
        )
        new.outputs[0].name = f"{gemm.name}.mean_out"
        graph.insert_after(node, new)
        replace_node(graph, node, new.outputs[0])
        graph.remove([reshape, gemm], safe=True)  # type: ignore[list-item]
        return True

    return _each(graph, rewrite)


def remove_unused(graph: ir.Graph) -> bool:
    """Nodes and initializers that no output needs; True where something went."""
    removed = False
    for node in reversed(list(graph)):
        if not any(o.uses() or o in graph.outputs for o in node.outputs):
            graph.remove(node, safe=True)
            removed = True
    for name, value in list(graph.initializers.items()):
        if not value.uses() and value not in graph.outputs:
            del graph.initializers[name]
    return removed
