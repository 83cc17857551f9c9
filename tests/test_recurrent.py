"""Recurrent policies whole: captured as they act, quantized, and the same bits by every executor, episode after episode."""

import executors
import gymnasium as gym
import numpy as np
import pytest
import small_envs
import torch
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

import fewbit
from fewbit import sources
from fewbit.engine.load import load

TINY = dict(lstm_hidden_size=16, net_arch=[16])


def acts_as_predict(source, model, draw, normalise=lambda o: o, tolerance=1e-5, steps=24):
    """Over steps of three episodes at once, which all start anew in the middle."""
    policy, state = load(source.model, "onnxruntime"), None
    for k in range(steps):
        start = k in (0, steps // 2)
        if start:
            policy.reset()
        raw = draw(3)
        want, state = model.predict(normalise(raw), state, np.full(3, start), deterministic=True)
        got = policy(raw)
        assert got.shape == want.shape and np.abs(got.astype(np.float64) - want).max() <= tolerance, k


def normal(width):
    rng = np.random.default_rng(0)
    return lambda n: rng.normal(0, 1, (n, width)).astype(np.float32)


@pytest.fixture(scope="module")
def balancer():
    """RecurrentPPO that balances a pole whose velocities it must remember; about 15 seconds."""
    torch.set_num_threads(1)
    env = make_vec_env("small_envs:Blind-v0", 16, seed=0)
    settings = dict(n_steps=64, batch_size=512, n_epochs=8, learning_rate=3e-3, gamma=0.98, gae_lambda=0.9)
    return RecurrentPPO("MlpLstmPolicy", env, seed=0, device="cpu", policy_kwargs=TINY, **settings).learn(20_000)


def test_a_trained_policy_quantized_in_its_environment(balancer, tmp_path, record_property):
    source = sources.load(balancer)
    assert source.contract["recurrent_state"] == ["h", "c"] and [s["output"] for s in source.state] == ["h_next", "c_next"]
    acts_as_predict(source, balancer, normal(2))
    balancer.save(tmp_path / "balancer.zip")
    artifact = fewbit.quantize(tmp_path / "balancer.zip", env="small_envs:Blind-v0", scheme=fewbit.Scheme(), episodes=20)
    evidence = artifact.record["evidence"]
    measured = f"float {evidence['return_float']['mean']:.0f}, quantized {evidence['return_quantized']['mean']:.0f}"
    record_property("measured", f"RecurrentPPO, CartPole without velocities: {measured} (of 200), kept {evidence['kept']:.3f}")
    assert evidence["return_float"]["mean"] > 100 and evidence["kept"] > 0.9 and evidence["exact"]
    rng = np.random.default_rng(1)
    seen = np.cumsum(rng.normal(0, 0.02, (4, 60, 2)), 1).astype(np.float32)
    actions = executors.agree(artifact.model, seen, tmp_path)
    assert 0.05 < actions.mean() < 0.95


@pytest.mark.parametrize(
    "more",
    [dict(n_lstm_layers=2), dict(shared_lstm=True, enable_critic_lstm=False), dict(enable_critic_lstm=False),
     dict(lstm_kwargs=dict(bias=False)), dict(use_sde=True), dict(share_features_extractor=False)],
    ids=lambda more: "-".join(more),
)  # fmt: skip
def test_its_forms(more, tmp_path):
    """Live and from a zip, float as predict acts, quantized the same bits by all."""
    kwargs = {k: v for k, v in more.items() if k != "use_sde"}
    model = RecurrentPPO(
        "MlpLstmPolicy", "Pendulum-v1", seed=0, device="cpu", use_sde="use_sde" in more, policy_kwargs=TINY | kwargs
    )
    model.save(tmp_path / "policy.zip")
    for source in (model, tmp_path / "policy.zip"):
        acts_as_predict(sources.load(source), model, normal(3))
    seen = np.random.default_rng(1).normal(0, 1, (3, 40, 3)).astype(np.float32)
    artifact = fewbit.quantize(model, observations=seen, scheme=fewbit.Scheme(method="smooth+gptq"))
    assert np.ptp(executors.agree(artifact.model, seen, tmp_path)) > 0


def test_a_normaliser_before_the_memory(tmp_path):
    env = VecNormalize(DummyVecEnv([lambda: gym.make("Pendulum-v1")]), clip_obs=2.0)
    model = RecurrentPPO("MlpLstmPolicy", env, seed=0, device="cpu", n_steps=128, policy_kwargs=TINY).learn(128)
    env.training = False
    draw = normal(3)
    acts_as_predict(sources.load(model), model, lambda n: 3 * draw(n), env.normalize_obs)


def test_pixels_before_the_memory(tmp_path):
    env = DummyVecEnv([lambda: small_envs.Catch(36, 1)])
    kwargs = TINY | dict(features_extractor_kwargs=dict(features_dim=32))
    model = RecurrentPPO("CnnLstmPolicy", env, seed=0, device="cpu", n_steps=8, policy_kwargs=kwargs)
    rng = np.random.default_rng(0)
    seen = rng.integers(0, 256, (3, 30, 1, 36, 36)).astype(np.uint8)
    acts_as_predict(sources.load(model), model, lambda n: seen[:n, 0], steps=6)
    artifact = fewbit.quantize(model, observations=seen, scheme=fewbit.Scheme(method="rtn"))
    executors.agree(artifact.model, seen, tmp_path)


class Buffered(torch.nn.Module):
    """What it remembers lies in buffers of its own, as in controllers that come as TorchScript."""

    def __init__(self, kind: str, layers: int):
        super().__init__()
        self.memory, self.head = getattr(torch.nn, kind)(5, 6, layers), torch.nn.Linear(6, 2)
        self.register_buffer("hidden_state", torch.zeros(layers, 1, 6))
        self.register_buffer("cell_state", torch.zeros(layers, 1, 6))


class BufferedLSTM(Buffered):
    def forward(self, x):
        y, (h, c) = self.memory(x.unsqueeze(0), (self.hidden_state, self.cell_state))
        self.hidden_state[:] = h
        self.cell_state[:] = c
        return self.head(y.squeeze(0))


class BufferedGRU(Buffered):
    def forward(self, x):
        y, h = self.memory(x.unsqueeze(0), self.hidden_state)
        self.hidden_state[:] = h
        return self.head(y.squeeze(0))


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_torchscript_that_remembers_in_buffers(kind, layers, tmp_path):
    torch.manual_seed(0)
    module = (BufferedLSTM if kind == "LSTM" else BufferedGRU)(kind, layers).eval()
    torch.jit.script(module).save(tmp_path / "policy.pt")
    policy = load(sources.load(tmp_path / "policy.pt", trust_torchscript=True).model, "onnxruntime")
    assert len(policy.states) == layers * (2 if kind == "LSTM" else 1)
    seen = np.random.default_rng(0).normal(size=(3, 30, 5)).astype(np.float32)
    with torch.no_grad():
        for k in range(30):
            assert np.abs(policy(seen[0, k]) - module(torch.tensor(seen[:1, k])).numpy()).max() < 1e-5, k
    scheme = fewbit.Scheme(method="rtn")
    artifact = fewbit.quantize(tmp_path / "policy.pt", observations=seen, scheme=scheme, trust_torchscript=True)
    executors.agree(artifact.model, seen, tmp_path)


def test_what_mixes_up_time_is_refused():
    for word in ("bidirectional", "batch_first"):
        model = RecurrentPPO("MlpLstmPolicy", "Pendulum-v1", device="cpu", policy_kwargs=TINY)
        setattr(model.policy.lstm_actor, word, True)
        with pytest.raises(fewbit.FewbitError, match=word):
            sources.load(model)
