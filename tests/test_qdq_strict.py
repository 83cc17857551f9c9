"""Quantizing changes what a network computes by its rounding alone: every output at 16 bits, run by ONNX Runtime and by us."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from executors import agree
from float_graphs import RNG, model, node, run, w

from fewbit.engine import reference
from fewbit.engine.load import load
from fewbit.engine.lower import lower
from fewbit.engine.program import Rescale
from fewbit.graph import fold, read
from fewbit.graph.qdq import Scheme
from fewbit.graph.quantize import quantize
from fewbit.graph.strip import strip

WIDE = Scheme(weights="int16", activations="uint16")


def made(given: onnx.ModelProto, x: np.ndarray, scheme: Scheme = WIDE) -> ir.Model:
    """The artifact, as it is read from its file."""
    source = fold.fold(read.prepare(onnx.ModelProto.FromString(given.SerializeToString())))
    written = ir.to_proto(quantize(source, {"x": x}, scheme)[0])
    onnx.checker.check_model(written, full_check=True)
    return read.prepare(written)


def close(want: np.ndarray, got: np.ndarray, share: float) -> None:
    assert got.shape == want.shape and got.dtype == want.dtype
    assert np.abs(got.astype(np.float64) - want).max() <= share * max(np.abs(want).max(), 1e-9)


def same(given: onnx.ModelProto, x: np.ndarray, scheme: Scheme = WIDE, share: float = 2e-3) -> ir.Model:
    """Asserts that every output is the float network's within a share of its largest value; the artifact."""
    artifact = made(given, x, scheme)
    program = lower(artifact)
    registers = reference.run(program, {"x": x})
    others = [run(ir.to_proto(artifact), x), [registers[o] for o in program.outputs], run(ir.to_proto(strip(artifact)), x)]
    for outputs in others:
        for want, got in zip(run(given, x), outputs, strict=True):
            close(want, got, share)
    assert [o.name for o in artifact.graph.outputs] == [o.name for o in given.graph.output]
    return artifact


FIRST = node("Gemm", ["x", "w", "b"], ["h"], transB=1)
LAST = node("Gemm", ["r", "v", "d"], ["y"], transB=1)
HELD = {"w": w(8, 4), "b": w(8), "v": w(3, 8), "d": w(3)}
LIMITS = {"low": np.float32(-20), "high": np.float32(20), "none": np.float32(-np.inf), "one": np.float32(1)}

