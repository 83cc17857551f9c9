"""Folding leaves what a graph computes unchanged: every rewrite against ONNX Runtime running the graph that was given."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from fewbit.graph import fold, read

RNG = np.random.default_rng(0)


def proto(nodes, arrays, width, opset=21, out_type=onnx.TensorProto.FLOAT):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", width])],
        [helper.make_tensor_value_info("y", out_type, None)],
        [numpy_helper.from_array(np.asarray(a), k) for k, a in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return onnx.shape_inference.infer_shapes(model)


def weight(*shape):
    return RNG.normal(size=shape).astype(np.float32)


CASES = {
    "MatMul, then Add, becomes one Gemm": (
        [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Add", ["b", "h"], ["y"])],
        {"w": weight(5, 7), "b": weight(7)},
        ["Gemm"],
    ),
    "MatMul without a bias": ([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": weight(5, 7)}, ["Gemm"]),
    "Gemm with alpha, beta and no transB": (
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"], alpha=0.5, beta=2.0)],
        {"w": weight(5, 7), "b": weight(7)},
        ["Gemm"],
    ),
    "Gemm with one bias for all rows": (
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1, beta=3.0)],
        {"w": weight(7, 5), "b": weight(1)},
        ["Gemm"],
    ),
    "a constant branch": (
        [
            helper.make_node("Exp", ["b"], ["e"]),
            helper.make_node("Neg", ["e"], ["f"]),
            helper.make_node("Add", ["x", "f"], ["y"]),
        ],
        {"b": weight(5)},
        ["Add"],
    ),
    "Identity and an unused branch": (
        [
            helper.make_node("Identity", ["x"], ["i"]),
            helper.make_node("Tanh", ["i"], ["unused"]),
            helper.make_node("Relu", ["i"], ["y"]),
        ],
        {},
        ["Relu"],
    ),
    "a Split whose second half is never used": (
        [
            helper.make_node("Gemm", ["x", "w", "b"], ["h"], transB=1),
            helper.make_node("Split", ["h", "sizes"], ["mean", "deviation"], axis=1),
            helper.make_node("Tanh", ["mean"], ["y"]),
        ],
        {"w": weight(8, 5), "b": weight(8), "sizes": np.array([3, 5])},
        ["Gemm", "Tanh"],
    ),
    "QR-DQN's mean over quantiles": (
        [
            helper.make_node("Gemm", ["x", "w", "b"], ["h"], transB=1),
            helper.make_node("Reshape", ["h", "shape"], ["r"]),
            helper.make_node("ReduceMean", ["r", "axes"], ["y"], keepdims=0),
        ],
        {"w": weight(20, 5), "b": weight(20), "shape": np.array([-1, 10, 2]), "axes": np.array([1])},
        ["Gemm"],
    ),
    "the largest of a softmax": (
        [
            helper.make_node("Gemm", ["x", "w", "b"], ["h"], transB=1),
            helper.make_node("Softmax", ["h"], ["p"], axis=-1),
            helper.make_node("ArgMax", ["p"], ["y"], axis=1, keepdims=0),
        ],
        {"w": weight(4, 5), "b": weight(4)},
        ["Gemm", "ArgMax"],
    ),
}


CASES |= {
    "factors and shifts behind a layer": (
        [
            helper.make_node("Gemm", ["x", "w", "b"], ["h"], transB=1),
            helper.make_node("Sub", ["h", "mean"], ["c"]),
            helper.make_node("Div", ["c", "dev"], ["n"]),
            helper.make_node("Mul", ["gain", "n"], ["m"]),
            helper.make_node("Add", ["m", "bias"], ["s"]),
            helper.make_node("Relu", ["s"], ["y"]),
        ],
        {
            "w": weight(8, 5), "b": weight(8), "mean": weight(1, 8), "dev": np.abs(weight(8)) + 1, "gain": weight(8),
            "bias": weight(8),
        },
        ["Gemm", "Relu"],
    ),
    "batch normalisation between a ReLU and the next layer": (
        [
            helper.make_node("Gemm", ["x", "w", "b"], ["h"], transB=1),
            helper.make_node("Relu", ["h"], ["r"]),
            helper.make_node("BatchNormalization", ["r", "gain", "bias", "mean", "var"], ["n"], epsilon=1e-3),
            helper.make_node("Gemm", ["n", "v", "d"], ["y"], transB=1),
        ],
        {
            "w": weight(8, 5), "b": weight(8), "gain": weight(8), "bias": weight(8), "mean": weight(8),
            "var": np.abs(weight(8)), "v": weight(3, 8), "d": weight(3),
        },
        ["Gemm", "Relu", "Gemm"],
    ),
    "the observations' own normaliser stays": (
        [
            helper.make_node("Sub", ["x", "mean"], ["c"]),
            helper.make_node("Mul", ["c", "inv"], ["n"]),
            helper.make_node("Gemm", ["n", "w", "b"], ["y"], transB=1),
        ],
        {"mean": weight(5), "inv": weight(5), "w": weight(8, 5), "b": weight(8)},
        ["Sub", "Mul", "Gemm"],
    ),
    "a layer whose output has another reader keeps its factor": (
        [
            helper.make_node("Gemm", ["x", "w", "b"], ["h"], transB=1),
            helper.make_node("Mul", ["h", "gain"], ["m"]),
            helper.make_node("Add", ["m", "h"], ["y"]),
        ],
        {"w": weight(8, 5), "b": weight(8), "gain": weight(8)},
        ["Gemm", "Mul", "Add"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_output_stays_what_it_was(name):
    nodes, arrays, left = CASES[name]
    integers = nodes[-1].op_type == "ArgMax"
    given = proto(nodes, arrays, 5, out_type=onnx.TensorProto.INT64 if integers else onnx.TensorProto.FLOAT)
    x = RNG.normal(size=(64, 5)).astype(np.float32)
    want = run(given, x)
    folded = fold.fold(read.prepare(given))
    got = run(ir.to_proto(folded), x)
    assert [n.op_type for n in folded.graph] == left
    assert got.shape == want.shape and np.abs(got - want).max() <= 1e-5
    assert [o.name for o in folded.graph.outputs] == ["y"]


def test_a_split_that_is_wholly_used_stays():
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"], transB=1),
        helper.make_node("Split", ["h"], ["a", "c"], axis=1, num_outputs=2),
        helper.make_node("Mul", ["a", "c"], ["y"]),
    ]
    given = proto(nodes, {"w": weight(8, 5), "b": weight(8)}, 5)
    x = RNG.normal(size=(9, 5)).astype(np.float32)
    want = run(given, x)
    folded = fold.fold(read.prepare(given))
    assert "Split" in [n.op_type for n in folded.graph]
    assert np.abs(run(ir.to_proto(folded), x) - want).max() <= 1e-5


def test_an_opset_11_file_is_converted():
    given = proto(
        [helper.make_node("Gemm", ["x", "w", "b"], ["h"], transB=1), helper.make_node("Clip", ["h", "lo", "hi"], ["y"])],
        {"w": weight(4, 5), "b": weight(4), "lo": np.float32(-1), "hi": np.float32(1)},
        5,
        opset=11,
    )
    x = RNG.normal(size=(9, 5)).astype(np.float32)
    want = run(given, x)
    folded = fold.fold(read.prepare(given))
    assert folded.opset_imports[""] == 21 and np.abs(run(ir.to_proto(folded), x) - want).max() <= 1e-5


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    return np.asarray(ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0])
