"""What runtimes that know 8-bit integers alone have in common: wider activations float, narrower or shifted weights int8."""

import numpy as np
import onnx_ir as ir

from fewbit.engine.operands import plain
from fewbit.graph.edit import add_constant, const, remove_unused
from fewbit.graph.strip import strip


def eight_bits(model: ir.Model) -> ir.Model:
    """A copy with 8-bit codes alone; weights whose zero point does not fit int8 keep it."""
    model = strip(model, above=8)
    for node in [n for n in model.graph if n.op_type == "DequantizeLinear"]:
        value, codes = node.inputs[0], _centred(node)
        if value is not None and codes is not None:
            node.replace_input_with(0, add_constant(model.graph, f"{value.name}.int8", codes))
            node.resize_inputs(2)
    remove_unused(model.graph)
    return model


def _centred(node: ir.Node) -> np.ndarray | None:
    """Constant codes as int8 whose zero is 0; None where they are that already, or are no weights, or do not fit."""
    codes, zero = const(node.inputs[0]), const(node.inputs[2]) if len(node.inputs) > 2 else None
    if codes is None or codes.dtype.itemsize > 1 or (codes.dtype == np.int8 and zero is None):
        return None
    axis = int(node.attributes["axis"].value) if "axis" in node.attributes else 1
    centred = plain(codes).astype(np.int16)
    if zero is not None:
        along = [-1 if k == axis % codes.ndim else 1 for k in range(codes.ndim)] if zero.size > 1 else []
        centred = centred - plain(zero).astype(np.int16).reshape(along)
    return centred.astype(np.int8) if centred.min() >= -128 and centred.max() <= 127 else None
