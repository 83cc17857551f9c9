"""OpenVINO's CPU plugin: the artifact as it fuses into 8-bit layers, the runtime itself, and what it made of each layer.

Measured (docs/targets/openvino.md): activations of more than 8 bits become floats. Weights become int8 around zero: 4-bit ones
make a float layer (with an odd number of inputs a wrong one), a zero point makes a float one too. The rest fuses as it is.
"""

import io
from typing import Any

import numpy as np
import onnx_ir as ir

from fewbit.engine.policy import Policy
from fewbit.engine.state import states
from fewbit.errors import FewbitError, MissingExtra
from fewbit.targets.eight_bits import eight_bits

DENSE = ("Gemm", "MatMul", "Conv")
EXECUTED = ("FullyConnected", "MatMul", "Convolution")  # what they are called once compiled
OPTIONS = {
    "PERFORMANCE_HINT": "LATENCY",
    "INFERENCE_NUM_THREADS": 1,
    "NUM_STREAMS": 1,
    "INFERENCE_PRECISION_HINT": "f32",  # the float layers; some CPUs would take bfloat16
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,  # or float inputs of an integer weight become int8 unasked
}


rewrite = eight_bits


def load(model: ir.Model) -> Policy:
    """The policy on OpenVINO's CPU plugin, one thread; the action is the first output."""
    request = _compile(model).create_infer_request()
    inputs = {v.name or "": v for v in model.graph.inputs if v.name not in model.graph.initializers}
    shapes = {k: tuple(d for d in (v.shape or [])[1:] if isinstance(d, int)) for k, v in inputs.items()}
    names = [v.name or "" for v in model.graph.outputs]

    def run(feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        missing = [k for k in inputs if k not in feeds]
        if missing:
            raise FewbitError(f"input {missing[0]} is missing; the network takes {', '.join(inputs)}")
        given = {k: np.ascontiguousarray(feeds[k], np.float32 if v.dtype is None else v.dtype.numpy()) for k, v in inputs.items()}
        made = request.infer(given)
        return [np.array(made[k]) for k in range(len(names))]

    return Policy(run, shapes, "openvino", states(model, shapes), names)


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
