"""A fold is made only where it changes nothing: each graph differs in one axis, rank, size or use from one that folds."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from float_graphs import RNG, model, node, run, w

from fewbit.errors import FewbitError
from fewbit.graph import edit, fold, read

NORM = ["gain", "bias", "mean", "var"]


def norm(channels: int) -> dict[str, np.ndarray]:
    return {"gain": w(channels), "bias": w(channels), "mean": w(channels), "var": np.abs(w(channels)) + 0.1}


def straight(given: onnx.ModelProto, x: np.ndarray) -> list[str]:
    """Operators of the folded graph, whose every output is what the given graph's is, for this batch and another."""
    free = bool(given.graph.input[0].type.tensor_type.shape.dim[0].dim_param)
    copy = onnx.ModelProto.FromString(given.SerializeToString())
    folded = fold.fold(read.prepare(copy) if free else ir.from_proto(copy))  # what mixes rows is refused when it is read
    made = ir.to_proto(folded)
    onnx.checker.check_model(made, full_check=True)
    for batch in (x, x[:3]) if free else (x,):
        for want, got in zip(run(given, batch), run(made, batch), strict=True):
            assert got.shape == want.shape and got.dtype == want.dtype
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    for out, got in zip(made.graph.output, run(made, x), strict=True):
        known = [d.dim_value or got.shape[k] for k, d in enumerate(out.type.tensor_type.shape.dim)]
        assert known == list(got.shape)
    assert [o.name for o in folded.graph.outputs] == [o.name for o in given.graph.output]
    return [n.op_type for n in folded.graph]


FLAT = ("n", 4)
GEMM = node("Gemm", ["x", "w", "b"], ["h"], transB=1)
HELD = {"w": w(8, 4), "b": w(8)}
CONV = node("Conv", ["x", "k", "kb"], ["h"], kernel_shape=[3, 3], pads=[1] * 4)
KERNEL = {"k": w(4, 2, 3, 3), "kb": w(4)}

AFFINE = {
    "batch normalisation behind a Conv is in its weights": (
        [CONV, node("BatchNormalization", ["h", *NORM], ["y"])], KERNEL | norm(4), ("n", 2, 4, 4), ["y"], ["Conv"],
    ),
    "behind a Conv without a bias": (
        [node("Conv", ["x", "k"], ["h"], kernel_shape=[3, 3]), node("BatchNormalization", ["h", *NORM], ["y"])],
        KERNEL | norm(4), ("n", 2, 6, 6), ["y"], ["Conv"],
    ),
    "of an image itself, each channel has its own": (
        [node("BatchNormalization", ["x", *NORM], ["y"])], norm(4), ("n", 4, 4, 4), ["y"], ["Mul", "Add"],
    ),
    "of a signal": ([node("BatchNormalization", ["x", *NORM], ["y"])], norm(4), ("n", 4, 4), ["y"], ["Mul", "Add"]),
    "a factor by column is none by channel": (
        [CONV, node("Mul", ["h", "f"], ["y"])], KERNEL | {"f": w(4)}, ("n", 2, 4, 4), ["y"], ["Conv", "Mul"],
    ),
    "a factor by row is none by channel": (
        [CONV, node("Mul", ["h", "f"], ["y"])], KERNEL | {"f": w(4, 1)}, ("n", 2, 4, 4), ["y"], ["Conv", "Mul"],
    ),
    "a factor by channel behind a Conv is in its weights": (
        [CONV, node("Div", ["h", "f"], ["y"])], KERNEL | {"f": np.abs(w(4, 1, 1)) + 1}, ("n", 2, 4, 4), ["y"], ["Conv"],
    ),
    "a layer's output that the graph gives back stays what it is": (
        [GEMM, node("Mul", ["h", "f"], ["y"])], HELD | {"f": w(8)}, FLAT, ["h", "y"], ["Gemm", "Mul"],
    ),
    "a sum of more axes than the layer's output": (
        [GEMM, node("Add", ["h", "f"], ["y"])], HELD | {"f": w(1, 1, 8)}, FLAT, ["y"], ["Gemm", "Add"],
    ),
    "a factor that widens a layer's output": (
        [GEMM, node("Mul", ["h", "f"], ["y"])], {"w": w(1, 4), "b": w(1), "f": w(8)}, FLAT, ["y"], ["Gemm", "Mul"],
    ),
    "a factor that widens what the next layer reads": (
        [GEMM, node("Relu", ["h"], ["r"]), node("Mul", ["r", "f"], ["m"]), node("Gemm", ["m", "v", "d"], ["y"], transB=1)],
        {"w": w(1, 4), "b": w(1), "f": w(8), "v": w(3, 8), "d": w(3)}, FLAT, ["y"], ["Gemm", "Relu", "Mul", "Gemm"],
    ),
    "a factor before the next layer that the graph gives back": (
        [GEMM, node("Relu", ["h"], ["r"]), node("Mul", ["r", "f"], ["m"]), node("Gemm", ["m", "v", "d"], ["y"], transB=1)],
        HELD | {"f": w(8), "v": w(3, 8), "d": w(3)}, FLAT, ["m", "y"], ["Gemm", "Relu", "Mul", "Gemm"],
    ),
    "a factor of one number that has more axes than what it meets": (
        [GEMM, node("Mul", ["f", "h"], ["m"]), node("Relu", ["m"], ["y"])], HELD | {"f": w(1, 1, 1)}, FLAT, ["y"],
        ["Gemm", "Unsqueeze", "Mul", "Relu"],
    ),
    "a layer subtracted from a constant": (
        [GEMM, node("Sub", ["f", "h"], ["y"])], HELD | {"f": w(8)}, FLAT, ["y"], ["Gemm", "Sub"],
    ),
    "weights that two layers share, one of them scaled": (
        [GEMM, node("Mul", ["h", "f"], ["m"]), node("Gemm", ["x", "w", "b"], ["i"], transB=1), node("Add", ["m", "i"], ["y"])],
        HELD | {"f": w(8)}, FLAT, ["y"], ["Gemm", "Gemm", "Add"],
    ),
    "an infinite shift": (
        [GEMM, node("Add", ["h", "f"], ["y"])], HELD | {"f": np.full(8, -np.inf, np.float32)}, FLAT, ["y"], ["Gemm", "Add"],
    ),
}  # fmt: skip

