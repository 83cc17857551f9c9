"""A policy that sees pixels: Stable-Baselines3's NatureCNN on four frames, pixels as codes, the same bits by every executor."""

import gymnasium as gym
import numpy as np
import onnx_ir as ir
import pytest
import small_envs
import torch
from c_policy import CPolicy
from executors import agree
from stable_baselines3 import DQN, PPO

import fewbit
from fewbit import sources, targets
from fewbit.engine.load import load
from fewbit.engine.lower import lower
from fewbit.graph.strip import strip
from fewbit.targets import tensorrt

SMALL = dict(features_extractor_kwargs=dict(features_dim=64))


def demonstrations(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Screens and what one does who sees where the square will land; now and then a random step is taken instead."""
    env, rng, screens, actions = small_envs.Catch(), np.random.default_rng(0), [], []
    for seed in range(count):
        screen, done = env.reset(seed=seed)[0], False
        while not done:
            screens.append(screen)
            actions.append(int(np.sign(env.column - env.paddle)) + 1)
            screen, _, done, _, _ = env.step(actions[-1] if rng.random() < 0.7 else int(rng.integers(3)))
    return np.stack(screens), np.array(actions)


@pytest.fixture(scope="module")
def catcher():
    """PPO's CnnPolicy, trained by imitation (PPO itself would take minutes here); about 15 seconds."""
    torch.set_num_threads(1)
    model = PPO("CnnPolicy", small_envs.Catch(), n_steps=64, seed=0, device="cpu", policy_kwargs=SMALL)
    screens, actions = (torch.tensor(a) for a in demonstrations(120))
    optimizer, order = torch.optim.Adam(model.policy.parameters(), 1e-3), np.random.default_rng(0)
    for _ in range(6):
        for batch in np.array_split(order.permutation(len(screens)), len(screens) // 64):
            logits = model.policy.get_distribution(screens[batch]).distribution.logits
            loss = torch.nn.functional.cross_entropy(logits, actions[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


@pytest.fixture(scope="module")
def artifact(catcher):
    return fewbit.quantize(catcher, env="small_envs:Catch-v0", episodes=20, scheme=fewbit.Scheme(method="gptq"))


def test_pixels_are_codes(artifact):
    """Nothing is cast or rounded before the first layer: the image is read at 1/255."""
    (image,) = artifact.model.graph.inputs
    ((reader, _),) = image.uses()
    assert image.dtype == ir.DataType.UINT8 and reader.op_type == "DequantizeLinear"
    scale, zero = (i.const_value.numpy() for i in reader.inputs[1:])
    assert scale == np.float32(1 / 255) and zero == 0
    ops = [n.op_type for n in artifact.model.graph]
    assert ops.count("Conv") == 3 and ops.count("Gemm") == 2 and not {"Cast", "Div"} & set(ops)
    weights = [n for n in artifact.model.graph if n.name.endswith("weight_dequantize")]
    assert len(weights) == 5 and all(n.inputs[0].dtype == ir.DataType.INT8 for n in weights)


def test_it_still_catches(artifact, record_property):
    evidence = artifact.record["evidence"]
    caught = f"float {evidence['return_float']['mean']:.2f}, quantized {evidence['return_quantized']['mean']:.2f}"
    record_property("measured", f"NatureCNN, catch: {caught}, same action {evidence['action_agreement']:.2%}")
    assert evidence["return_float"]["mean"] > 0.9 and evidence["kept"] > 0.9 and evidence["exact"]
    assert evidence["size_bytes"] < evidence["size_float_bytes"] / 3


def test_the_same_bits(artifact, tmp_path, record_property):
    """200 observations of play, 40 of noise with the extreme pixels; C in little more memory than the two largest images."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 4, 84, 84)).astype(np.uint8)
    noise[:2] = [[[[0]]], [[[255]]]]
    seen = np.concatenate([demonstrations(20)[0][:200], noise])
    agree(artifact.model, seen[:, None], tmp_path, episodes=1)
    sizes = CPolicy(lower(artifact.model), tmp_path).sizes
    record_property("measured", f"NatureCNN in C: {sizes['ram_bytes']:,} bytes of RAM, {sizes['flash_bytes']:,} of constants")
    assert sizes["ram_bytes"] < 1.1 * (32 * 20 * 20 + 64 * 9 * 9) and sizes["macs"] > 7_000_000
    stored = sum(n.inputs[0].const_value.size for n in artifact.model.graph if n.name.endswith("weight_dequantize"))
    assert sizes["flash_bytes"] < 1.05 * stored
    floats = load(strip(artifact.model), "onnxruntime")
    assert (floats(seen[:200]) == load(artifact.model)(seen[:200])).mean() > 0.95


def test_channels_last(catcher, artifact, tmp_path):
    """An environment whose images have their channels last, which Stable-Baselines3 turns before the policy sees them."""
    model = DQN("CnnPolicy", small_envs.Catch(last=True), seed=0, device="cpu", buffer_size=100, policy_kwargs=SMALL)
    source = sources.load(model)
    assert source.contract["observation"] == {"observation": [4, 84, 84]}
    env = gym.make("small_envs:CatchLast-v0")
    screens = np.stack([env.reset(seed=k)[0] for k in range(20)])
    want = model.predict(screens, deterministic=True)[0]
    assert np.array_equal(load(source.model, "onnxruntime")(np.moveaxis(screens, -1, 1)), want)
    artifact.save(tmp_path / "catcher.onnx")
    record = fewbit.evaluate(tmp_path / "catcher.onnx", "small_envs:CatchLast-v0", episodes=20)
    assert record["return_quantized"]["mean"] == artifact.record["evidence"]["return_quantized"]["mean"]


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_other_runtimes_give_the_references_actions(catcher, target, record_property):
    """ONNX Runtime takes every layer as integers, the first too: pixels are 8-bit codes. OpenVINO's choice depends on the CPU."""
    if target == "openvino":
        pytest.importorskip("openvino")
    screens = demonstrations(10)[0]
    made = fewbit.quantize(catcher, observations=screens, scheme=fewbit.Scheme(method="rtn", target=target))
    runtime = targets.runtime(target)
    kinds = {kind for _, kind in runtime.layers(made.model)}
    record_property("measured", f"{target} runs the image policy's layers as {', '.join(sorted(kinds))}")
    assert len(made.record["pairs"]) == 5 and (target == "openvino" or kinds == {"QLinearConv", "QGemm"})
    assert (runtime.load(made.model)(screens) == load(made.model, "reference")(screens)).mean() > 0.98


def test_tensorrt_reads_pixels_as_floats(artifact, tmp_path):
    screens = demonstrations(3)[0]
    made = tensorrt.rewrite(artifact.model)
    assert (load(made, "onnxruntime")(screens) == load(artifact.model, "reference")(screens)).mean() > 0.98
    pytest.importorskip("tensorrt_rtx_bindings")
    artifact.save(tmp_path / "catch.onnx")
    layers = targets.export(tmp_path / "catch.onnx", "tensorrt-rtx", tmp_path / "catch.engine")["layers"]
    assert list(layers.values()) == ["float32"] + ["int8"] * 4
