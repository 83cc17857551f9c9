"""Nothing is saved that was not run: a wrong fold, graph or executor, and what nothing runs, are refused."""

import warnings

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import fewbit
from fewbit import FewbitError, verification
from fewbit.engine import native
from fewbit.errors import FewbitWarning
from fewbit.graph import calibrate, fold_affine, weights
from fewbit.sources import load, original

OBSERVATIONS = np.random.default_rng(1).normal(size=(300, 5)).astype(np.float32)


@pytest.fixture
def network(tmp_path):
    """5 -> 24, times a factor a channel, ReLU, 3; an ONNX file."""
    rng = np.random.default_rng(0)
    constants = {
        "w0": rng.normal(size=(24, 5)),
        "b0": rng.normal(size=24),
        "f": rng.uniform(0.5, 2, 24),
        "w1": rng.normal(size=(3, 24)),
    }
    nodes = [
        helper.make_node("Gemm", ["x", "w0", "b0"], ["h"], "first", transB=1),
        helper.make_node("Mul", ["h", "f"], ["m"], "factor"),
        helper.make_node("Relu", ["m"], ["r"], "relu"),
        helper.make_node("Gemm", ["r", "w1"], ["y"], "last", transB=1),
    ]
    return saved(tmp_path / "float.onnx", nodes, {"x": ["batch", 5]}, {"y": ["batch", 3]}, constants)


