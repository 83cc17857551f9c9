"""Dynamic quantization against torch's own and against ONNX Runtime running the same file."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from float_graphs import model, node, run, w
from onnx.reference import ReferenceEvaluator

import fewbit
from fewbit import sources
from fewbit.engine.load import load
from fewbit.graph import dynamic


class Sequence(torch.nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.inner = kind(5, 24, batch_first=True)
        self.head = torch.nn.Linear(24, 3)

    def forward(self, x):
        return self.head(torch.relu(self.inner(x)[0][:, -1]))


def dense():
    return torch.nn.Sequential(
        torch.nn.Linear(5, 64), torch.nn.ReLU(), torch.nn.Linear(64, 64), torch.nn.Tanh(), torch.nn.Linear(64, 3)
    )


@pytest.mark.parametrize("name", ["dense", "LSTM", "GRU"])
def test_error_is_torchs_and_the_reference_is_onnx_runtimes(name):
    torch.manual_seed(0)
    net = dense() if name == "dense" else Sequence(getattr(torch.nn, name))
    shape = (5,) if name == "dense" else (9, 5)
    x = np.random.default_rng(0).normal(size=(64, *shape)).astype(np.float32)
    exact = net(torch.tensor(x)).detach().numpy()
    model = dynamic.write(sources.load(net, observation_shape=shape).model)
    ours = load(model, "reference")(x)
    np.testing.assert_allclose(load(model, "onnxruntime")(x), ours, atol=0.02 * np.abs(exact).max())  # a flipped code grows
    quantized = getattr(torch.ao.quantization, "quantize_dynamic", None)
    if quantized is None:
        pytest.skip("this torch no longer has quantize_dynamic")
    theirs = quantized(net, {torch.nn.Linear, torch.nn.LSTM, torch.nn.GRU}, torch.qint8)(torch.tensor(x)).detach().numpy()

    def error(y):
        return np.sqrt(((y - exact) ** 2).mean() / (exact**2).mean())

    print(f"{name}: error of torch {error(theirs):.3%}, ours {error(ours):.3%}")
    assert 0 < error(ours) < 1.2 * error(theirs) and error(ours) < 0.03


def test_single_layer_is_onnx_runtimes_bit_for_bit():
    net = torch.nn.Sequential(torch.nn.Linear(7, 5))
    x = np.random.default_rng(0).normal(size=(50, 7)).astype(np.float32)
    model = dynamic.write(sources.load(net).model)
    from fewbit.graph.calibrate import session

    theirs = session(ir.to_proto(model), optimise=False).run(None, {"observation": x})[0]
    assert np.abs(theirs - load(model, "reference")(x)).max() <= 1e-6


def test_a_policy_goes_the_same_way_from_the_command(tmp_path):
    from conftest import ROOT

    artifact = fewbit.quantize(
        ROOT / "demo" / "halfcheetah.zip", env="HalfCheetah-v5", scheme=fewbit.Scheme(method="dynamic"), episodes=2
    )
    artifact.save(tmp_path / "d.onnx")
    record = artifact.record
    assert record["recipe"]["method"] == "dynamic" and not record["evidence"]["exact"]
    assert record["evidence"]["size_bytes"] < 90_000


def test_refused_by_name():
    net = Sequence(lambda *a, **k: torch.nn.LSTM(*a, bidirectional=True, **k))
    net.head = torch.nn.Linear(48, 3)
    with pytest.raises(fewbit.FewbitError, match="direction bidirectional"):
        dynamic.write(sources.load(net, observation_shape=(9, 5)).model)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_names_of_the_file_are_kept_and_a_bias_may_be_left_out(kind):
    """States are named as a step's inner values are called; there is no bias, and names begin as those to be made do."""
    size, gates = 6, 4 if kind == "LSTM" else 3
    held = {"w": w(1, gates * size, 4) / 2, "r": w(1, gates * size, size) / 2, "zero": np.zeros((1, 5, size), np.float32)}
    states = ["h", "c"][: 2 if kind == "LSTM" else 1]
    nodes = [node("Identity", ["zero"], [s], name=f"step.{s}") for s in states]
    more = {"linear_before_reset": 1} if kind == "GRU" else {}
    nodes.append(node(kind, ["x", "w", "r", "", "", *states], ["y", "h_next"], name="step", hidden_size=size, **more))
    given = model(nodes, held, (3, 5, 4), ["y", "h_next"])
    made = ir.to_proto(dynamic.write(ir.from_proto(given)))
    onnx.checker.check_model(made, full_check=True)
    x = np.random.default_rng(1).normal(size=(3, 5, 4)).astype(np.float32)
    for want, got in zip(run(given, x), ReferenceEvaluator(made).run(None, {"x": x}), strict=True):
        assert np.abs(want - got).max() < 0.05
