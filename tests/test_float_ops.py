"""Every float operator with its attributes off their defaults and its optional inputs left out, against ONNX's own evaluator."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from fewbit.engine.float_ops import OPS
from fewbit.engine.load import load
from fewbit.errors import FewbitError
from fewbit.graph import read

RNG = np.random.default_rng(3)
X = RNG.normal(size=(2, 3, 4)).astype(np.float32)
M = RNG.normal(size=(3, 4)).astype(np.float32)
I = np.array  # noqa: E741


def f(*shape):
    return RNG.normal(size=shape).astype(np.float32)


NAN_FREE = np.array([[-3, -1, -0.5, 0], [0.25, 1, 2.5, 7]], np.float32)
TIES = np.array([[1, 3, 3, 0], [2, 2, 2, 2]], np.float32)

CASES = [
    ("Gemm", [M, f(4, 5)], {}),
    ("Gemm", [M, f(5, 4), None], {"transB": 1}),
    ("Gemm", [M, f(3, 5), f(5)], {"transA": 1}),
    ("Gemm", [M, f(5, 3), f(4, 1)], {"transA": 1, "transB": 1, "alpha": 0.5, "beta": -2.0}),
    ("Gemm", [M, f(4, 5), f(1, 5)], {"alpha": 3.0}),
    ("Gemm", [M, f(4, 5), f()], {"beta": 0.25}),
    ("MatMul", [X, f(4, 5)], {}),
    ("MatMul", [X, f(2, 4, 3)], {}),
    ("MatMul", [X, f(4)], {}),
    ("Softmax", [X], {}),
    ("Softmax", [X * 100], {"axis": 0}),
    ("Softmax", [X], {"axis": -2}),
    ("LogSoftmax", [X], {"axis": 1}),
    ("Flatten", [X], {}),
    ("Flatten", [X], {"axis": 0}),
    ("Flatten", [X], {"axis": 2}),
    ("Flatten", [X], {"axis": 3}),
    ("Flatten", [X], {"axis": -1}),
    ("Flatten", [X], {"axis": -3}),
    ("ArgMax", [TIES], {}),
    ("ArgMax", [TIES], {"axis": -1, "keepdims": 0}),
    ("ArgMax", [TIES], {"axis": 1, "select_last_index": 1}),
    ("ArgMax", [X], {"axis": -2, "keepdims": 0, "select_last_index": 1}),
    ("ReduceMean", [X], {}),
    ("ReduceMean", [X], {"keepdims": 0}),
    ("ReduceMean", [X, I([1])], {}),
    ("ReduceMean", [X, I([-1, 0])], {"keepdims": 0}),
    ("ReduceMean", [X, None], {"keepdims": 0}),
    ("ReduceMean", [X, None], {"noop_with_empty_axes": 1}),
    ("ReduceMean", [X, I([], dtype=np.int64)], {"noop_with_empty_axes": 1, "keepdims": 0}),
    ("ReduceMean", [X, I([], dtype=np.int64)], {}),
    ("Concat", [X, X[:, :1]], {"axis": -2}),
    ("Concat", [X, X], {"axis": 0}),
    ("Squeeze", [X[:, :1]], {}),
    ("Squeeze", [X[:, :1], None], {}),
    ("Squeeze", [X[:, :1], I([-2])], {}),
    ("Unsqueeze", [X, I([-1, 0])], {}),
    ("Cast", [NAN_FREE], {"to": TensorProto.INT64}),
    ("Cast", [NAN_FREE], {"to": TensorProto.BOOL}),
    ("Cast", [NAN_FREE], {"to": TensorProto.FLOAT16}),
    ("Cast", [NAN_FREE], {"to": TensorProto.DOUBLE}),
    ("Cast", [np.abs(NAN_FREE)], {"to": TensorProto.UINT16}),
    ("Cast", [np.abs(NAN_FREE)], {"to": TensorProto.UINT32}),
    ("Cast", [I([[0, 1], [7, 0]])], {"to": TensorProto.FLOAT}),
    ("Clip", [NAN_FREE], {}),
    ("Clip", [NAN_FREE, np.float32(-1)], {}),
    ("Clip", [NAN_FREE, None, np.float32(1)], {}),
    ("Clip", [NAN_FREE, None, None], {}),
    ("Clip", [NAN_FREE, np.float32(2), np.float32(-1)], {}),
    ("Clip", [NAN_FREE, np.float32(-np.inf), np.float32(np.inf)], {}),
    ("Clip", [I([[-3, 5]]), I(-1), I(2)], {}),
    ("Reshape", [X, I([0, -1])], {}),
    ("Reshape", [X, I([-1, 0])], {}),
    ("Reshape", [X, I([0, 0, 2, 2])], {}),
    ("Reshape", [X[:, :0], I([0, 0, 4])], {"allowzero": 1}),
    ("Slice", [X, I([1]), I([3])], {}),
    ("Slice", [X, I([0]), I([2]), None], {}),
    ("Slice", [X, I([1]), I([9]), I([2]), None], {}),
    ("Slice", [X, I([0, 0]), I([1, 2]), None, I([1, 2])], {}),
    ("Slice", [X, I([-1]), I([-99]), I([-1]), I([-1])], {}),
    ("Slice", [X, I([3]), I([0]), I([2]), I([-2])], {}),
    ("Slice", [X, I([-3]), I([-1]), I([-1])], {}),
    ("Slice", [X, I([9]), I([-99]), I([2]), I([-1])], {}),
    ("Slice", [X, I([-99]), I([2**63 - 1]), I([1]), I([2])], {}),
    ("Split", [X], {"axis": 2, "num_outputs": 3}),
    ("Split", [X, None], {"axis": -1, "num_outputs": 2}),
    ("Split", [X, I([1, 3])], {"axis": -1}),
    ("Split", [X], {"num_outputs": 2}),
    ("Transpose", [X], {}),
    ("Transpose", [X], {"perm": [1, 2, 0]}),
    ("Shape", [X], {}),
    ("Shape", [X], {"start": 1}),
    ("Shape", [X], {"start": -2, "end": -1}),
    ("Shape", [X], {"start": -9, "end": 9}),
    ("Expand", [X[:, :1], I([3, 1])], {}),
    ("Expand", [X[:, :1], I([5, 2, 3, 4])], {}),
    ("Expand", [I([[1], [2]]), I([2, 3])], {}),
    ("Gather", [X, I([2, -1])], {"axis": 1}),
    ("Gather", [X, I(1)], {}),
    ("Gather", [X, I([[0, -3]])], {"axis": -2}),
    ("Identity", [X], {}),
    ("LeakyRelu", [NAN_FREE], {"alpha": 0.3}),
    ("LeakyRelu", [NAN_FREE], {}),
    ("Elu", [NAN_FREE], {"alpha": 0.5}),
    ("Selu", [NAN_FREE], {}),
    ("Selu", [NAN_FREE], {"alpha": 1.1, "gamma": 2.0}),
    ("Celu", [NAN_FREE], {"alpha": 2.0}),
    ("Gelu", [NAN_FREE], {}),
    ("Gelu", [NAN_FREE], {"approximate": "tanh"}),
    ("HardSigmoid", [NAN_FREE], {}),
    ("HardSigmoid", [NAN_FREE], {"alpha": 0.3, "beta": 0.1}),
    ("HardSwish", [NAN_FREE], {}),
    ("Softplus", [NAN_FREE], {}),
    ("Mish", [NAN_FREE], {}),
    ("Relu", [I([[-3, 4]])], {}),
    ("Abs", [NAN_FREE], {}),
    ("Neg", [NAN_FREE], {}),
    ("Exp", [NAN_FREE], {}),
    ("Erf", [NAN_FREE], {}),
    ("Tanh", [NAN_FREE], {}),
    ("Sigmoid", [NAN_FREE], {}),
    ("Min", [NAN_FREE], {}),
    ("Min", [NAN_FREE, f(4), f(1)], {}),
    ("Max", [NAN_FREE, f(2, 1)], {}),
    ("Div", [I([[7, -7, 5]]), I([2, 2, -3])], {}),
    ("Div", [NAN_FREE, f(4)], {}),
    ("Sub", [NAN_FREE, f(4)], {}),
    ("Mul", [NAN_FREE, f(2, 1)], {}),
    ("Add", [NAN_FREE, f(1, 1, 4)], {}),
    ("Conv", [f(2, 3, 8), f(4, 3, 3)], {"strides": [2], "pads": [1, 0]}),
    ("Conv", [f(2, 3, 8, 7), f(4, 3, 3, 2), None], {"dilations": [2, 1]}),
    ("MatMulInteger", [I([[1, 2]], dtype=np.uint8), I([[3], [4]], dtype=np.int8), I(1, dtype=np.uint8)], {}),
]  # fmt: skip


def one(op, inputs, attributes):
    """(a model of the one node, its feeds): every input that is not a constant's place is a graph input."""
    parts = attributes.get("num_outputs") or (len(inputs[1]) if op == "Split" else 1)
    outputs = [f"y{k}" for k in range(parts)]
    names = [None if a is None else f"i{k}" for k, a in enumerate(inputs)]
    node = helper.make_node(op, [n or "" for n in names], outputs, **attributes)
    feeds = {n: a for n, a in zip(names, inputs, strict=True) if n is not None}
    kind = helper.np_dtype_to_tensor_dtype
    given = [helper.make_tensor_value_info(n, kind(a.dtype), a.shape) for n, a in feeds.items()]
    graph = helper.make_graph([node], "g", given, [helper.make_empty_tensor_value_info(o) for o in outputs])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), feeds


