"""ONNX Runtime's CPU provider: the artifact as it fuses into integer kernels, the runtime, and what it made of each layer.

Measured (docs/targets/onnxruntime.md): 16-bit activations do not fuse, so what is wider than 8 bits is float; the first layer in
float is faster than as two 8-bit halves at every size tried. A weight's DequantizeLinear fuses only with its zero point written.
"""

import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from fewbit.engine.load import load as load_policy
from fewbit.engine.policy import Policy
from fewbit.graph.edit import add_constant, const
from fewbit.targets.eight_bits import eight_bits

LAYERS = ("Gemm", "Conv")


def rewrite(model: ir.Model) -> ir.Model:
    """A copy with 8-bit codes alone, activations unsigned, every weight's zero point written out."""
    model = eight_bits(model)
    for node in [n for n in model.graph if n.op_type == "QuantizeLinear"]:
        _unsigned(model.graph, node)
    for node in [n for n in model.graph if n.op_type == "DequantizeLinear" and len(n.inputs) < 3]:
        codes, scale = const(node.inputs[0]), const(node.inputs[1])
        if codes is not None and scale is not None and codes.dtype.itemsize == 1:
            zero = add_constant(model.graph, f"{node.outputs[0].name}.zero_point", np.zeros(scale.shape, codes.dtype))
            node.resize_inputs(3)
            node.replace_input_with(2, zero)
    return model


def _unsigned(graph: ir.Graph, quantize: ir.Node) -> None:
    """The same values as uint8, 128 further up: the kernels' own signedness on x86 (and 1.32 fails on int8 behind a Reshape)."""
    zero = const(quantize.inputs[2]) if len(quantize.inputs) > 2 else None
    if zero is None or zero.dtype != np.int8:
        return
    moved = add_constant(graph, f"{quantize.outputs[0].name}.unsigned", (zero.astype(np.int16) + 128).astype(np.uint8))
    for node in [quantize, *(user for user, _ in quantize.outputs[0].uses())]:
        node.replace_input_with(2, moved)


def load(model: ir.Model) -> Policy:
    """The policy in ONNX Runtime, one thread."""
    return load_policy(model, "onnxruntime")


def layers(model: ir.Model) -> list[tuple[str, str]]:
    """(name, the operator that was run: "QGemm", "QLinearConv", "Gemm", …) of each layer, read in the graph that it optimised."""
    executed = list(_optimised(model).graph.node)
    reads = {name: node for node in executed for name in node.input}
    found = []
    for node in model.graph:
        if node.op_type in LAYERS and node.inputs[1] is not None:
            dequantize = node.inputs[1].producer()
            stored = dequantize.inputs[0] if dequantize is not None else node.inputs[1]
            run = reads.get(stored.name or "") if stored is not None else None
            if run is not None and run.op_type == "DequantizeLinear":
                run = reads.get(run.output[0])
            found.append((node.name or "", run.op_type if run is not None else "absent"))
    return found


def _optimised(model: ir.Model) -> onnx.ModelProto:
    """The graph that the runtime says it runs."""
    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
        return onnx.load(options.optimized_model_filepath)
