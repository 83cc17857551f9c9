"""A quantized graph without its quantization: the same weights as floats, so that float runtimes can be timed on them."""

import numpy as np
import onnx_ir as ir

from fewbit.graph.fold import add_constant, const, remove_unused


def strip(model: ir.Model) -> ir.Model:
    """A copy in which constants are float32 and every activation passes unquantized; a Relu that S4 absorbed comes back."""
    model = model.clone()
    graph = model.graph
    for node in [n for n in graph if n.op_type == "DequantizeLinear"]:
        codes = node.inputs[0]
        assert codes is not None
        if const(codes) is not None:
            replacement = add_constant(graph, f"{node.outputs[0].name}.float", _floats(node))
        else:
            replacement = _before(graph, codes.producer())
        for user, index in list(node.outputs[0].uses()):
            user.replace_input_with(index, replacement)
        for k, out in enumerate(graph.outputs):
            if out is node.outputs[0]:
                replacement.shape, replacement.dtype = out.shape, out.dtype or ir.DataType.FLOAT
                graph.outputs[k] = replacement
    remove_unused(graph)
    return model


def _floats(node: ir.Node) -> np.ndarray:
    codes, scale = const(node.inputs[0]), const(node.inputs[1])
    assert codes is not None and scale is not None
    zero = const(node.inputs[2]) if len(node.inputs) > 2 else None
    axis = int(node.attributes["axis"].value) if "axis" in node.attributes else 1
    shape = [-1 if k == axis else 1 for k in range(codes.ndim)] if scale.size > 1 else []
    moved = codes.astype(np.float32) - (0 if zero is None else zero.astype(np.float32).reshape(shape))
    return (moved * scale.reshape(shape)).astype(np.float32)


def _before(graph: ir.Graph, quantize: ir.Node | None) -> ir.Value:
    """What a QuantizeLinear was given, behind a Relu where its codes had none below zero."""
    assert quantize is not None and quantize.inputs[0] is not None
    source, zero = quantize.inputs[0], const(quantize.inputs[2]) if len(quantize.inputs) > 2 else np.uint8(0)
    if zero is None or int(zero) != np.iinfo(zero.dtype).min or source.producer() is None:
        return source
    relu = ir.node("Relu", [source], name=f"{quantize.name}.relu")
    relu.outputs[0].name = f"{source.name}.relu"
    graph.insert_after(quantize, relu)
    return relu.outputs[0]
