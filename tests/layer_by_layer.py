"""One quantized layer at a time in another runtime, fed the reference's codes: what "agrees" means for a target."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from fewbit.engine import reference
from fewbit.engine.lower import lower
from fewbit.engine.operands import is_quantized
from fewbit.engine.policy import Policy
from fewbit.graph.edit import const, remove_unused


def quantized(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if is_quantized(node)]


def alone(model: ir.Model, name: str) -> tuple[ir.Model, ir.Node, float]:
    """(one quantized layer from its input's codes to its output's codes, or floats; what makes its input's codes; one code)."""
    model = model.clone()
    gemm = next(n for n in model.graph if n.name == name)
    dequantize = gemm.inputs[0].producer()
    while dequantize.op_type != "DequantizeLinear":
        dequantize = dequantize.inputs[0].producer()
    quantize, end = dequantize.inputs[0].producer(), gemm.outputs[0]
    after = [user for user, _ in end.uses()]
    if len(after) == 1 and after[0].op_type == "Relu":
        after = [user for user, _ in after[0].outputs[0].uses()]
    code = 0.0
    if len(after) == 1 and after[0].op_type == "QuantizeLinear":
        code, end = float(const(after[0].inputs[1])), after[0].outputs[0].uses()[0][0].outputs[0]
    source = quantize.inputs[0]
    x = ir.Value(name="x", shape=source.shape, type=ir.TensorType(ir.DataType.FLOAT))
    quantize.replace_input_with(0, x)
    model.graph.inputs[:], model.graph.outputs[:] = [x], [end]
    remove_unused(model.graph)
    return model, quantize, code


def layer_by_layer(model: ir.Model, feeds: dict[str, np.ndarray], load: Callable[[ir.Model], Policy]) -> dict[str, float]:
    """Assert that every quantized layer is at most one code off, fed the reference's codes; name -> share of equal outputs.

    load: the target's. What the runtime computes a layer in is its own choice on a CPU: that is reported, not asserted.
    """
    registers = reference.run(lower(model), feeds)
    shares = {}
    for node in quantized(model):
        one, quantize, code = alone(model, node.name)
        codes, (scale, zero) = registers[quantize.outputs[0].name], (const(i) for i in quantize.inputs[1:])
        x = ((codes.astype(np.float64) - float(zero)) * float(scale)).astype(np.float32)
        one.graph.inputs[0].shape = ir.Shape(["batch", *x.shape[1:]])
        program = lower(one)
        want, got = reference.run(program, {"x": x})[program.outputs[0]], load(one)(x)
        allowed = 1.001 * code if code else 1e-6 * np.abs(want).max() + 1e-30
        assert np.abs(got - want).max() <= allowed, (node.name, np.abs(got - want).max(), allowed)
        shares[node.name] = float((np.abs(got - want) <= 0.001 * allowed if code else np.isclose(got, want)).mean())
    return shares
