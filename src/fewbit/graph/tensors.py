"""Every constant of an ONNX file, wherever it is written, checked before anything computes with it."""

import math
from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from fewbit.errors import FewbitError

MAX_BYTES = 2 << 30  # protobuf's own limit
BITS: dict[int, int] = {TensorProto.INT4: 4, TensorProto.UINT4: 4, TensorProto.FLOAT4E2M1: 4}
# What may read an infinite constant: a bound that is none, a mask.
BOUNDS = {"Clip", "Min", "Max", "Where", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal", "Add", "Expand", "Cast",
          "Identity", "Unsqueeze", "Constant", "If"}  # fmt: skip


def tensors(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    """The initializers and the tensors among the attributes, of the graph and of those inside its nodes."""
    yield from graph.initializer
    for node in graph.node:
        yield from _attributes(node)


def _attributes(node: onnx.NodeProto) -> Iterator[TensorProto]:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
            yield from tensors(inner)


def every(proto: onnx.ModelProto) -> Iterator[TensorProto]:
    """The same of the whole model, its local functions included."""
    yield from tensors(proto.graph)
    for function in proto.functions:
        for node in function.node:
            yield from _attributes(node)


def nbytes(t: TensorProto) -> int:
    """The bytes that its elements take in a file. Raises FewbitError where its dimensions or its type are none."""
    if any(d < 0 for d in t.dims):
        raise FewbitError(f"initializer {t.name} declares a negative dimension; export it again")
    try:
        bits = BITS.get(int(t.data_type)) or 8 * onnx.helper.tensor_dtype_to_np_dtype(t.data_type).itemsize
    except (KeyError, ValueError, TypeError):
        raise FewbitError(f"initializer {t.name} has a type that this version of onnx does not know; export it again") from None
    return -(-math.prod(t.dims) * bits // 8)


def check(proto: onnx.ModelProto) -> None:
    """Refuse a tensor whose elements are not what it declares, or not numbers, by its name."""
    readers: dict[str, set[str]] = {}
    for node in proto.graph.node:
        for name in node.input:
            readers.setdefault(name, set()).add(node.op_type)
    for t in every(proto):
        _check(t, readers.get(t.name, set()))


def _check(t: TensorProto, readers: set[str]) -> None:
    if t.data_location == TensorProto.EXTERNAL:
        raise FewbitError(f"initializer {t.name} lies in another file; save the model as one file")
    if nbytes(t) > MAX_BYTES:
        raise FewbitError(f"initializer {t.name} declares {math.prod(t.dims)} elements; export it again")
    if t.raw_data and nbytes(t) > len(t.raw_data):
        raise FewbitError(
            f"initializer {t.name} declares {math.prod(t.dims)} elements, the file holds {len(t.raw_data)} bytes; export it again"
        )
    try:
        array = numpy_helper.to_array(t)
    except Exception:
        raise FewbitError(f"initializer {t.name} does not hold the elements it declares; export it again") from None
    if array.dtype.kind != "f":
        return
    if np.isnan(array).any() or (np.isinf(array).any() and not np.isinf(array).all() and not readers <= BOUNDS):
        raise FewbitError(f"initializer {t.name} holds NaN or infinity; the network was not trained to the end")
