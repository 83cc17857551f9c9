"""Shapes and types of the values inside a graph, by ONNX's own inference: known while it is straightened, then forgotten.

Forgotten because what is written next (quantizers, a free batch) makes them untrue; that a value is no float is kept.
"""

import onnx
import onnx.shape_inference
import onnx_ir as ir

FLOATS = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.BFLOAT16}


def infer(model: ir.Model) -> None:
    """Set the shape and type of every value of the main graph that inference tells; the rest stays unknown."""
    try:
        inferred = onnx.shape_inference.infer_shapes(ir.to_proto(model), data_prop=True)
    except Exception:  # an operator that it does not know, or a graph that contradicts itself: nothing is known
        return
    known = {v.name: v for v in inferred.graph.value_info}
    for value in inner(model.graph):
        info = known.get(value.name or "")
        kind = info.type.tensor_type if info is not None and info.type.HasField("tensor_type") else None
        if kind is not None and kind.elem_type:
            value.dtype = ir.DataType(kind.elem_type)
        if kind is not None and kind.HasField("shape"):
            dims = [d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in kind.shape.dim]
            value.shape = ir.Shape(dims)


def forget(graph: ir.Graph) -> None:
    """The shapes of what nodes make, apart from the graph's outputs; and the types of what is a float or may be one."""
    for value in inner(graph):
        value.shape = None
        if value.dtype is None or value.dtype in FLOATS:
            value.type = None


def inner(graph: ir.Graph) -> list[ir.Value]:
    """What nodes make, apart from the graph's outputs."""
    return [o for node in graph for o in node.outputs if o.name and not o.is_graph_output()]


def is_float(value: ir.Value) -> bool:
    """May it be a float? What is not known to be anything else may."""
    return value.dtype is None or value.dtype in FLOATS


def rank(value: ir.Value | None) -> int | None:
    """How many axes it has, or None where that is not known."""
    return None if value is None or value.shape is None else len(value.shape)


def size(value: ir.Value | None, axis: int) -> int | None:
    """Of an axis, where it is known to be one number; axis counts from the front or, negative, from the end."""
    count = rank(value)
    if value is None or value.shape is None or count is None or not -count <= axis < count:
        return None
    found = value.shape[axis]
    return found if isinstance(found, int) else None
