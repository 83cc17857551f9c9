"""Live Stable-Baselines3 objects of the algorithms that the zoo lacks: the captured graph acts as their own predict."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from sb3_contrib import TQC, CrossQ, MaskablePPO
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from fewbit import sources
from fewbit.engine.load import load


def acts_as_predict(model, seen, raw=None, tolerance=1e-5):
    """seen: what predict is given; raw: what the graph is given, where a normaliser stands between them."""
    want, _ = model.predict(seen, deterministic=True)
    got = load(sources.load(model).model, "onnxruntime")(seen if raw is None else raw)
    assert got.shape == want.shape
    assert np.abs(got.astype(np.float64) - want).max() <= tolerance


@pytest.mark.parametrize("algorithm", [PPO, A2C, SAC, TD3, DDPG, TQC, CrossQ])
def test_continuous(algorithm):
    kwargs = dict(policy_kwargs=dict(net_arch=[40, 24], activation_fn=torch.nn.ELU)) if algorithm is not CrossQ else {}
    model = algorithm("MlpPolicy", "Pendulum-v1", seed=0, **kwargs)
    acts_as_predict(model, np.random.default_rng(0).normal(size=(500, 3)).astype(np.float32))


@pytest.mark.parametrize("algorithm", [PPO, A2C, DQN])
def test_discrete(algorithm):
    model = algorithm("MlpPolicy", "CartPole-v1", seed=0)
    acts_as_predict(model, np.random.default_rng(0).normal(size=(500, 4)).astype(np.float32))


def test_maskable():
    class Masked(gym.Wrapper):
        def action_masks(self):
            return np.ones(2, bool)

    model = MaskablePPO("MlpPolicy", DummyVecEnv([lambda: Masked(gym.make("CartPole-v1"))]), seed=0)
    acts_as_predict(model, np.random.default_rng(0).normal(size=(500, 4)).astype(np.float32))


def test_normaliser_of_a_live_model():
    env = VecNormalize(DummyVecEnv([lambda: gym.make("Pendulum-v1")]), clip_obs=2.0)
    model = PPO("MlpPolicy", env, seed=0, n_steps=256).learn(512)
    env.training = False
    raw = np.random.default_rng(0).normal(size=(500, 3)).astype(np.float32) * 3
    acts_as_predict(model, env.normalize_obs(raw), raw)


class Parts(gym.Env):
    observation_space = gym.spaces.Dict(
        {"joint": gym.spaces.Box(-9, 9, (3,)), "camera": gym.spaces.Box(0, 255, (1, 36, 36), np.uint8)}
    )
    action_space = gym.spaces.Box(-2, 3, (2,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, False, bool(self.np_random.random() < 0.1), {}


def test_dictionary_with_a_camera_of_which_one_part_is_normalised():
    env = VecNormalize(DummyVecEnv([Parts]), norm_obs_keys=["joint"])
    model = PPO("MultiInputPolicy", env, seed=0, n_steps=64).learn(64)
    env.training = False
    draws = [Parts.observation_space.sample() for _ in range(50)]
    raw = {k: np.stack([d[k] for d in draws]) for k in draws[0]}
    acts_as_predict(model, env.normalize_obs(raw), raw)


class Square(gym.Env):
    """Actions of two dimensions."""

    observation_space = gym.spaces.Box(-9, 9, (3,))
    action_space = gym.spaces.Box(np.array([[-1, -2], [-3, -4]], np.float32), np.array([[0.1, 0.2], [0.3, 0.4]], np.float32))


@pytest.mark.parametrize("algorithm", [PPO, SAC, TD3])
def test_actions_of_two_dimensions(algorithm):
    model = algorithm("MlpPolicy", Square(), seed=0)
    acts_as_predict(model, np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32))
