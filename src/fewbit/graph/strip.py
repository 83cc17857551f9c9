"""A quantized graph with less quantization: the same weights as floats, or only what is wider than a runtime's integers.

strip(model) leaves no quantization, so that float runtimes can be timed on the same network; strip(model, above=8) leaves 8-bit
codes alone, for runtimes that know no others.
"""

import numpy as np
import onnx_ir as ir

from fewbit.graph.edit import add_constant, const, new_node, remove_unused, replace_value

MOVES = {"Identity", "Reshape", "Flatten", "Slice", "Split", "Transpose", "Squeeze", "Unsqueeze", "Concat"}


def strip(model: ir.Model, above: int = 0) -> ir.Model:
    """A copy in which activations of more than `above` bits pass unquantized, and layers that read no codes hold floats.

    A Relu that S4 absorbed comes back.
    """
    model = model.clone()
    graph = model.graph
    for node in [n for n in graph if n.op_type == "DequantizeLinear" and const(n.inputs[0]) is None]:
        codes = node.inputs[0]
        assert codes is not None
        if _bits(node) > above:
            maker = codes.producer()
            replace_value(graph, node.outputs[0], _of_pixels(graph, node) if maker is None else _before(graph, maker))
    for node in [n for n in graph if n.op_type == "DequantizeLinear" and const(n.inputs[0]) is not None]:
        if not any(reads_codes(user) for user, _ in node.outputs[0].uses()):
            replace_value(graph, node.outputs[0], add_constant(graph, f"{node.outputs[0].name}.float", floats(node)))
    remove_unused(graph)
    return model


def reads_codes(node: ir.Node) -> bool:
    """Is a layer's first input the float reading of codes, moved about or not?"""
    value = node.inputs[0] if node.inputs else None
    while value is not None and (producer := value.producer()) is not None:
        if producer.op_type == "DequantizeLinear":
            return const(producer.inputs[0]) is None
        if producer.op_type not in MOVES:
            return False
        value = producer.inputs[0]
    return False


def floats(node: ir.Node) -> np.ndarray:
    """float32 of a DequantizeLinear of constant codes."""
    codes, scale = const(node.inputs[0]), const(node.inputs[1])
    assert codes is not None and scale is not None
    zero = const(node.inputs[2]) if len(node.inputs) > 2 else None
    axis = int(node.attributes["axis"].value) if "axis" in node.attributes else 1
    shape = [-1 if k == axis else 1 for k in range(codes.ndim)] if scale.size > 1 else []
    moved = codes.astype(np.float32) - (0 if zero is None else zero.astype(np.float32).reshape(shape))
    return (moved * scale.reshape(shape)).astype(np.float32)


def _bits(dequantize: ir.Node) -> int:
    zero = const(dequantize.inputs[2]) if len(dequantize.inputs) > 2 else None
    return 8 if zero is None else 8 * zero.dtype.itemsize


def _before(graph: ir.Graph, quantize: ir.Node) -> ir.Value:
    """What a QuantizeLinear was given, behind a Relu where its codes had none below zero."""
    assert quantize.inputs[0] is not None
    source, zero = quantize.inputs[0], const(quantize.inputs[2]) if len(quantize.inputs) > 2 else np.uint8(0)
    if zero is None or int(zero) != np.iinfo(zero.dtype).min or source.producer() is None:
        return source
    relu = new_node(graph, "Relu", [source], f"{quantize.name}.relu", out=f"{source.name}.relu")
    graph.insert_after(quantize, relu)
    return relu.outputs[0]


def _of_pixels(graph: ir.Graph, dequantize: ir.Node) -> ir.Value:
    """The same of an input that is codes itself, in floats."""
    cast = new_node(graph, "Cast", [dequantize.inputs[0]], f"{dequantize.name}.cast", {"to": ir.DataType.FLOAT})
    scaled = new_node(graph, "Mul", [cast.outputs[0], dequantize.inputs[1]], f"{dequantize.name}.scaled")
    graph.insert_before(dequantize, [cast, scaled])
    return scaled.outputs[0]
