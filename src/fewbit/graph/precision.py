"""Graphs that compute in float64, float16 or bfloat16, rewritten to compute in float32: weights, Casts, inputs and outputs.

fewbit's engines, folds and scales are float32. A network of few bits is far coarser than what float64 adds, and float32 holds
every number of the two short types, so the rewritten graph is the network.
"""

from collections.abc import Iterator

import numpy as np
import onnx
import onnx.shape_inference
from onnx import TensorProto, numpy_helper

OTHERS = {TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16}
FLOATS = OTHERS | {TensorProto.FLOAT}
TYPE_ATTRIBUTES = {"to", "dtype", "output_dtype"}  # in which an operator names the type that it makes


def to_float32(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with every other float type replaced by float32; itself where it has none.

    Args:
        proto: a checked model without local functions.

    Returns:
        A model whose inputs, outputs and steps are float32 or integers. A weight that is only stored in another type, and cast to
        float32 where it is read, stays as it is stored. A finite number beyond float32's range becomes its largest.
    """
    typed = onnx.shape_inference.infer_shapes(proto)
    if not (dtypes(typed) & OTHERS):
        return proto
    _rewrite(typed.graph, set(), {})
    return typed


def dtypes(model: onnx.ModelProto) -> set[int]:
    """Every type that the model's values have, or are said to have; not of a weight that is only stored so and cast."""
    found: set[int] = set()
    for graph in _graphs(model.graph):
        stored = _only_cast(graph)
        values = [*graph.input, *graph.output, *graph.value_info]
        found |= {v.type.tensor_type.elem_type for v in values if v.name not in stored}
        found |= {t.data_type for t in graph.initializer if t.name not in stored}
    inside = [n for graph in _graphs(model.graph) for n in graph.node]
    for node in [*inside, *(n for function in model.functions for n in function.node)]:
        found |= {a.i for a in node.attribute if a.name in TYPE_ATTRIBUTES}
        found |= {a.t.data_type for a in node.attribute if a.HasField("t")}
    return found


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and every graph inside its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in _inner(attribute):
                yield from _graphs(inner)


def _inner(attribute: onnx.AttributeProto) -> list[onnx.GraphProto]:
    return [attribute.g] if attribute.HasField("g") else list(attribute.graphs)


def _only_cast(graph: onnx.GraphProto) -> set[str]:
    """Initializers that are read by Casts to float32 alone: stored short, computed with in float32."""
    users: dict[str, list[bool]] = {}
    for inner in _graphs(graph):
        for node in inner.node:
            widens = node.op_type == "Cast" and any(a.name == "to" and a.i == TensorProto.FLOAT for a in node.attribute)
            for name in node.input:
                users.setdefault(name, []).append(widens)
    returned = {v.name for v in graph.output}
    return {t.name for t in graph.initializer if all(users.get(t.name, [False])) and t.name not in returned}


def _rewrite(graph: onnx.GraphProto, stored: set[str], types: dict[str, int]) -> None:
    """stored, types: of the graphs around this one, the names that keep their type and every value's type before."""
    stored = stored | _only_cast(graph)
    values = [*graph.input, *graph.output, *graph.value_info]
    types = types | {t.name: t.data_type for t in graph.initializer} | {v.name: v.type.tensor_type.elem_type for v in values}
    del graph.value_info[:]
    for tensor in graph.initializer:
        if tensor.name not in stored:
            _widen(tensor)
    for value in [*graph.input, *graph.output]:
        if value.name not in stored and value.type.tensor_type.elem_type in OTHERS:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for node in graph.node:
        _rewrite_node(node, stored, types)


def _rewrite_node(node: onnx.NodeProto, stored: set[str], types: dict[str, int]) -> None:
    for attribute in node.attribute:
        if attribute.name in TYPE_ATTRIBUTES and attribute.i in OTHERS:
            attribute.i = TensorProto.FLOAT
        if attribute.HasField("t"):
            _widen(attribute.t)
        for inner in _inner(attribute):
            _rewrite(inner, stored, types)
    floats = node.op_type == "Cast" and types.get(node.input[0]) in FLOATS and node.input[0] not in stored
    if floats and any(a.name == "to" and a.i == TensorProto.FLOAT for a in node.attribute):
        node.op_type = "Identity"
        del node.attribute[:]


def _widen(tensor: onnx.TensorProto) -> None:
    if tensor.data_type not in OTHERS:
        return
    array, limit = numpy_helper.to_array(tensor), np.finfo(np.float32).max
    bounded = np.where(np.isfinite(array), np.clip(array.astype(np.float64), -limit, limit), array.astype(np.float64))
    tensor.CopyFrom(numpy_helper.from_array(bounded.astype(np.float32), tensor.name))