CASES = {
    "what stands before a ReLU is given back": ([FIRST, node("Relu", ["h"], ["r"]), LAST], HELD, ["h", "y"]),
    "what stands behind it too": ([FIRST, node("Relu", ["h"], ["r"]), LAST], HELD, ["r", "h", "y"]),
    "what is squashed later is given back, and goes beyond 8": (
        [FIRST, node("Tanh", ["h"], ["r"]), LAST], HELD | {"w": 4 * w(8, 4)}, ["h", "y"],
    ),
    "what is squashed at last is given back, and goes beyond 8": (
        [FIRST, node("Tanh", ["h"], ["y"])], HELD | {"w": 4 * w(8, 4)}, ["h", "y"],
    ),
    "what is squashed is read by another function too": (
        [FIRST, node("Tanh", ["h"], ["t"]), node("Softplus", ["h"], ["r"]), node("Add", ["t", "r"], ["s"]),
         node("Gemm", ["s", "v", "d"], ["y"], transB=1)], HELD | {"w": 4 * w(8, 4)}, ["y"],
    ),
    "a clip at 20 of what goes beyond 8": (
        [FIRST, node("Clip", ["h", "low", "high"], ["r"]), LAST], HELD | LIMITS | {"w": 4 * w(8, 4)}, ["y"],
    ),
    "a clip that has no lower limit": (
        [FIRST, node("Clip", ["h", "none", "one"], ["r"]), LAST], HELD | LIMITS | {"w": 4 * w(8, 4)}, ["y"],
    ),
    "a clip whose lower limit is left out": (
        [FIRST, node("Clip", ["h", "", "one"], ["r"]), LAST], HELD | LIMITS | {"w": 4 * w(8, 4)}, ["y"],
    ),
    "a clip at last, at 20": ([FIRST, node("Clip", ["h", "low", "high"], ["y"])], HELD | LIMITS | {"w": 4 * w(8, 4)}, ["y"]),
    "a factor written with axes": (
        [FIRST, node("Tanh", ["h"], ["t"]), node("Mul", ["t", "half"], ["r"]), LAST],
        HELD | {"half": np.array([[0.5]], np.float32)}, ["y"],
    ),
    "a factor of more axes than what it meets": (
        [FIRST, node("Tanh", ["h"], ["t"]), node("Mul", ["t", "half"], ["s"]), node("Squeeze", ["s", "zero"], ["r"]), LAST],
        HELD | {"half": np.array([[[0.5]]], np.float32), "zero": np.array([0])}, ["y"],
    ),
    "one weight read by three layers": (
        [node("Gemm", ["x", "q", "c"], ["h"], transB=1), node("Tanh", ["h"], ["r"]),
         node("Gemm", ["r", "q", "c"], ["g"], transB=1), node("Tanh", ["g"], ["s"]),
         node("Gemm", ["s", "q", "c"], ["y"], transB=1)], {"q": w(4, 4), "c": w(4)}, ["y"],
    ),
    "the observation is given back": ([FIRST, node("Relu", ["h"], ["r"]), LAST], HELD, ["y", "x"]),
    "a constant is given back": ([FIRST, node("Relu", ["h"], ["r"]), LAST], HELD | {"c": w(3)}, ["y", "c"]),
    "sums over entities": (
        [node("Unsqueeze", ["x", "axis"], ["u"]), node("Concat", ["u", "u"], ["s"], axis=1), node("MatMul", ["s", "m"], ["p"]),
         node("Add", ["p", "b"], ["h"]), node("Relu", ["h"], ["q"]), node("ReduceMean", ["q", "axis"], ["r"], keepdims=0), LAST],
        HELD | {"m": w(4, 8), "axis": np.array([1])}, ["y"],
    ),
    "a split into one": (
        [FIRST, node("Softplus", ["h"], ["s"]), node("Split", ["s"], ["r"], axis=1, num_outputs=1), LAST], HELD, ["y"],
    ),
    "a shape of a part of the sizes": (
        [FIRST, node("Shape", ["h"], ["s"], end=1), node("Shape", ["h"], ["t"], start=-1), node("Div", ["t", "two"], ["half"]),
         node("Concat", ["s", "two", "half"], ["c"], axis=0), node("Reshape", ["h", "c"], ["r"]),
         node("MatMul", ["r", "v"], ["y"])],
        {"w": HELD["w"], "b": HELD["b"], "two": np.array([2]), "v": w(4, 3)}, ["y"],
    ),
    "a shape that is computed from a hidden value": (
        [FIRST, node("Relu", ["h"], ["q"]), node("Shape", ["q"], ["s"]), node("Slice", ["s", "zero", "one"], ["n"]),
         node("Concat", ["n", "sizes"], ["t"], axis=0), node("Reshape", ["q", "t"], ["c"]),
         node("ReduceMean", ["c", "one"], ["m"], keepdims=0), node("Gemm", ["m", "e", "d"], ["y"], transB=1)],
        HELD | {"zero": np.array([0]), "one": np.array([1]), "sizes": np.array([2, 4]), "e": w(3, 4)}, ["y"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_every_output_is_the_float_networks(name):
    nodes, arrays, outputs = CASES[name]
    share = 5e-3 if "squashed at last" in name else 2e-3  # a tanh of slope 1 behind numbers up to 50 in 16 bits: steps of 1e-3
    same(model(nodes, arrays, ("n", 4), outputs), RNG.normal(size=(200, 4)).astype(np.float32), share=share)


DEAD = {"never": np.full(8, -50, np.float32)}  # what it is added to is zero behind a ReLU in every row
SILENT = [FIRST, node("Relu", ["h"], ["p"]), node("Gemm", ["x", "w", "never"], ["g"], transB=1), node("Relu", ["g"], ["q"])]
BOTH = [*SILENT, node("Elu", ["q"], ["e"])]
ZEROS = {
    "a part of a Concat": ([*BOTH, node("Concat", ["p", "e"], ["y"], axis=1)], {}),
    "a part of a Concat that a layer reads": (
        [*BOTH, node("Concat", ["e", "p"], ["c"], axis=1), node("Gemm", ["c", "v", "d"], ["y"], transB=1)],
        {"v": w(3, 16), "d": w(3)},
    ),
    "every part": ([*BOTH, node("Concat", ["q", "e"], ["c"], axis=1), node("Gemm", ["c", "v", "d"], ["y"], transB=1)],
                   {"v": w(3, 16), "d": w(3)}),
    "a summand": ([*BOTH, node("Add", ["e", "p"], ["r"]), LAST], {}),
    "a factor of a summand": ([*BOTH, node("Mul", ["e", "p"], ["m"]), node("Sub", ["p", "m"], ["r"]), LAST], {}),
    "what a function is of": (
        [*SILENT[:2], node("Gemm", ["x", "none", "none8"], ["g"], transB=1), node("Softplus", ["g"], ["s"]),
         node("Mul", ["s", "p"], ["r"]), LAST], {"none": np.zeros((8, 4), np.float32), "none8": np.zeros(8, np.float32)},
    ),
    "a layer's input": ([*SILENT, node("Gemm", ["q", "v", "d"], ["z"], transB=1), node("Add", ["z", "x3"], ["y"])], {"x3": w(3)}),
}  # fmt: skip


@pytest.mark.parametrize("size", [1e-4, 1, 1e3])
@pytest.mark.parametrize("name", ZEROS)
def test_what_is_zero_in_every_row_costs_the_others_nothing(name, size):
    nodes, more = ZEROS[name]
    held = HELD | DEAD | more
    held |= {k: held[k] * np.float32(size) for k in "wb"}
    x = RNG.normal(size=(200, 4)).astype(np.float32)
    if size > 1:
        held["never"] = held["never"] * np.float32(size)
    given = model(nodes, {k: v for k, v in held.items() if any(k in n.input for n in nodes)}, ("n", 4))
    assert np.ptp(run(given, x)[0]) > 0 or name in ("every part", "a layer's input")
    same(given, x)


def test_indices_that_are_joined_stay_integers():
    nodes = [FIRST]
    for k in range(2):
        nodes += [node("Gemm", ["h", f"v{k}", "d"], [f"q{k}"], transB=1), node("ArgMax", [f"q{k}"], [f"a{k}"], axis=1)]
    nodes.append(node("Concat", ["a0", "a1"], ["y"], axis=1))
    x = RNG.normal(size=(400, 4)).astype(np.float32)
    given = model(nodes, HELD | {"v0": w(3, 8), "v1": w(3, 8)}, ("n", 4))
    artifact = made(given, x)
    for executor in ("native", "reference", "onnxruntime"):
        got = load(artifact, executor)(x)
        assert got.dtype == np.int64 and (got == run(given, x)[0]).mean() > 0.99


def test_names_that_are_taken_are_left_alone():
    """A chain of values that have the names which the writer would give."""
    kinds = ["scale", "zero_point", "quantize", "codes", "dequantize", "dequantized", "float", "narrow.codes"]
    names = [f"{stem}.{kind}" for stem in ("x", "h", "r", "y") for kind in kinds]
    names += [f"{stem}_{end}" for stem in ("w.weight", "b.bias", "w.bias") for end in ("codes", "scale", "dequantized")]
    nodes = [node("Neg", ["x" if k == 0 else names[k - 1]], [name], name=f"{name}.node") for k, name in enumerate(names)]
    nodes += [node("Gemm", [names[-1], "w", "b"], ["h"], transB=1, name="h.quantize"), node("Relu", ["h"], ["r"]), LAST]
    same(model(nodes, HELD, ("n", 4)), RNG.normal(size=(200, 4)).astype(np.float32))
    for method in ("awq", "smooth+gptq"):
        same(model(nodes, HELD, ("n", 4)), RNG.normal(size=(200, 4)).astype(np.float32), Scheme("int16", "uint16", method=method))


def test_a_sequence_gives_the_same_bits_natively_and_in_c(tmp_path):
    nodes = [node("MatMul", ["x", "m"], ["p"]), node("Add", ["p", "b"], ["h"]), node("Relu", ["h"], ["q"])]
    nodes += [node("MatMul", ["q", "v"], ["s"]), node("Tanh", ["s"], ["t"]), node("Flatten", ["t"], ["f"])]
    nodes += [node("Gemm", ["f", "e", "d"], ["y"], transB=1)]
    held = {"m": w(4, 8), "b": w(8), "v": w(8, 5), "e": w(3, 15), "d": w(3)}
    x = RNG.normal(size=(50, 3, 4)).astype(np.float32)
    artifact = same(model(nodes, held, ("n", 3, 4)), x)
    agree(artifact, x[:, None], tmp_path)


def test_optional_outputs_of_a_file_are_all_there_at_eight_bits():
    nodes, arrays, outputs = CASES["what stands behind it too"]
    same(model(nodes, arrays, ("n", 4), outputs), RNG.normal(size=(200, 4)).astype(np.float32), Scheme(), 0.05)


def test_a_function_of_five_hundred_nodes_between_two_layers():
    nodes, last = [FIRST], "h"
    for k in range(500):
        nodes.append(node(("Tanh", "Neg", "Abs")[k % 3], [last], [f"f{k}"]))
        last = f"f{k}"
    nodes.append(node("Gemm", [last, "v", "d"], ["y"], transB=1))
    same(model(nodes, HELD, ("n", 4)), RNG.normal(size=(100, 4)).astype(np.float32))


def test_three_hundred_layers():
    nodes, last = [], "x"
    for k in range(300):
        nodes += [node("Gemm", [last, "w", "b"], [f"h{k}"], transB=1), node("Tanh", [f"h{k}"], [f"r{k}"])]
        last = f"r{k}"
    given = model(nodes, {"w": np.eye(4, dtype=np.float32), "b": np.full(4, 0.5, np.float32)}, ("n", 4), [last])
    x = RNG.normal(size=(20, 4)).astype(np.float32)
    same(given, x)


def test_six_hundred_float_operators_before_a_layer():
    nodes, last = [], "x"
    for k in range(600):
        nodes.append(node("Mul" if k % 2 else "Add", [last, "f"], [f"p{k}"]))
        last = f"p{k}"
    nodes.append(node("Gemm", [last, "w", "b"], ["y"], transB=1))
    given = model(nodes, {"f": 1 + 1e-3 * w(4), "w": w(3, 4), "b": w(3)}, ("n", 4))
    x = RNG.normal(size=(20, 4)).astype(np.float32)
    want = run(given, x)[0]
    for executor in ("native", "reference"):
        close(want, load(read.prepare(given), executor)(x), 1e-4)


MOVES = {
    "Reshape": [("Reshape", ["n2x4"], {})],
    "Flatten": [("Flatten", [], {"axis": 1})],
    "Transpose": [("Transpose", [], {"perm": [0, 2, 1]}), ("Reshape", ["n8"], {})],
    "Slice": [("Slice", ["zero", "two", "axis"], {}), ("Reshape", ["n8"], {})],
    "Unsqueeze": [("Unsqueeze", ["axis"], {}), ("Squeeze", ["axis"], {}), ("Flatten", [], {})],
    "MaxPool": [("MaxPool", [], {"kernel_shape": [1]}), ("Transpose", [], {"perm": [0, 2, 1]}), ("Flatten", [], {})],
    "Split": [("Reshape", ["n4x2"], {}), ("Split", [], {"axis": 1, "num_outputs": 1}), ("Reshape", ["n8"], {})],
}
SIZES = {"n2x4": [0, 2, 4], "n4x2": [0, 4, 2], "n8": [-1, 8], "zero": [0], "two": [2], "axis": [1]}


def moved(name: str) -> onnx.ModelProto:
    """Gemm, Softplus, as [n, 2, 4], moved about, Gemm of the last axis; and the moved value beside it."""
    nodes = [FIRST, node("Softplus", ["h"], ["s"]), node("Reshape", ["s", "n2x4"], ["m0"])]
    for k, (op, sizes, attributes) in enumerate(MOVES[name]):
        nodes.append(node(op, [f"m{k}", *sizes], [f"m{k + 1}"], **attributes))
    last, inner = f"m{len(MOVES[name])}", 4 if name == "Reshape" else 8
    nodes += [node("MatMul", [last, "v"], ["y"]), node("Softmax", [last], ["z"])]
    held = {k: v for k, v in HELD.items() if k in "wb"} | {"v": w(inner, 3)}
    sizes = {k: np.array(v) for k, v in SIZES.items() if k == "n2x4" or any(k in s for _, s, _ in MOVES[name])}
    return model(nodes, held | sizes, ("n", 4), ["y", "z"], opset=18)


@pytest.mark.parametrize("name", MOVES)
@pytest.mark.parametrize("activations", ["uint8", "int8"])
def test_onnx_runtimes_optimiser_takes_signed_codes_that_are_moved(name, activations):
    x = RNG.normal(size=(100, 4)).astype(np.float32)
    given = moved(name)
    artifact = made(given, x, Scheme(activations=activations))
    runner = ort.InferenceSession(ir.to_proto(artifact).SerializeToString(), providers=["CPUExecutionProvider"])
    others = [runner.run(None, {"x": x}), run(ir.to_proto(artifact), x)]
    if name != "MaxPool":  # which the engine does not run
        program = lower(artifact)
        registers = reference.run(program, {"x": x})
        others.append([registers[o] for o in program.outputs])
        assert not [s for s in program.steps if isinstance(s, Rescale)]  # what was only moved is not rounded again
    for outputs in others:
        for want, got in zip(run(given, x), outputs, strict=True):
            close(want, got, 0.05)


def test_onnx_runtime_loads_what_is_written_with_its_own_rewrites():
    nodes, arrays, outputs = CASES["sums over entities"]
    x = RNG.normal(size=(20, 4)).astype(np.float32)
    given = model(nodes, arrays, ("n", 4), outputs)
    proto = ir.to_proto(made(given, x, Scheme()))
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    close(run(given, x)[0], session.run(None, {"x": x})[0], 0.1)


@pytest.mark.parametrize("function", ["Relu", "Elu", "Tanh"])
def test_a_layer_and_the_skip_around_it_read_one_moved_value(function, tmp_path):
    nodes = [
        node("Conv", ["x", "k"], ["c"]), node(function, ["c"], ["r"]), node("Flatten", ["r"], ["f"]),
        node("Gemm", ["f", "w", "b"], ["g"], transB=1), node("Add", ["f", "g"], ["y"]),
    ]  # fmt: skip
    arrays = {"k": w(3, 1, 2), "w": w(18, 18), "b": w(18)}
    x = RNG.normal(size=(200, 1, 7)).astype(np.float32)
    same(model(nodes, arrays, ("n", 1, 7)), x)
    agree(made(model(nodes, arrays, ("n", 1, 7)), x, Scheme(method="rtn")), x[:20, None], tmp_path)
