"""An output that depends on no input (a policy's log_std) keeps its own shape, however it is written, whatever the batch."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from c_policy import CPolicy
from onnx import TensorProto, helper, numpy_helper

import fewbit
from fewbit.engine import native, reference
from fewbit.engine.lower import lower
from fewbit.graph import calibrate
from fewbit.graph.read import read

RNG = np.random.default_rng(0)
X = RNG.normal(size=(48, 6)).astype(np.float32)
W = RNG.normal(size=(6, 3)).astype(np.float32)
LOG_STD = RNG.normal(size=2).astype(np.float32)

WRITTEN = {
    "identity": [helper.make_node("Identity", ["log_std"], ["s"])],
    "constant": [helper.make_node("Constant", [], ["s"], value=numpy_helper.from_array(LOG_STD))],
    "floats": [helper.make_node("Constant", [], ["s"], value_floats=LOG_STD.tolist())],
    "computed": [helper.make_node("Exp", ["logarithm"], ["s"])],
    "twice": [helper.make_node("Identity", ["log_std"], ["t"]), helper.make_node("Identity", ["t"], ["s"])],
}


def network(batch, written: str, shape: list[int]) -> onnx.ModelProto:
    """x [batch, 6] -> y [batch, 3] and the constant s of that shape."""
    nodes = [helper.make_node("Gemm", ["x", "w"], ["h"]), *WRITTEN[written], helper.make_node("Tanh", ["h"], ["y"])]
    ends = {"x": [batch, 6], "y": [batch, 3], "s": shape}
    x, y, s = (helper.make_tensor_value_info(n, TensorProto.FLOAT, d) for n, d in ends.items())
    held = {"w": W, "log_std": LOG_STD.reshape(shape), "logarithm": np.log(np.abs(LOG_STD.reshape(shape)))}
    constants = [numpy_helper.from_array(v, k) for k, v in held.items()]
    graph = helper.make_graph(nodes, "g", [x], [y, s], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("batch", ["batch", 1, 4])
@pytest.mark.parametrize("written", WRITTEN)
def test_every_executor_gives_a_constant_output_in_its_own_shape(written, batch, tmp_path):
    onnx.save(network(batch, written, [2]), tmp_path / "m.onnx")
    agrees(tmp_path, np.abs(LOG_STD) if written == "computed" else LOG_STD)


@pytest.mark.parametrize("shape", [[1, 2], [2, 1, 1]])
def test_a_constant_output_of_more_axes_is_no_row_of_a_batch(shape, tmp_path):
    onnx.save(network(1, "identity", shape), tmp_path / "m.onnx")
    agrees(tmp_path, LOG_STD.reshape(shape))


def test_compiled_c_gives_it_beside_a_choice(tmp_path):
    """Its self-test, which -Werror compiles, has one row of the constant for each observation."""
    proto = network(1, "identity", [2])
    proto.graph.node[-1].CopyFrom(helper.make_node("ArgMax", ["h"], ["y"], axis=1, keepdims=0))
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.INT64, [1]))
    onnx.save(proto, tmp_path / "m.onnx")
    artifact = fewbit.quantize(tmp_path / "m.onnx", observations=X, scheme=fewbit.Scheme(method="rtn"))
    assert CPolicy(lower(artifact.model), tmp_path).library.policy_self_test() == 0


def agrees(folder, constant: np.ndarray) -> None:
    """Both outputs of the artifact, from every executor."""
    fewbit.quantize(folder / "m.onnx", observations=X, scheme=fewbit.Scheme(method="rtn")).save(folder / "q.onnx")
    model, want = read(folder / "q.onnx"), np.tanh(X.astype(np.float64) @ W)
    program = lower(model)
    registers = reference.run(program, {"x": X})
    made = {
        "onnxruntime": calibrate.run(calibrate.session(ir.to_proto(model)), ["y", "s"], {"x": X}),
        "reference": [registers[o] for o in program.outputs],
        "native": native.load(program)(X),
    }
    for executor, (y, s) in made.items():
        assert np.abs(y - want).max() < 0.05 * np.ptp(want), executor
        assert s.shape == constant.shape and np.allclose(s, constant), executor
    assert tuple(model.graph.outputs[1].shape) == constant.shape
