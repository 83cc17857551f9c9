"""OpenVINO's CPU plugin: the artifact as it fuses into 8-bit layers, the runtime itself, and what it made of each layer.

Measured (docs/targets/openvino.md): activations of more than 8 bits become floats. Weights become int8 around zero: 4-bit ones
make a float layer (with an odd number of inputs a wrong one), a zero point makes a float one too. The rest fuses as it is.
"""

import io
from typing import Any

import numpy as np
import onnx_ir as ir

from fewbit.engine.load import Policy
from fewbit.engine.operands import plain
from fewbit.errors import FewbitError, MissingExtra
from fewbit.graph.fold import add_constant, const, remove_unused
from fewbit.graph.strip import strip

DENSE = ("Gemm", "MatMul", "Conv")
EXECUTED = ("FullyConnected", "MatMul", "Convolution")  # what they are called once compiled
OPTIONS = {
    "PERFORMANCE_HINT": "LATENCY",
    "INFERENCE_NUM_THREADS": 1,
    "NUM_STREAMS": 1,
    "INFERENCE_PRECISION_HINT": "f32",  # the float layers; some CPUs would take bfloat16
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,  # or float inputs of an integer weight become int8 unasked
}


def rewrite(model: ir.Model) -> ir.Model:
    """A copy with 8-bit codes alone: what is wider is float, what is narrower is stored in 8 bits."""
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


def load(model: ir.Model) -> Policy:
    """The policy on OpenVINO's CPU plugin, one thread; the action is the first output."""
    request = _compile(model).create_infer_request()
    inputs = {v.name or "": v for v in model.graph.inputs if v.name not in model.graph.initializers}

    def run(feeds: dict[str, np.ndarray]) -> np.ndarray:
        missing = [k for k in inputs if k not in feeds]
        if missing:
            raise FewbitError(f"input {missing[0]} is missing; the network takes {', '.join(inputs)}")
        given = {k: np.ascontiguousarray(feeds[k], np.float32 if v.dtype is None else v.dtype.numpy()) for k, v in inputs.items()}
        return np.array(request.infer(given)[0])

    return Policy(run, {k: tuple(d for d in (v.shape or [])[1:] if isinstance(d, int)) for k, v in inputs.items()}, "openvino")


def layers(model: ir.Model) -> list[tuple[str, str]]:
    """(name, the precision of the input that was multiplied: "u8", "i8", "f32", …) of each dense layer, as compiled.

    Read from the input, not from the layer's own runtimePrecision: that says i8 of an integer weight beside floats too.
    """
    ops = _compile(model).get_runtime_model().get_ordered_ops()
    executed = [(_said(op, "originalLayersNames").split(","), op) for op in ops if _said(op, "layerType") in EXECUTED]
    found = []
    for node in model.graph:
        if node.op_type in DENSE:
            names = [n for n in (node.name, node.outputs[0].name) if n]  # of an output's producer the runtime keeps the output's
            grown = tuple(f"{n}{more}" for n in names for more in ("/", "_original"))
            op = next((op for parts, op in executed if any(p in names or p.startswith(grown) for p in parts)), None)
            precision = "absent" if op is None else op.input_value(0).get_element_type().get_type_name()
            found.append((names[0], precision))
    return found


def _said(op: Any, key: str) -> str:
    info = op.get_rt_info()
    return info[key].astype(str) if key in info else ""


def _compile(model: ir.Model) -> Any:
    try:
        import openvino
    except ImportError:
        raise MissingExtra("openvino", "openvino") from None
    core = openvino.Core()
    try:
        return core.compile_model(core.read_model(io.BytesIO(ir.to_proto(model).SerializeToString())), "CPU", OPTIONS)
    except RuntimeError as e:
        lines = [line.strip() for line in str(e).splitlines() if line.strip()]
        raise FewbitError(f"OpenVINO refuses the graph: {lines[-1] if lines else e}") from None