DENSE = {
    "a MatMul of a sequence": (
        [node("MatMul", ["x", "w"], ["h"]), node("Add", ["h", "b"], ["y"])],
        {"w": w(4, 8), "b": w(8)}, ("n", 3, 4), ["y"], ["Reshape", "Gemm", "Reshape"],
    ),
    "a MatMul of four axes": (
        [node("MatMul", ["x", "w"], ["y"])], {"w": w(4, 8)}, ("n", 2, 3, 4), ["y"], ["Reshape", "Gemm", "Reshape"],
    ),
    "a MatMul of a vector": (
        [node("ReduceMean", ["x", "zero"], ["v"], keepdims=0), node("MatMul", ["v", "w"], ["y"])],
        {"w": w(4, 8), "zero": np.array([0])}, FLAT, ["y"], ["ReduceMean", "Reshape", "Gemm", "Reshape"],
    ),
    "a MatMul by a vector": ([node("MatMul", ["x", "w"], ["y"])], {"w": w(4)}, FLAT, ["y"], ["Gemm", "Reshape"]),
    "a sequence by a vector": (
        [node("MatMul", ["x", "w"], ["y"])], {"w": w(4)}, ("n", 3, 4), ["y"], ["Reshape", "Gemm", "Reshape"],
    ),
    "a sum by row is no bias": (
        [node("MatMul", ["x", "w"], ["h"]), node("Add", ["h", "b"], ["y"])],
        {"w": w(4, 3), "b": w(3, 1)}, ("n", 3, 4), ["y"], ["Reshape", "Gemm", "Reshape", "Add"],
    ),
    "a bias of more axes": (
        [node("MatMul", ["x", "w"], ["h"]), node("Add", ["h", "b"], ["y"])], {"w": w(4, 3), "b": w(1, 1, 3)}, FLAT, ["y"],
        ["Gemm", "Add"],
    ),
    "a bias that widens": (
        [node("MatMul", ["x", "w"], ["h"]), node("Add", ["h", "b"], ["y"])], {"w": w(4, 1), "b": w(3)}, FLAT, ["y"],
        ["Gemm", "Add"],
    ),
    "a product that the graph gives back before its bias": (
        [node("MatMul", ["x", "w"], ["h"]), node("Add", ["h", "b"], ["y"])], {"w": w(4, 3), "b": w(3)}, FLAT, ["h", "y"],
        ["Gemm", "Add"],
    ),
    "a product that two read": (
        [node("MatMul", ["x", "w"], ["h"]), node("Add", ["h", "b"], ["s"]), node("Mul", ["h", "s"], ["y"])],
        {"w": w(4, 3), "b": w(3)}, FLAT, ["y"], ["Gemm", "Add", "Mul"],
    ),
    "Gemm of what is turned twice": (
        [node("Transpose", ["x"], ["t"], perm=[1, 0]), node("Gemm", ["t", "w", "b"], ["y"], transA=1)],
        {"w": w(4, 8), "b": w(8)}, FLAT, ["y"], ["Gemm"],
    ),
    "Gemm with transA, alpha and beta": (
        [node("Gemm", ["x", "w", "b"], ["y"], transA=1, alpha=0.5, beta=2.0)], {"w": w(6, 8), "b": w(8)}, (6, 4), ["y"],
        ["Transpose", "Gemm"],
    ),
    "a bias of one row": (
        [node("Gemm", ["x", "w", "b"], ["y"], transB=1, beta=0.5)], {"w": w(8, 4), "b": w(1, 8)}, FLAT, ["y"], ["Gemm"],
    ),
    "a bias of one number": (
        [node("Gemm", ["x", "w", "b"], ["y"], transB=1)], {"w": w(8, 4), "b": w(1, 1)}, FLAT, ["y"], ["Gemm"],
    ),
    "a bias without axes": ([node("Gemm", ["x", "w", "b"], ["y"], transB=1)], {"w": w(8, 4), "b": w()}, FLAT, ["y"], ["Gemm"]),
    "a bias that differs from row to row": (
        [node("Gemm", ["x", "w", "b"], ["y"], transB=1, beta=3.0)], {"w": w(8, 4), "b": w(6, 1)}, (6, 4), ["y"], ["Gemm", "Add"],
    ),
    "a bias that is computed": (
        [node("Tanh", ["x"], ["t"]), node("Gemm", ["x", "w", "t"], ["y"], transB=1, beta=0.5)], {"w": w(4, 4)}, FLAT, ["y"],
        ["Tanh", "Mul", "Gemm", "Add"],
    ),
    "a bias left out by an empty name": ([node("Gemm", ["x", "w", ""], ["y"])], {"w": w(4, 8)}, FLAT, ["y"], ["Gemm"]),
    "two layers of the same weights": (
        [node("MatMul", ["x", "w"], ["h"]), node("Relu", ["h"], ["r"]), node("MatMul", ["r", "w"], ["y"])], {"w": w(4, 4)}, FLAT,
        ["y"], ["Gemm", "Relu", "Gemm"],
    ),
}  # fmt: skip

