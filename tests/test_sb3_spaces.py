"""Every kind of observation and action space that Stable-Baselines3 takes: the artifact acts as its predict does."""

import numpy as np
import pytest

pytest.importorskip("stable_baselines3")

import gymnasium as gym  # noqa: E402
from executors import act_alike  # noqa: E402
from small_envs import Plain  # noqa: E402
from stable_baselines3 import A2C, PPO  # noqa: E402

import fewbit  # noqa: E402

PLAIN = fewbit.Scheme("int16", "uint16", method="rtn")
BOX = gym.spaces.Box(-3, 3, (4,))
SMALL = {"n_steps": 8, "device": "cpu", "seed": 0}


def ppo(observes: gym.Space, acts: gym.Space, policy: str = "MlpPolicy", **more) -> PPO:
    return PPO(policy, Plain(observes, acts), batch_size=8, **SMALL, **more)


def boxes(count: int = 300) -> np.ndarray:
    return np.random.default_rng(0).uniform(-3, 3, (count, 4)).astype(np.float32)


@pytest.mark.parametrize("kind", (PPO, A2C))
def test_several_choices_at_once_are_whole_numbers_in_every_executor(kind, tmp_path):
    model = kind("MlpPolicy", Plain(BOX, gym.spaces.MultiDiscrete([3, 4])), **SMALL)
    artifact = fewbit.quantize(model, observations=boxes(), scheme=PLAIN)
    got = act_alike(artifact.model, boxes(), tmp_path)
    assert got.dtype == np.int64 and (got == model.predict(boxes(), deterministic=True)[0]).mean() > 0.99
