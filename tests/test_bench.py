"""`fewbit bench`: every runner is right, the JSON is whole, what cannot run is skipped by name. No times are judged."""

import json
import subprocess
import sys

import corpus
import numpy as np
import pytest
from conftest import ROOT

from fewbit.bench import bench
from fewbit.engine import reference
from fewbit.engine.lower import lower
from fewbit.graph.read import prepare, read
from fewbit.graph.strip import strip

FEWBIT = [sys.executable, "-c", "from fewbit.cli.main import main; main()"]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "policy.onnx"
    done = subprocess.run(
        [*FEWBIT, "quantize", str(ROOT / "demo" / "halfcheetah.zip"), "-o", str(path), "--env", "HalfCheetah-v5"]
        + ["--method", "rtn", "--episodes", "2", "--json"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["latency_executor"].startswith("native ")
    return path


def test_every_runner_is_right(artifact):
    found = bench(read(artifact), [1, 7], ["onnxruntime", "numpy", "torch", "sb3"], str(ROOT / "demo" / "halfcheetah.zip"))
    assert [t.name for t in found["timings"]][:2] == ["fewbit", "fewbit float32"] and len(found["timings"]) == 11
    assert all(t.right and set(t.us) == {1, 7} and min(t.us.values()) > 0 for t in found["timings"]), found["timings"]
    assert found["skipped"] == {} and found["bare_us"][1] > 0


def test_a_float_policy_is_right_too(tmp_path):
    """Its sums are added in another order than the reference's: right to float32, not to the bit."""
    g = corpus.Graph(0)
    x = np.random.default_rng(0).normal(size=(16, 40)).astype(np.float32)
    layer = np.random.default_rng(1).normal(size=(9, 40)).astype(np.float32)
    model = g.case("float", g.op("Gemm", g.input(x), g.constant(layer), transB=1)).model
    (ours, *_) = bench(prepare(model), [1], ["numpy"])["timings"]
    assert ours.name == "fewbit" and ours.right and ours.error < 1e-5, ours


def test_json_and_errors(artifact):
    command = [*FEWBIT, "bench", str(artifact), "--batch", "1", "--against", "numpy,sb3"]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True)
    found = json.loads(done.stdout)
    assert done.returncode == 0 and found["skipped"] == {"sb3": "give the policy's own file with --source"}
    assert found["multiply_accumulates"] == 17 * 256 + 256 * 256 + 256 * 6
    table = subprocess.run(command, capture_output=True, text=True).stdout
    assert "C++ alone" in table and "numpy float32" in table
    assert "not what quantization cost" in table and "recorded when it was quantized: action error" in table
    for more, message in [
        (["--batch", "0"], "--batch 0"),
        (["--against", "xyz"], "--against xyz is unknown; choose from fewbit, "),
    ]:
        done = subprocess.run([*FEWBIT, "bench", str(artifact), *more], capture_output=True, text=True)
        assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1


def test_stripped_graphs_are_the_float_network():
    g = corpus.Graph(4)
    x = g.entry("int16", 9, 2.0**-8)
    weight = g.rng.integers(-128, 128, (20, 9)).astype(np.int8)
    h = g.qdq(g.gemm(x, 2.0**-8, weight, np.full(20, 0.003), None), "uint8", 0.02)
    case = g.case("net", g.gemm(h, 0.02, np.eye(3, 20, dtype=np.int8), np.float32(1), None))
    program = lower(strip(prepare(case.model)))
    got = reference.run(program, {"x0": case.feeds["x0"][:3]})[program.outputs[0]]
    exact = np.maximum(case.feeds["x0"][:3].astype(np.float64) @ (weight * np.float64(np.float32(0.003))).T, 0)[:, :3]
    np.testing.assert_allclose(got, exact, rtol=1e-5, atol=1e-5)


def test_a_network_of_several_inputs_and_outputs():
    g = corpus.Graph(5)
    two = [g.gemm(g.entry("int16", 4, 2.0**-8), 2.0**-8, np.eye(4, dtype=np.int8), np.float32(1), None) for _ in range(2)]
    model = prepare(g.case("two", g.op("Add", *two)).model)
    found = bench(model, [1, 3], ["onnxruntime", "numpy", "torch", "sb3"], "policy.zip")
    assert len(found["timings"]) == 10 and all(t.right for t in found["timings"]), found["timings"]
    assert found["skipped"] == {"sb3": "its policy is not called with x0, x1"}
