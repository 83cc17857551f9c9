"""ONNX Runtime fuses what is written for it into integer kernels, agrees layer by layer, and cannot saturate on AVX2."""

import shutil
import subprocess
import sys
from pathlib import Path

import corpus
import numpy as np
import onnx_ir as ir
import pytest
from conftest import ROOT, ZOO
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_by_layer import layer_by_layer, quantized

import fewbit
from fewbit import _native
from fewbit.artifact import Artifact
from fewbit.errors import FewbitError
from fewbit.graph import metadata
from fewbit.graph.edit import add_constant, const
from fewbit.graph.read import prepare, read
from fewbit.numerics.formats import INTEGERS
from fewbit.solvers import pairs, rtn
from fewbit.targets import onnxruntime, saturation

FEWBIT = [sys.executable, "-c", "from fewbit.cli.main import main; main()"]
SEEN = np.random.default_rng(0).normal(0, 2, (500, 17)).astype(np.float32)
INTEGER = {"QGemm", "QLinearConv", "QLinearMatMul"}
POLICIES = ["sac/HalfCheetah-v3", "dqn/LunarLander-v2", "sac/Walker2d-v3", "a2c/Humanoid-v3", "ppo/CartPole-v1"]


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    scheme = fewbit.Scheme(method="smooth+gptq", target="onnxruntime")
    return fewbit.quantize(ROOT / "demo" / "halfcheetah.zip", observations=SEEN, scheme=scheme)


def test_every_layer_but_the_first_is_an_integer_kernel(artifact, record_property):
    """In the graph that the runtime itself saves: no float product between quantized layers, no MatMulNBits."""
    ran = onnxruntime.layers(artifact.model)
    assert [op for _, op in ran] == ["Gemm", "QGemm", "QGemm"]
    nodes = [n.op_type for n in onnxruntime._optimised(artifact.model).graph.node]
    assert nodes == ["Mul", "Gemm", "QuantizeLinear", "QGemm", "QGemm", "Tanh"]
    shares = layer_by_layer(artifact.model, {"observation": SEEN}, onnxruntime.load)
    record_property("measured", f"ONNX Runtime: equal codes {', '.join(f'{s:.3%}' for s in shares.values())}")
    assert set(shares) == {n for n, op in ran if op in INTEGER}


@pytest.mark.parametrize("name", POLICIES)
def test_the_zoos_policies_fuse(name):
    source = ZOO / name / f"{name.split('/')[1]}.zip"
    if not source.exists():
        pytest.skip(f"needs the zoo's {name}")
    from fewbit import sources

    (shape,) = (tuple(d for d in v.shape[1:]) for v in sources.load(source).model.graph.inputs)
    seen = np.random.default_rng(1).normal(0, 1, (300, *shape)).astype(np.float32)
    made = fewbit.quantize(source, observations=seen, scheme=fewbit.Scheme(method="rtn", target="onnxruntime"))
    ran = onnxruntime.layers(made.model)
    assert len(ran) > 1 and {op for _, op in ran[1:]} <= INTEGER, ran
    assert set(made.record["pairs"]) == {n for n, _ in ran[1:]} and max(made.record["pairs"].values()) <= 128


def test_convolutions_fuse():
    """Of the corpus: every layer that reads 8-bit codes and leaves as some."""
    checked = 0
    for case in corpus.convolutions():
        model = onnxruntime.rewrite(prepare(case.model))
        names = {n.name for n in quantized(model)}
        ran = dict(onnxruntime.layers(model))
        checked += sum(ran[n] in INTEGER for n in names)
        assert {ran[n] for n in names} <= INTEGER, (case.name, ran)
    assert checked > 10


