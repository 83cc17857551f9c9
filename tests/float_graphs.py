"""Small float graphs for tests: made from nodes and arrays, run by ONNX Runtime as they are, without its own rewrites."""

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

RNG = np.random.default_rng(7)
FIRST = RNG.bit_generator.state
node = helper.make_node


def w(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def model(nodes, arrays, shape, outputs=("y",), opset=21) -> onnx.ModelProto:
    """shape: of the input x, None for the batch; outputs: their names, types and shapes are inferred."""
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    given = {"x": shape} | {k: np.shape(a) for k, a in arrays.items()}
    outs = [
        helper.make_tensor_value_info(o, TensorProto.FLOAT, given[o]) if o in given else helper.make_empty_tensor_value_info(o)
        for o in outputs
    ]
    held = [numpy_helper.from_array(np.asarray(a), k) for k, a in arrays.items()]
    graph = helper.make_graph(nodes, "g", inputs, outs, held)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return onnx.shape_inference.infer_shapes(made, data_prop=True)


def run(proto: onnx.ModelProto, x: np.ndarray, name: str = "x") -> list[np.ndarray]:
    """Every output."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(None, {name: x})
