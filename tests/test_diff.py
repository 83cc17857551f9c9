"""diff names the layer that was broken by hand, and its SQNR is ONNX Runtime's."""

import json
import subprocess
import sys

import numpy as np
import onnx_ir as ir
import pytest

import fewbit
from fewbit import pipeline, sources
from fewbit.diff import diff
from fewbit.graph import calibrate
from fewbit.graph.quantize import quantize
from fewbit.numerics import metrics
from fewbit.observations import calibration


def pair(path, scheme):
    source = sources.load(path)
    feeds = calibration(source, "HalfCheetah-v5", None, None, 3)
    feeds = {k: v[:1000] for k, v in feeds.items()}
    model, moved = quantize(source.model, feeds, scheme)
    artifact = pipeline.Artifact(model, {"equalized": moved})
    artifact.to_bytes()
    return source.model, artifact, feeds


@pytest.mark.parametrize("method", ["rtn", "smooth+gptq"])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_layer_whose_scale_was_corrupted_comes_first(zoo, layer, method):
    original, artifact, feeds = pair(zoo / "sac/HalfCheetah-v3/HalfCheetah-v3.zip", fewbit.Scheme(method=method))
    sound = diff(original, artifact.model, feeds)
    assert min(r.sqnr_local for r in sound) > (10 if method == "rtn" else 25)
    gemm = [n for n in artifact.model.graph if n.op_type == "Gemm"][layer]
    scale = gemm.inputs[1].producer().inputs[1]
    for value in (scale, gemm.inputs[2].producer().inputs[1]):
        value.const_value = ir.tensor(value.const_value.numpy() * np.float32(3), name=value.name)
    broken = diff(original, artifact.model, feeds)
    assert broken[0].tensor == gemm.outputs[0].name and broken[0].sqnr_local < 5


def test_sqnr_is_onnx_runtimes_qdq_loss_debug(zoo):
    from onnxruntime.quantization.qdq_loss_debug import compute_signal_to_quantization_noice_ratio

    original, artifact, feeds = pair(zoo / "sac/HalfCheetah-v3/HalfCheetah-v3.zip", fewbit.Scheme(method="rtn"))
    rows = {r.tensor: r for r in diff(original, artifact.model, feeds) if r.format == "uint8"}
    assert len(rows) == 2
    names = list(rows)
    floats = calibrate.session(calibrate.with_outputs(original, names)).run(names, feeds)
    quantized = [f"{n}.dequantized" for n in names]
    theirs = calibrate.session(calibrate.with_outputs(artifact.model, quantized), optimise=False).run(quantized, feeds)
    for name, f, q in zip(names, floats, theirs, strict=True):
        want = compute_signal_to_quantization_noice_ratio(np.maximum(f, 0), q)
        assert metrics.sqnr_db(np.maximum(f, 0), q) == pytest.approx(want, abs=1e-3)
        assert rows[name].sqnr_accumulated == pytest.approx(want, abs=0.05)  # a code apart in 0.01% of them


def test_the_command_and_what_it_refuses(tmp_path, zoo):
    path = zoo / "sac/HalfCheetah-v3/HalfCheetah-v3.zip"
    x = np.random.default_rng(0).normal(size=(100, 17)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    fewbit.quantize(path, observations=x).save(tmp_path / "a.onnx")
    fewbit.quantize(zoo / "dqn/CartPole-v1/CartPole-v1.zip", observations=x[:, :4]).save(tmp_path / "other.onnx")

    def run(*arguments):
        code = "from fewbit.cli.main import main; main()"
        return subprocess.run([sys.executable, "-c", code, "diff", *map(str, arguments)], capture_output=True, text=True)

    good = run(path, tmp_path / "a.onnx", "--observations", tmp_path / "x.npy", "--json")
    tensors = json.loads(good.stdout)["tensors"]
    assert len(tensors) == 6 and tensors[0]["sqnr_local"] <= tensors[-1]["sqnr_local"]
    for artifact, data in (("missing.onnx", "x.npy"), ("a.onnx", "missing.npy"), ("other.onnx", "x.npy")):
        bad = run(path, tmp_path / artifact, "--observations", tmp_path / data)
        assert bad.returncode == 2 and len(bad.stderr.strip().splitlines()) == 1, bad.stderr


def test_codes_that_were_only_put_together_are_read_as_codes(robots):
    """A Concat's codes have the scale of what reads them: its error is rounding, not the codes themselves."""
    source = sources.load(robots / "g1" / "motion.pt", trust_torchscript=True)
    states = np.random.default_rng(0).normal(0, 0.5, (4, 24, 47)).astype(np.float32)
    feeds = calibration(source, None, states, None, 0)
    model, moved = quantize(source.model, feeds, fewbit.Scheme(method="rtn"))
    artifact = pipeline.Artifact(model, {"equalized": moved, "state": list(source.state)})
    artifact.to_bytes()
    rows = {r.tensor: r for r in diff(source.model, artifact.model, feeds)}
    assert rows["cat"].format == "int16" and min(rows["cat"].sqnr_local, rows["cat"].sqnr_accumulated) > 40