def test_an_artifact_whose_weights_could_saturate_is_refused(tmp_path, artifact):
    plain = tmp_path / "any.onnx"
    fewbit.quantize(ROOT / "demo" / "halfcheetah.zip", observations=SEEN, scheme=fewbit.Scheme(method="rtn")).save(plain)
    out = tmp_path / "out.onnx"
    command = [*FEWBIT, "export", str(plain), "--to", "onnx", "--target", "onnxruntime", "-o", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "neighbouring inputs" in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not out.exists()
    artifact.save(plain)
    assert subprocess.run(command, capture_output=True).returncode == 0
    record = metadata.read(read(out))
    assert record["target"] == "onnxruntime" and record["pairs"] == saturation.proof(read(out))


RUN = """import sys, numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
for name in ("safe", "unsafe"):
    session = onnxruntime.InferenceSession(name + ".onnx", options, providers=["CPUExecutionProvider"])
    numpy.save(f"{name}.{sys.argv[1]}.npy", session.run(None, {"observation": numpy.load("x.npy")})[0])
"""


@pytest.mark.skipif(not shutil.which("qemu-x86_64"), reason="needs qemu-x86_64")
def test_on_avx2_the_bound_keeps_it_right_and_weights_beyond_it_do_not(artifact, tmp_path):
    """The same file on this CPU and on an emulated Haswell; then with saturating weights put back into one layer."""
    unsafe = artifact.model.clone()
    put_back(unsafe)
    with pytest.raises(FewbitError, match="neighbouring inputs"):
        saturation.proof(unsafe)
    for name, model in (("safe", artifact.model.clone()), ("unsafe", unsafe)):
        end = next(n for n in model.graph if n.op_type == "Tanh").inputs[0]  # before it is squashed, where large values differ
        end.shape, end.dtype = model.graph.outputs[0].shape, ir.DataType.FLOAT
        model.graph.outputs[0] = end
        (tmp_path / f"{name}.onnx").write_bytes(metadata.to_bytes(model))
    np.save(tmp_path / "x.npy", 20 * SEEN[:64])  # far out, where hidden codes are large
    subprocess.run([sys.executable, "-c", RUN, "here"], cwd=tmp_path, check=True)
    emulated = ["qemu-x86_64", "-cpu", "Haswell", sys.executable, "-c", RUN, "there"]
    done = subprocess.run(emulated, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]
    made = {n: [np.load(tmp_path / f"{n}.{where}.npy") for where in ("here", "there")] for n in ("safe", "unsafe")}
    apart = {n: float(np.abs(here - there).max()) for n, (here, there) in made.items()}
    if not any("vnni" in i for i in _native.available()):
        pytest.skip("this CPU has no VNNI either: nothing to compare with")
    largest = float(np.abs(made["safe"][0]).max())
    assert apart["safe"] <= 1e-6 * largest and apart["unsafe"] > 1e-3 * largest, (apart, largest)


def put_back(model: ir.Model) -> None:
    """Every positive weight of the second layer becomes 127."""
    node = [n for n in model.graph if n.op_type == "Gemm"][1]
    weight = node.inputs[1].producer()
    codes = const(weight.inputs[0])
    weight.replace_input_with(0, add_constant(model.graph, "put_back", np.where(codes > 0, 127, codes).astype(np.int8)))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 40), st.sampled_from([0.01, 1.0, 5.0]))
def test_no_pair_can_saturate_whatever_the_weights(seed, rows, width, spread):
    """Every input code there is, against float64; and a row that was within the bound keeps its codes."""
    rng, fmt = np.random.default_rng(seed), INTEGERS["int8"]
    weight = (rng.normal(0, 1, (rows, width)) * np.exp(rng.normal(0, spread, (rows, width)))).astype(np.float32)
    scale = rtn.channel_scale(weight, fmt)
    before = rtn.solve(weight, scale, fmt)
    codes, scale = pairs.within(before, scale, weight, lambda w, s: rtn.solve(w, s, fmt))
    w = codes.astype(np.int64)
    sums = [255 * (np.maximum(s * w[:, 1:], 0) + np.maximum(s * w[:, :-1], 0)) for s in (1, -1)]
    assert max([int(s.max(initial=0)) for s in sums] + [255 * int(np.abs(w).max()) if width == 1 else 0]) <= 32767
    kept = pairs.largest(before) <= pairs.MOST
    assert np.array_equal(codes[kept], before[kept])
    assert (np.abs(weight - codes * scale[:, None]) <= 0.51 * scale[:, None] + 1e-30).all()


def test_quantize_by_a_runtimes_rules_is_measured_in_it(tmp_path):
    out = tmp_path / "policy.onnx"
    command = [*FEWBIT, "quantize", str(ROOT / "demo" / "halfcheetah.zip"), "-o", str(out), "--env", "HalfCheetah-v5"]
    done = subprocess.run(
        [*command, "--method", "rtn", "--episodes", "2", "--target", "onnxruntime"], capture_output=True, text=True
    )
    assert done.returncode == 0 and "in onnxruntime" in " ".join(done.stdout.split()), done.stderr + done.stdout
    record = metadata.read(read(out))
    assert record["evidence"]["latency_executor"] == "onnxruntime" and record["recipe"]["target"] == "onnxruntime"
    wrong = subprocess.run([*command, "--target", "tflite"], capture_output=True, text=True)
    assert wrong.returncode == 2 and "--target tflite is not supported; choose one of any, onnxruntime" in wrong.stderr
    assert Path(out).exists()