def saved(path, nodes, inputs, outputs, constants):
    """An ONNX file of float inputs and outputs {name: shape}."""
    ends = [[helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in e.items()] for e in (inputs, outputs)]
    initializers = [numpy_helper.from_array(np.asarray(v, np.float32), k) for k, v in constants.items()]
    graph = helper.make_graph(nodes, "network", *ends, initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


def test_the_record_says_what_was_compared(network):
    record = fewbit.quantize(network, observations=OBSERVATIONS).record
    checked = record["verified"]
    assert checked["source"]["folded"] < 1e-5 and checked["source"]["at_16_bits"] < 0.001
    assert checked["native"] == "equal" and checked["onnxruntime"] < 0.01 and checked["rows"] == verification.ROWS
    assert 0 < record["fidelity"]["action_rmse"] < 0.02 and record["fidelity"]["states"] == len(OBSERVATIONS)


def test_a_wrong_fold_is_refused(network, monkeypatch):
    right = fold_affine._write
    monkeypatch.setattr(fold_affine, "_write", lambda graph, gemm, weight, bias: right(graph, gemm, weight, bias * 1.01))
    with pytest.raises(FewbitError, match="output y: the graph read from the source is .*% off, so nothing is written"):
        fewbit.quantize(network, observations=OBSERVATIONS)


@pytest.mark.parametrize("method", ["rtn", "smooth+gptq"])
def test_a_graph_written_wrongly_is_refused_whatever_its_bits(network, monkeypatch, method):
    right = weights.semantics.bias_codes
    monkeypatch.setattr(weights.semantics, "bias_codes", lambda bias, x, w: np.roll(right(bias, x, w), 1))
    with pytest.raises(FewbitError, match="written at 16 bits the graph is .*% of its outputs' range off the source"):
        fewbit.quantize(network, observations=OBSERVATIONS, scheme=fewbit.Scheme(weights="int4", method=method))


def test_an_engine_that_is_not_the_reference_is_refused(network, monkeypatch):
    right = native.load

    class OneOff:
        def __init__(self, program, *more):
            self.engine = right(program, *more)
            self.instruction_set = self.engine.instruction_set

        def __call__(self, x):
            made = self.engine(x).copy()
            made[-1, -1] = np.nextafter(made[-1, -1], np.float32(np.inf))
            return made

    monkeypatch.setattr(native, "load", OneOff)
    with pytest.raises(FewbitError, match="output y: fewbit's engine gives something else than the reference"):
        fewbit.quantize(network, observations=OBSERVATIONS)


def test_an_artifact_that_onnx_runtime_refuses_is_refused(network):
    artifact, source = fewbit.quantize(network, observations=OBSERVATIONS), load(network)
    zero = next(n for n in artifact.model.graph if n.op_type == "QuantizeLinear").inputs[2]
    wrong = ir.tensor(np.zeros((), np.int32), name=zero.name)
    zero.const_value, zero.dtype = wrong, ir.DataType.INT32
    with pytest.raises(FewbitError, match="the artifact is no graph that ONNX Runtime runs"):
        verification.verify_artifact(artifact.model, source.model, {"x": OBSERVATIONS})


def test_actions_far_off_are_a_warning_where_nothing_is_measured(network):
    with pytest.warns(FewbitWarning, match="% of their range off, on calibration states; --method rtn .* --method auto scales"):
        record = fewbit.quantize(network, observations=OBSERVATIONS, scheme=fewbit.Scheme(weights="int2", method="rtn")).record
    assert record["fidelity"]["action_rmse"] > 0.05
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fewbit.quantize(network, observations=OBSERVATIONS)


ALIKE = {
    "zero": np.zeros((50, 5)),
    "one row": np.ones((1, 5)),
    "equal rows": np.full((50, 5), 0.3),
    "nearly equal rows": 0.3 + 1e-3 * OBSERVATIONS,
    "far from zero": 40 + 1e-2 * OBSERVATIONS,
}


@pytest.mark.parametrize("observations", ALIKE)
@pytest.mark.parametrize("function", ["Identity", "Tanh", "Sigmoid", "Softplus", "Elu"])
def test_observations_that_are_all_alike_are_no_fault_of_the_graph(observations, function, network):
    model = onnx.load(network)
    model.graph.node.append(helper.make_node(function, ["y"], ["z"]))
    model.graph.output[0].name = "z"
    onnx.save(model, network)
    made = fewbit.quantize(network, observations=ALIKE[observations].astype(np.float32), scheme=fewbit.Scheme(method="rtn"))
    assert made.record["verified"]["source"]["at_16_bits"] < 0.01


def test_a_graph_of_batch_1_is_run_row_by_row(tmp_path):
    node = helper.make_node("Mul", ["x", "x"], ["y"], "square")
    path = saved(tmp_path / "one.onnx", [node], {"x": [1, 4]}, {"y": [1, 4]}, {})
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert np.array_equal(original.of_onnx(onnx.load(path))({"x": x})["y"], x**2)


def test_a_state_of_two_layers_is_put_together_and_taken_apart(tmp_path):
    node = helper.make_node("Add", ["h", "h"], ["next"], "double")
    path = saved(tmp_path / "two.onnx", [node], {"h": [2, "batch", 3]}, {"next": [2, "batch", 3]}, {})
    layers = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
    made = original.of_onnx(onnx.load(path))({"h_0": layers[0], "h_1": layers[1]})
    assert np.array_equal(made["next_0"], 2 * layers[0]) and np.array_equal(made["next_1"], 2 * layers[1])


def of_kind(kind, nodes, constants, opset=17, size=5, inner=None):
    """A network from x [n, size] to y of that kind; its constants too, or of the kind inner."""
    dtype = helper.tensor_dtype_to_np_dtype(inner or kind)
    ends = [[helper.make_tensor_value_info(n, kind, ["batch", s])] for n, s in (("x", size), ("y", None))]
    initializers = [numpy_helper.from_array(np.asarray(v).astype(dtype), k) for k, v in constants.items()]
    graph = helper.make_graph(nodes, "network", *ends, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


WITHOUT_A_KERNEL = {
    "Softsign": ([], {}),
    "Erf": ([], {}),
    "PRelu": (["slope"], {"slope": np.array([0.2])}),
    "BatchNormalization": (["ones", "b0", "b0", "ones"], {"ones": np.full(24, 1.5)}),
}


@pytest.mark.parametrize("opset", [9, 17])
@pytest.mark.parametrize("operator", WITHOUT_A_KERNEL)
def test_a_float64_source_is_compared_whether_or_not_onnx_runtime_runs_it(operator, opset, tmp_path):
    rng, (more, constants) = np.random.default_rng(0), WITHOUT_A_KERNEL[operator]
    constants = constants | {
        "w0": rng.normal(size=(24, 5)),
        "b0": rng.normal(size=24),
        "w1": rng.normal(size=(3, 24)),
        "b1": [0] * 3,
    }
    nodes = [
        helper.make_node("Gemm", ["x", "w0", "b0"], ["h"], "first", transB=1),
        helper.make_node(operator, ["h", *more], ["e"], "middle"),
        helper.make_node("Softsign", ["e"], ["r"], "no_kernel"),
        helper.make_node("Gemm", ["r", "w1", "b1"], ["y"], "last", transB=1),
    ]
    onnx.save(of_kind(TensorProto.DOUBLE, nodes, constants, opset), tmp_path / "m.onnx")
    record = fewbit.quantize(tmp_path / "m.onnx", observations=OBSERVATIONS).record
    assert record["verified"]["source"]["folded"] < 1e-5


def test_a_float64_lstm_that_onnx_runtime_stops_at_is_compared(tmp_path):
    """ONNX Runtime makes a session of it, and says only when it runs that it does not take doubles."""
    rng = np.random.default_rng(0)
    constants = {"r": rng.normal(size=(1, 16, 4)) / 2, "w": rng.normal(size=(1, 16, 5)) / 2, "w1": rng.normal(size=(4, 3))}
    nodes = [
        helper.make_node("Unsqueeze", ["x"], ["step"], axes=[0]),
        helper.make_node("LSTM", ["step", "w", "r", "", "", "h", "c"], ["", "next_h", "next_c"], "lstm", hidden_size=4),
        helper.make_node("Squeeze", ["next_h"], ["s"], axes=[0]),
        helper.make_node("Gemm", ["s", "w1"], ["y"], "last"),
    ]
    proto = of_kind(TensorProto.DOUBLE, nodes, constants, 12)
    proto.graph.input.extend(helper.make_tensor_value_info(n, TensorProto.DOUBLE, [1, "batch", 4]) for n in "hc")
    proto.graph.output.extend(helper.make_tensor_value_info(f"next_{n}", TensorProto.DOUBLE, [1, "batch", 4]) for n in "hc")
    onnx.save(proto, tmp_path / "m.onnx")
    rows = OBSERVATIONS[:64]
    record = fewbit.quantize(tmp_path / "m.onnx", observations=rows, scheme=fewbit.Scheme(method="rtn")).record
    assert record["verified"]["source"]["folded"] < 1e-5


@pytest.mark.parametrize("inside", [False, True])
def test_a_source_that_computes_in_float16_is_compared_in_its_own_precision(inside, tmp_path):
    """All of it, or between two Casts, which ONNX Runtime may then compute in float32."""
    rng = np.random.default_rng(0)
    sizes = {"w0": (5, 64), "w1": (64, 64), "w2": (64, 3)}
    constants = {k: rng.normal(size=s) / 4 for k, s in sizes.items()}
    nodes = [
        helper.make_node("MatMul", ["a", "w0"], ["h"]),
        helper.make_node("Tanh", ["h"], ["t"]),
        helper.make_node("MatMul", ["t", "w1"], ["i"]),
        helper.make_node("Tanh", ["i"], ["u"]),
        helper.make_node("MatMul", ["u", "w2"], ["b"]),
    ]
    if inside:
        nodes = [helper.make_node("Cast", ["x"], ["a"], to=TensorProto.FLOAT16), *nodes]
        nodes.append(helper.make_node("Cast", ["b"], ["y"], to=TensorProto.FLOAT))
    else:
        nodes[0].input[0], nodes[-1].output[0] = "x", "y"
    kind = TensorProto.FLOAT if inside else TensorProto.FLOAT16
    onnx.save(of_kind(kind, nodes, constants, inner=TensorProto.FLOAT16), tmp_path / "m.onnx")
    assert load(tmp_path / "m.onnx").half
    record = fewbit.quantize(tmp_path / "m.onnx", observations=OBSERVATIONS).record
    folded = record["verified"]["source"]["folded"]
    assert folded < verification.HALF and (folded > 1e-5 or inside)


def test_weights_that_are_only_stored_as_float16_are_compared_in_float32():
    nodes = [helper.make_node("Cast", ["w0"], ["w"], to=TensorProto.FLOAT), helper.make_node("MatMul", ["x", "w"], ["y"])]
    assert not original.computes_in_half(of_kind(TensorProto.FLOAT, nodes, {"w0": np.ones((5, 3))}, inner=TensorProto.FLOAT16))


def test_a_source_that_nothing_runs_is_one_line_of_our_own():
    node = helper.make_node("Strange", ["x"], ["y"], domain="nobody's")
    with pytest.raises(FewbitError, match="^neither ONNX Runtime nor ONNX's evaluator runs the source [^\n]*$"):
        original.of_onnx(of_kind(TensorProto.FLOAT, [node], {}))({"x": OBSERVATIONS})
def test_an_artifact_that_onnx_runtimes_optimiser_refuses_is_refused(tmp_path):
    """Signed codes that are moved once and written once: sound, and more than ONNX Runtime's own rewrites can do."""
    rng = np.random.default_rng(0)
    codes = rng.integers(-99, 99, (3, 8)).astype(np.int8)
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", ["n", 2, 4]), ("y", ["n", 3])))
    held = {"s": np.float32(0.03), "z": np.int8(3), "t": np.array([-1, 8]), "w": codes, "ws": np.float32(0.01), "wz": np.int8(0)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("Reshape", ["d", "t"], ["r"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["v"]),
        helper.make_node("Gemm", ["r", "v"], ["y"], transB=1),
    ]
    graph = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(np.asarray(v), k) for k, v in held.items()])
    artifact = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))
    feeds = {"x": rng.normal(size=(20, 2, 4)).astype(np.float32)}
    with pytest.raises(FewbitError, match="ONNX Runtime's optimiser does not take the artifact .* nothing is written"):
        verification.verify_artifact(artifact, artifact, feeds)


def test_what_onnx_runtime_cannot_run_is_said_by_node_in_our_own_words():
    """A kernel that it lacks; shapes that do not fit, which it finds when it runs."""
    erf = of_kind(TensorProto.DOUBLE, [helper.make_node("Erf", ["x"], ["y"], "bell")], {})
    with pytest.raises(FewbitError, match="^node bell: ONNX Runtime has no kernel of Erf for the types that it reads; export"):
        calibrate.session(erf)
    view = of_kind(
        TensorProto.FLOAT, [helper.make_node("Reshape", ["x", "s"], ["y"], "view")], {"s": [7, 7]}, inner=TensorProto.INT64
    )
    with pytest.raises(FewbitError, match="^node view: ONNX Runtime cannot run this Reshape, since the shapes or types"):
        calibrate.run(calibrate.session(view), None, {"x": OBSERVATIONS})
