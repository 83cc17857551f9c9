"""Column scaling leaves the float network's outputs as they were, on real policies and made-up ones."""

import numpy as np
import pytest
from conftest import ZOO

from fewbit import sources
from fewbit.engine.load import load
from fewbit.graph import calibrate, equalize, half, qdq

POLICIES = [
    "sac/HalfCheetah-v3/HalfCheetah-v3.zip",
    "trpo/Hopper-v3/Hopper-v3.zip",
    "ppo/LunarLander-v2/LunarLander-v2.zip",
    "dqn/LunarLander-v2/LunarLander-v2.zip",
    "a2c/Humanoid-v3/Humanoid-v3.zip",
    "qrdqn/CartPole-v1/CartPole-v1.zip",
    "ars/HalfCheetah-v3/HalfCheetah-v3.zip",
]


def prepared(path):
    source = sources.load(path)
    shapes = load(source.model, "onnxruntime").inputs
    feeds = {k: np.random.default_rng(0).normal(0, 3, (500, *s)).astype(np.float32) for k, s in shapes.items()}
    return source.model, feeds


@pytest.mark.parametrize("rule", ["smooth", "awq", "cross_layer"])
@pytest.mark.parametrize("policy", POLICIES)
def test_outputs_stay_bit_for_bit(policy, rule, zoo):
    model, feeds = prepared(ZOO / policy)
    want = load(model, "onnxruntime")(feeds)
    scaled = model.clone()
    moved = equalize.equalize(scaled, calibrate.observe(scaled, feeds, *qdq.tensors(scaled))[1], rule, "int8")
    got = load(scaled, "onnxruntime")(feeds)
    assert np.abs(got.astype(float) - want).max() <= 1e-5
    assert load(model, "onnxruntime")(feeds).tobytes() == want.tobytes()  # the original is as it was
    assert moved or rule == "cross_layer"


def test_go1s_silu_scales_its_entry_only(robots):
    model, feeds = prepared(robots / "go1/policy.onnx")
    want = load(model, "onnxruntime")(feeds)
    moved = equalize.equalize(model, calibrate.observe(model, feeds, *qdq.tensors(model))[1], "smooth", "int8")
    assert len(moved) == 1 and np.abs(load(model, "onnxruntime")(feeds) - want).max() <= 1e-5


def test_two_heads_that_share_a_layer_share_its_scale():
    import torch

    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.a, self.b = torch.nn.Linear(6, 20), torch.nn.Linear(20, 3), torch.nn.Linear(20, 3)

        def forward(self, x):
            h = torch.relu(self.body(x))
            return torch.tanh(self.a(h)) * self.b(h)

    torch.manual_seed(0)
    model = sources.load(Two()).model
    feeds = {"observation": np.random.default_rng(0).normal(size=(300, 6)).astype(np.float32)}
    want = load(model, "onnxruntime")(feeds)
    moved = equalize.equalize(model, calibrate.observe(model, feeds, *qdq.tensors(model))[1], "smooth", "int8")
    assert len(moved) == 3 and np.abs(load(model, "onnxruntime")(feeds) - want).max() <= 1e-5


@pytest.mark.parametrize("name, most", [("float16", 2e-3), ("bfloat16", 2e-2)])
def test_half_precision_weights(name, most, zoo):
    model, feeds = prepared(ZOO / POLICIES[0])
    want, full = load(model, "onnxruntime")(feeds), sum(v.const_value.nbytes for v in model.graph.initializers.values())
    narrow = half.write(model, name)
    for executor in ("reference", "onnxruntime"):
        assert 0 < np.sqrt(((load(narrow, executor)(feeds) - want) ** 2).mean()) < most
    assert sum(v.const_value.nbytes for v in narrow.graph.initializers.values()) < 0.52 * full