@pytest.mark.parametrize("op, inputs, attributes", CASES, ids=[f"{k}-{c[0]}" for k, c in enumerate(CASES)])
def test_as_onnx_defines_it(op, inputs, attributes):
    inputs = [None if a is None else np.asarray(a) for a in inputs]
    model, feeds = one(op, inputs, attributes)
    wanted = ReferenceEvaluator(model).run(None, feeds)
    given = dict(attributes)
    for k, want in enumerate(wanted):
        if len(wanted) > 1:
            given |= {"output": k, "num_outputs": len(wanted)}
        got = OPS[op](given, *inputs)
        assert got.shape == want.shape and got.dtype == want.dtype
        np.testing.assert_allclose(got, want, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("to", [TensorProto.STRING, TensorProto.FLOAT8E4M3FN])
def test_a_cast_to_what_is_not_known_is_refused_by_name(to):
    with pytest.raises(FewbitError, match="Cast to"):
        OPS["Cast"]({"to": to}, X)


def test_an_operator_of_the_table_is_in_these_cases():
    hard = {"DynamicQuantizeLinear"}  # tests/test_dynamic.py
    assert set(OPS) - hard == {op for op, _, _ in CASES}


def test_a_slice_without_steps_is_run():
    nodes = [helper.make_node("Slice", ["x", "s", "e", "a", ""], ["y"])]
    held = [numpy_helper.from_array(np.array([v]), k) for k, v in (("s", 1), ("e", 3), ("a", 1))]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 5])]
    graph = helper.make_graph(nodes, "g", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])], held)
    given = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=8)
    onnx.checker.check_model(given)
    x = f(6, 5)
    for executor in ("native", "reference"):
        np.testing.assert_array_equal(load(read.prepare(given), executor)(x), x[:, 1:3])


@pytest.mark.parametrize("sized", [False, True])
def test_a_split_into_one_part_is_run(sized):
    nodes = [helper.make_node("Split", ["x", "s"] if sized else ["x"], ["y"], axis=1, **({} if sized else {"num_outputs": 1}))]
    ends = [[helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 5])] for n in "xy"]
    graph = helper.make_graph(nodes, "g", *ends, [numpy_helper.from_array(np.array([5]), "s")])
    given = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    x = f(6, 5)
    for executor in ("native", "reference", "onnxruntime"):
        np.testing.assert_array_equal(load(read.prepare(given), executor)(x), x)