WIDE = {"w": w(7, 4), "b": w(7)}
TWELVE = {"w": w(12, 4), "b": w(12)}
CUBE = node("Reshape", ["h", "cube"], ["c"])
LOG_SUM = node("ReduceLogSumExp", ["h", "axes"], ["l"], keepdims=1)
LESS = node("Sub", ["h", "l"], ["s"])

HEADS = {
    "parts of a Split that do not divide": (
        [GEMM, node("Split", ["h"], ["a", "c", "d"], axis=-1, num_outputs=3), node("Tanh", ["c"], ["y"])],
        WIDE, FLAT, ["y"], ["Gemm", "Tanh"],
    ),
    "the smaller last part": (
        [GEMM, node("Split", ["h"], ["a", "c", "d"], axis=1, num_outputs=3), node("Tanh", ["d"], ["y"])],
        WIDE, FLAT, ["y"], ["Gemm", "Tanh"],
    ),
    "a part that is the output": (
        [GEMM, node("Split", ["h", "sizes"], ["a", "y"], axis=1)], WIDE | {"sizes": np.array([3, 4])}, FLAT, ["y"], ["Gemm"],
    ),
    "a Split of what the graph gives back": (
        [GEMM, node("Split", ["h"], ["a", "c"], axis=1, num_outputs=2), node("Tanh", ["a"], ["y"])],
        HELD, FLAT, ["h", "y"], ["Gemm", "Split", "Tanh"],
    ),
    "a Split with two parts that the graph gives back": (
        [GEMM, node("Split", ["h"], ["y", "z"], axis=1, num_outputs=2)], HELD, FLAT, ["y", "z"], ["Gemm", "Split"],
    ),
    "a Split along the batch": (
        [GEMM, node("Split", ["h"], ["a", "c"], axis=0, num_outputs=2), node("Tanh", ["a"], ["y"])],
        HELD, (6, 4), ["y"], ["Gemm", "Split", "Tanh"],
    ),
    "a Split whose axis is left to the default, the batch": (
        [GEMM, node("Split", ["h"], ["a", "c"], num_outputs=2), node("Tanh", ["a"], ["y"])],
        HELD, (6, 4), ["y"], ["Gemm", "Split", "Tanh"],
    ),
    "the largest along another axis than the softmax's": (
        [GEMM, CUBE, node("Softmax", ["c"], ["s"], axis=1), node("ArgMax", ["s"], ["y"], axis=2)],
        TWELVE | {"cube": np.array([-1, 3, 4])}, FLAT, ["y"], ["Gemm", "Reshape", "Softmax", "ArgMax"],
    ),
    "the largest along the same axis, counted from the other end": (
        [GEMM, CUBE, node("LogSoftmax", ["c"], ["s"], axis=-2), node("ArgMax", ["s"], ["y"], axis=1)],
        TWELVE | {"cube": np.array([-1, 3, 4])}, FLAT, ["y"], ["Gemm", "Reshape", "ArgMax"],
    ),
    "the largest along ArgMax's own default, the batch": (
        [GEMM, node("Softmax", ["h"], ["s"]), node("ArgMax", ["s"], ["y"])], HELD, (6, 4), ["y"], ["Gemm", "Softmax", "ArgMax"],
    ),
    "the last of several largest": (
        [GEMM, node("Softmax", ["h"], ["s"]), node("ArgMax", ["s"], ["y"], axis=1, select_last_index=1)],
        {"w": np.repeat(w(4, 4), 2, 0), "b": np.zeros(8, np.float32)}, FLAT, ["y"], ["Gemm", "ArgMax"],
    ),
    "the largest of a row less its log-sum-exp": (
        [GEMM, LOG_SUM, LESS, node("ArgMax", ["s"], ["y"], axis=-1)], HELD | {"axes": np.array([1])}, FLAT, ["y"],
        ["Gemm", "ArgMax"],
    ),
    "the largest of a column less its log-sum-exp over the batch": (
        [GEMM, LOG_SUM, LESS, node("ArgMax", ["s"], ["y"], axis=1)], HELD | {"axes": np.array([0])}, (6, 4), ["y"],
        ["Gemm", "ReduceLogSumExp", "Sub", "ArgMax"],
    ),
    "less the log-sum-exp of something else": (
        [GEMM, node("Tanh", ["h"], ["t"]), node("ReduceLogSumExp", ["h", "axes"], ["l"], keepdims=1),
         node("Sub", ["t", "l"], ["s"]), node("ArgMax", ["s"], ["y"], axis=1)],
        HELD | {"axes": np.array([0])}, (6, 4), ["y"], ["Gemm", "Tanh", "ReduceLogSumExp", "Sub", "ArgMax"],
    ),
    "less a log-sum-exp that is not kept as an axis": (
        [node("Gemm", ["x", "w", "b"], ["h"], transB=1), node("ReduceLogSumExp", ["h", "axes"], ["l"], keepdims=0),
         LESS, node("ArgMax", ["s"], ["y"], axis=1)],
        {"w": w(6, 4), "b": w(6), "axes": np.array([1])}, (6, 4), ["y"], ["Gemm", "ReduceLogSumExp", "Sub", "ArgMax"],
    ),
    "the mean over quantiles, counted from the end": (
        [GEMM, CUBE, node("ReduceMean", ["c", "axes"], ["y"], keepdims=0)],
        TWELVE | {"cube": np.array([-1, 3, 4]), "axes": np.array([-2])}, FLAT, ["y"], ["Gemm"],
    ),
    "the mean over the other axis": (
        [GEMM, CUBE, node("ReduceMean", ["c", "axes"], ["y"], keepdims=0)],
        TWELVE | {"cube": np.array([-1, 3, 4]), "axes": np.array([2])}, FLAT, ["y"], ["Gemm", "Reshape", "ReduceMean"],
    ),
    "a mean whose axis is kept": (
        [GEMM, CUBE, node("ReduceMean", ["c", "axes"], ["y"])],
        TWELVE | {"cube": np.array([-1, 3, 4]), "axes": np.array([1])}, FLAT, ["y"], ["Gemm", "Reshape", "ReduceMean"],
    ),
    "a mean over all axes": (
        [GEMM, CUBE, node("ReduceMean", ["c"], ["y"], keepdims=0)],
        TWELVE | {"cube": np.array([-1, 3, 4])}, FLAT, ["y"], ["Gemm", "Reshape", "ReduceMean"],
    ),
    "a mean over no axes": (
        [GEMM, CUBE, node("ReduceMean", ["c", ""], ["y"], noop_with_empty_axes=1, keepdims=0)],
        TWELVE | {"cube": np.array([-1, 3, 4])}, FLAT, ["y"], ["Gemm", "Reshape", "ReduceMean"],
    ),
    "quantiles of two observations in one matrix": (
        [GEMM, CUBE, node("ReduceMean", ["c", "axes"], ["y"], keepdims=0)],
        TWELVE | {"cube": np.array([-1, 6, 4]), "axes": np.array([1])}, (6, 4), ["y"], ["Gemm", "Reshape", "ReduceMean"],
    ),
    "quantiles that the graph gives back": (
        [GEMM, CUBE, node("ReduceMean", ["c", "axes"], ["y"], keepdims=0)],
        TWELVE | {"cube": np.array([0, 3, -1]), "axes": np.array([1])}, FLAT, ["c", "y"], ["Gemm", "Reshape", "ReduceMean"],
    ),
}  # fmt: skip

