"""What the native engine makes of rows below each other, constants beside actions and computed indices: right, or refused."""

import numpy as np
import pytest
from float_graphs import RNG, model, node, run, w

from fewbit.engine.load import load
from fewbit.errors import FewbitError
from fewbit.graph import read

X = RNG.normal(size=(7, 3, 4)).astype(np.float32)
ROWS = node("Reshape", ["x", "rows"], ["r"])
GEMM = node("Gemm", ["r", "w", "b"], ["g"], transB=1)
BACK = node("Reshape", ["g", "back"], ["y"])
HELD = {"w": w(5, 4), "b": w(5), "rows": np.array([-1, 4]), "back": np.array([-1, 3, 5])}


@pytest.mark.parametrize("how", ["Reshape", "Flatten"])
def test_a_layer_over_rows_below_each_other(how):
    nodes = [ROWS if how == "Reshape" else node("Flatten", ["x"], ["r"], axis=2), GEMM, node("Tanh", ["g"], ["t"])]
    nodes.append(node("Reshape", ["t", "back"], ["y"]))
    given = model(nodes, HELD, ("n", 3, 4))
    np.testing.assert_allclose(load(read.prepare(given))(X), run(given, X)[0], atol=1e-5)


@pytest.mark.parametrize(
    "nodes, why",
    [
        ([ROWS, node("Gemm", ["r", "w", "b"], ["y"], transB=1)], "output y: its first dimension is not the batch"),
        ([ROWS, GEMM, node("Slice", ["g", "zero", "two", "zero"], ["s"]), node("Reshape", ["s", "back"], ["y"])],
         "Slice .* below each other|first dimension|cannot be run"),
        ([ROWS, GEMM, node("ArgMax", ["g"], ["a"], axis=1, keepdims=0), node("Reshape", ["a", "pairs"], ["y"])],
         "ArgMax .* below"),
        ([ROWS, GEMM, node("Transpose", ["g"], ["t"]), node("Reshape", ["t", "back"], ["y"])], "Transpose .* below"),
        ([ROWS, GEMM, node("ReduceMean", ["g"], ["m"]), node("Add", ["g", "m"], ["a"]), node("Reshape", ["a", "back"], ["y"])],
         "first dimension|below|all axes"),
        ([node("ArgMax", ["x"], ["y"], axis=1, select_last_index=1)], "takes the last of several"),
        ([node("ArgMax", ["x"], ["i"], axis=2, keepdims=0), node("Gather", ["w", "i"], ["y"])], "computed from the observation"),
        ([node("Gemm", ["f", "w", "b"], ["y"], transB=1, alpha=2.0), ], "no plain dense layer"),
    ],
)  # fmt: skip
def test_what_it_cannot_do_is_refused_by_name(nodes, why):
    held = HELD | {"zero": np.array([0]), "two": np.array([2]), "pairs": np.array([-1, 3])}
    if nodes[0].input[0] == "f":
        nodes = [node("Flatten", ["x"], ["flat"]), node("Slice", ["flat", "zero", "four", "one"], ["f"]), *nodes]
        held |= {"four": np.array([4]), "one": np.array([1])}
    with pytest.raises(FewbitError, match=why):
        load(read.prepare(model(nodes, held, ("n", 3, 4))), "native")


def test_an_index_that_is_computed_is_each_rows_own():
    """Not the first observation's, and not a batch of zeros'."""
    given = model([node("ArgMax", ["x"], ["i"], axis=1, keepdims=0), node("Gather", ["w", "i"], ["y"])], HELD, ("n", 5))
    x = RNG.normal(size=(40, 5)).astype(np.float32)
    for executor in ("reference", "onnxruntime"):
        np.testing.assert_array_equal(load(read.prepare(given), executor)(x), run(given, x)[0])


def test_a_constant_output_is_given_as_it_is():
    nodes = [node("Flatten", ["x"], ["f"]), node("Relu", ["f"], ["y"]), node("Identity", ["b"], ["log_std"])]
    given = model(nodes, HELD, ("n", 3, 4), ["y", "log_std"])
    engine = load(read.prepare(given))
    for got, want in zip(engine(X), run(given, X), strict=True):
        np.testing.assert_array_equal(got, want)
    assert engine.instruction_set == load(read.prepare(model(nodes[:2], {}, ("n", 3, 4)))).instruction_set


def test_a_constant_action_is_refused():
    given = model([node("Identity", ["b"], ["y"]), node("Relu", ["x"], ["z"])], HELD, ("n", 3, 4), ["y", "z"])
    with pytest.raises(FewbitError, match="output y is a constant"):
        load(read.prepare(given))


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("axis", [1, 2, 3, -2])
def test_a_softmax_over_any_axis_is_onnx_runtimes_and_never_overflows(op, axis):
    given = model([node(op, ["x"], ["y"], axis=axis)], {}, ("n", 3, 4, 5))
    x = RNG.normal(size=(7, 3, 4, 5)).astype(np.float32) * 300
    np.testing.assert_allclose(load(read.prepare(given), "native")(x), run(given, x)[0], rtol=1e-5, atol=1e-6)
