"""What fewbit's engine lacks runs in ONNX Runtime: load, evaluate, diff and the report take such an artifact as any other."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import fewbit
from fewbit import FewbitError, pipeline
from fewbit.bench import bench
from fewbit.engine.description import describe
from fewbit.engine.load import quickest
from fewbit.report.policy import Options
from fewbit.report.policy import policy as report

OPERATOR = "Sin"  # has no clause, and no kernel


def network(path) -> None:
    """CartPole's: 4 -> 16, a sine, 2, the larger one."""
    rng = np.random.default_rng(0)
    weights = {"w0": rng.normal(size=(16, 4)), "w1": rng.normal(size=(2, 16))}
    nodes = [
        helper.make_node("Gemm", ["x", "w0"], ["h"], "first", transB=1),
        helper.make_node(OPERATOR, ["h"], ["s"], "sine"),
        helper.make_node("Gemm", ["s", "w1"], ["q"], "last", transB=1),
        helper.make_node("ArgMax", ["q"], ["y"], "choice", axis=1, keepdims=0),
    ]
    ends = ("x", onnx.TensorProto.FLOAT, ["b", 4]), ("y", onnx.TensorProto.INT64, ["b"])
    inputs, outputs = ([helper.make_tensor_value_info(*end)] for end in ends)
    initializers = [numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items()]
    graph = helper.make_graph(nodes, "sine", inputs, outputs, initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(float file, artifact's file, observations [n, 4])."""
    folder = tmp_path_factory.mktemp("sine")
    network(folder / "float.onnx")
    observations = np.random.default_rng(1).normal(size=(500, 4)).astype(np.float32)
    fewbit.quantize(folder / "float.onnx", observations=observations).save(folder / "int8.onnx")
    return folder / "float.onnx", folder / "int8.onnx", observations


def test_load_chooses_onnx_runtime_and_says_so(made):
    source, artifact, observations = made
    policy = fewbit.load(artifact)
    assert policy.executor == "onnxruntime"
    want = ReferenceEvaluator(onnx.load(source)).run(None, {"x": observations})[0]
    assert (policy(observations) == want).mean() > 0.97
    described = describe(ir.load(artifact))
    assert not described.exact and OPERATOR in described.reason and described.packed_bytes >= 16 * 4 + 2 * 16


def test_the_engine_asked_for_by_name_refuses_with_the_operator_and_the_way_out(made):
    with pytest.raises(FewbitError, match=f"sine.*{OPERATOR} is not run by the engine.*executor='auto'"):
        fewbit.load(made[1], "native")


def test_what_nothing_runs_is_refused_with_the_engines_reason(made):
    model = ir.load(made[1])
    sine = next(n for n in model.graph if n.op_type == OPERATOR)
    sine.domain = "nobody.has"
    with pytest.raises(FewbitError, match="sine.*is not run by the engine; ONNX Runtime, .* refuses the graph: .*nobody.has"):
        quickest(model)


def test_what_only_onnx_runtimes_own_rewrites_fail_on_is_run_without_them():
    """A sine, signed codes moved once: a sound file of somebody else's, which its default level does not load."""
    held = {"s": np.float32(0.02), "z": np.int8(3), "t": np.array([-1, 4]), "w": np.ones((2, 4), np.float32)}
    nodes = [
        helper.make_node(OPERATOR, ["x"], ["a"], "sine"),
        helper.make_node("QuantizeLinear", ["a", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("Reshape", ["d", "t"], ["r"]),
        helper.make_node("Gemm", ["r", "w"], ["y"], transB=1),
    ]
    ends = ("x", onnx.TensorProto.FLOAT, ["b", 2, 2]), ("y", onnx.TensorProto.FLOAT, ["b", 2])
    inputs, outputs = ([helper.make_tensor_value_info(*end)] for end in ends)
    graph = helper.make_graph(nodes, "g", inputs, outputs, [numpy_helper.from_array(np.asarray(v), k) for k, v in held.items()])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    x = np.random.default_rng(0).normal(size=(9, 2, 2)).astype(np.float32)
    want = ReferenceEvaluator(proto).run(None, {"x": x})[0]
    for policy in (fewbit.load(ir.from_proto(proto)), fewbit.load(ir.from_proto(proto), "onnxruntime")):
        assert policy.executor == "onnxruntime" and np.allclose(policy(x), want, atol=1e-5)


def test_evaluate_and_diff_and_bench_and_report_take_it(made):
    source, artifact, observations = made
    record = fewbit.evaluate(artifact, "CartPole-v1", against=source, episodes=2)
    assert record["latency_executor"] == "onnxruntime" and not record["exact"] and record["action_agreement"] > 0.97
    rows = {row.tensor: row for row in pipeline.diff(source, artifact, observations)}
    assert rows["x"].format == "int16" and rows["s"].sqnr_accumulated > 30
    timed = bench(ir.load(artifact), [1], ["onnxruntime"])
    assert OPERATOR in timed["skipped"]["fewbit"] and "bare_us" not in timed
    assert {t.name: t.right for t in timed["timings"]}["onnxruntime artifact"]
    np.save(artifact.with_suffix(".npy"), observations)
    page = report(artifact, Options(source, observations=artifact.with_suffix(".npy")))
    assert "Where the error comes in" in page