ENDS = {
    "an input given back": ([node("Relu", ["x"], ["y"])], {}, FLAT, ["y", "x"], ["Relu"]),
    "an input given back under another name": ([node("Identity", ["x"], ["y"])], {}, FLAT, ["y"], ["Identity"]),
    "a constant given back": ([node("Relu", ["x"], ["y"])], {"c": w(3)}, FLAT, ["y", "c"], ["Relu", "Identity"]),
    "a constant computed and given back": (
        [node("Exp", ["c"], ["e"]), node("Relu", ["x"], ["y"])], {"c": w(3)}, FLAT, ["y", "e"], ["Identity", "Relu"],
    ),
    "moves that come to nothing between an input and an output": (
        [node("Unsqueeze", ["x", "one"], ["u"]), node("Squeeze", ["u", "one"], ["y"])], {"one": np.array([1])}, FLAT, ["y"],
        ["Unsqueeze", "Squeeze"],
    ),
    "every other element is no whole": (
        [node("Unsqueeze", ["x", "one"], ["u"]), node("Slice", ["u", "zero", "four", "two", "two"], ["s"]),
         node("Squeeze", ["s", "one"], ["y"])],
        {"one": np.array([1]), "zero": np.array([0]), "four": np.array([4]), "two": np.array([2])}, FLAT, ["y"], None,
    ),
    "a Split of constants": (
        [node("Split", ["c"], ["a", "b"], axis=0, num_outputs=2), node("Mul", ["x", "a"], ["m"]), node("Add", ["m", "b"], ["y"])],
        {"c": w(2, 4)}, FLAT, ["y"], ["Mul", "Add"],
    ),
    "a Dropout that is passed through": (
        [node("Dropout", ["x", "r"], ["d"]), node("Relu", ["d"], ["y"])], {"r": np.float32(0.5)}, FLAT, ["y"], ["Relu"],
    ),
    "random numbers that nobody needs": (
        [node("RandomNormalLike", ["x"], ["e"]), node("Exp", ["e"], ["s"]), node("Relu", ["x"], ["y"])], {}, FLAT, ["y"],
        ["Relu"],
    ),
}  # fmt: skip

