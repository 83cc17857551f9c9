"""Weights as float16 or bfloat16, everything else float32: the mildest rung. A Cast stands before each layer's weight."""

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir

from fewbit.errors import FewbitError
from fewbit.graph.edit import add_constant, const, new_node, remove_unused
from fewbit.graph.layers import LAYERS

DTYPES = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


def write(model: ir.Model, name: str) -> ir.Model:
    """Store every layer's weight in place as `name` and return the model; a weight that overflows is refused."""
    for gemm in [n for n in model.graph if n.op_type in LAYERS]:
        weight, value = const(gemm.inputs[1]), gemm.inputs[1]
        if weight is None or value is None:
            continue
        with np.errstate(over="ignore"):
            narrow = weight.astype(DTYPES[name])
        if not np.isfinite(narrow.astype(np.float32)).all():
            raise FewbitError(f"weight {value.name}: {np.abs(weight).max():g} does not fit {name}; take bfloat16")
        stored = add_constant(model.graph, f"{value.name}.{name}", narrow)
        to = {"to": onnx.TensorProto.FLOAT}
        cast = new_node(model.graph, "Cast", [stored], f"{value.name}.cast", to, out=f"{value.name}.float")
        model.graph.insert_before(gemm, cast)
        gemm.replace_input_with(1, cast.outputs[0])
    remove_unused(model.graph)
    return model
