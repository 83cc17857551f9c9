"""Policies as people really keep them are read, or refused by one clear line; FEWBIT_WILD names the folder they lie in."""

import os
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from conftest import ROOT

from fewbit import sources
from fewbit.engine.load import load
from fewbit.errors import FewbitError

WILD = Path(os.environ.get("FEWBIT_WILD", ROOT.parent / "shared" / "wild"))
REFUSED = {
    "rlsar-g1-voxel/motion.onnx": "its batch of 1 is fixed in the graph",
    "rlsar-g1-charleston/dance_0605_aligned.pt": "it was traced with one observation and holds that batch",
    "booster-t1-checkpoint/model_10000.pth": "a checkpoint of weights",
    "aerial-attitude/attitude_policy.pth": "a checkpoint of weights",
}
ONNX = ["holosoma-g1-dance/fastsac_g1_29dof_dancing.onnx", "holosoma-t1-fastsac/fastsac_t1_29dof.onnx",
        "lite3-himloco/policy_6_12.onnx", "microban/policy.onnx", "playground-apollo/apollo_policy.onnx",
        "playground-go2-apg/go2_apg_policy.onnx", "unitree-lab-g1/policy.onnx",
        "unitree-mjlab-g1-velocity/policy.onnx"]  # fmt: skip
SCRIPTS = ["booster-t1-jit/T1.pt", "rlsar-a1-vq-vq_layer/vq_layer.pt", "rlsar-g1-loco29/policy_29dof.pt",
           "rlsar-go2/policy.pt", "rlsar-go2-himloco/himloco.pt", "rlsar-gr1t1/model_4000_jit.pt",
           "unitree-h1-lstm/motion.pt"]  # fmt: skip


def found(name: str) -> Path:
    if not (WILD / name).exists():
        pytest.skip(f"{WILD / name} is not there")
    return WILD / name


@pytest.mark.parametrize("name", ONNX)
def test_an_onnx_file_is_read_as_onnx_runtime_runs_it(name):
    path = found(name)
    policy = load(sources.load(path).model, "onnxruntime")
    rng, runner = np.random.default_rng(0), onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feeds = {k: rng.normal(size=(1, *s)).astype(np.float32) for k, s in policy.inputs.items()}
    want = runner.run(None, feeds)[0]
    assert np.abs(policy(feeds) - want).max() < 1e-4 * max(1.0, np.ptp(want))


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_torchscript_file_is_read(name):
    """Reading compares it with torch, step by step and row by row."""
    pytest.importorskip("torch")
    assert sources.load(found(name), trust_torchscript=True).model.graph.outputs


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_says_why_in_one_line(name):
    if not name.endswith(".onnx"):
        pytest.importorskip("torch")
    with pytest.raises(FewbitError, match=REFUSED[name]) as refused:
        sources.load(found(name), trust_torchscript=True)
    assert "\n" not in str(refused.value)