CASES = AFFINE | DENSE | HEADS | ENDS


@pytest.mark.parametrize("name", CASES)
def test_every_output_is_what_it_was(name):
    nodes, arrays, shape, outputs, left = CASES[name]
    x = RNG.normal(size=[6, *shape[1:]]).astype(np.float32)
    operators = straight(model(nodes, arrays, shape, outputs), x)
    assert left is None or operators == left


@pytest.mark.parametrize(
    "nodes, why",
    [
        ([node("RandomNormal", [], ["e"], shape=[4]), node("Add", ["x", "e"], ["y"])], "node e: RandomNormal draws random"),
        ([node("RandomUniformLike", ["c"], ["e"]), node("Add", ["x", "e"], ["y"])], "RandomUniformLike draws random numbers"),
        ([node("Bernoulli", ["c"], ["e"]), node("Add", ["x", "e"], ["y"])], "Bernoulli draws random numbers"),
        ([node("RandomNormalLike", ["x"], ["y"])], "RandomNormalLike draws random numbers"),
        ([node("Dropout", ["x", "", "yes"], ["y"])], "Dropout in training mode"),
        ([node("Dropout", ["c", "", "yes"], ["d"]), node("Add", ["x", "d"], ["y"])], "Dropout in training mode"),
        ([node("BatchNormalization", ["x", *["c"] * 4], ["y", "a", "b"], training_mode=1)], "BatchNormalization in training"),
    ],
)  # fmt: skip
def test_what_draws_or_learns_is_refused(nodes, why):
    given = model(nodes, {"c": np.ones(4, np.float32), "yes": np.array(True)}, FLAT)
    with pytest.raises(FewbitError, match=why):
        fold.fold(read.prepare(given))


@pytest.mark.parametrize(("name", "called"), [("over", "over"), ("", "y")])
def test_a_dense_layer_of_unknown_size_is_refused_by_its_name_or_its_outputs(name, called):
    given = model([node("MatMul", ["x", "w"], ["y"], name=name)], {"w": w(4, 3)}, ("n", "tokens", 4))
    with pytest.raises(FewbitError, match=f"node {called}: a MatMul of x .*tokens.* fixed sizes"):
        fold.fold(read.prepare(given))


def test_names_that_are_taken_are_left_alone():
    """Every name that a fold would give is held by a value of the graph already."""
    names = ["h.weight", "h.bias", "h.gemm", "h.gemm_out", "h.mul", "h.mul.out", "h.mul_by", "y.replaced", "z.const"]
    nodes = [node("MatMul", ["x", "w"], ["h"], name="h.gemm"), node("BatchNormalization", ["h", *NORM], ["n"], name="h")]
    nodes += [node("Tanh", ["n" if k == 0 else names[k - 1]], [name], name=f"{name}.mul") for k, name in enumerate(names)]
    nodes += [node("Neg", ["gain"], ["z"]), node("Add", [names[-1], "z"], ["y"])]
    straight(model(nodes, {"w": w(4, 4)} | norm(4), FLAT), RNG.normal(size=(6, 4)).astype(np.float32))


def test_a_chain_of_two_thousand_nodes():
    deep = 2000
    names = ["x", *(f"v{k}" for k in range(deep - 1)), "y"]
    nodes = [node(("Neg", "Tanh", "Identity")[k % 3], [names[k]], [names[k + 1]]) for k in range(deep)]
    assert len(straight(model(nodes, {}, FLAT), RNG.normal(size=(6, 4)).astype(np.float32))) == deep - deep // 3


def test_moves_of_two_thousand_nodes_come_to_nothing():
    nodes, last = [], "x"
    for k in range(1000):
        nodes += [node("Unsqueeze", [last, "one"], [f"u{k}"]), node("Squeeze", [f"u{k}", "one"], [f"s{k}"])]
        last = f"s{k}"
    nodes.append(node("Relu", [last], ["y"]))
    assert straight(model(nodes, {"one": np.array([1])}, FLAT), RNG.normal(size=(6, 4)).astype(np.float32)) == ["Relu"]


def test_a_name_that_an_input_is_to_have_is_given_up():
    given = ir.from_proto(model([node("Relu", ["x"], ["h_0"]), node("Add", ["h_0", "h_1"], ["y"])], {"h_1": w(4)}, FLAT))
    x = RNG.normal(size=(6, 4)).astype(np.float32)
    want = run(ir.to_proto(given), x)[0]
    for name in ("h_0", "h_1", "y"):
        edit.give_up(given.graph, name)
    assert [o.name for o in given.graph.outputs] == ["y"] and not set(given.graph.initializers) & {"h_0", "h_1"}
    assert "h_0" not in [o.name for n in given.graph for o in n.outputs]
    np.testing.assert_array_equal(run(ir.to_proto(given), x)[0], want)
