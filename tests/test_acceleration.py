"""Stable-Baselines3 that collects with the engine: buffers hold what its own loop would put there, of the quantized policy."""

from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.wrappers import TimeLimit
from sb3_contrib import TQC
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

import fewbit
from fewbit.engine import reference
from fewbit.errors import FewbitError
from fewbit.rl.acceleration import _ACTING, SEEN

SMALL = {"net_arch": [24, 16]}
STILL = {"learning_rate": 0.0}


def pendulum(limit=50):
    return TimeLimit(gym.make("Pendulum-v1").unwrapped, limit)


def make(algorithm, env="Pendulum-v1", **more):
    off = {"learning_starts": 300, "batch_size": 32, "buffer_size": 3000} if algorithm in (SAC, TD3, DQN) else {"n_steps": 128}
    off |= {"train_freq": 50} if algorithm in (SAC, TD3, DQN) else {}
    env = DummyVecEnv([env] * 2) if callable(env) else env
    return fewbit.rl.accelerate(algorithm("MlpPolicy", env, seed=0, policy_kwargs=dict(SMALL), **off | more))


class Watch(BaseCallback):
    """What callbacks are called with."""

    def __init__(self, stop=10**9):
        super().__init__()
        self.stop, self.starts, self.ends, self.rows = stop, 0, 0, []
        self.buffer = None  # as it is before it is trained on, which reorders it

    def _on_rollout_start(self):
        self.starts += 1

    def _on_rollout_end(self):
        self.ends += 1
        self.buffer = {k: v.copy() for k, v in vars(self.model.rollout_buffer).items() if isinstance(v, np.ndarray)}

    def _on_step(self):
        names = ("rewards", "dones", "clipped_actions")
        self.rows.append({k: np.array(self.locals[k]) for k in names} | {"infos": self.locals["infos"]})
        return len(self.rows) < self.stop


@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_the_rollout_buffer_holds_what_its_own_loop_would_have_put_there(algorithm):
    model, watch = make(algorithm, pendulum, **STILL), Watch()
    model.learn(512 * 2, callback=watch)
    assert _ACTING[model].requantized and watch.starts == watch.ends == 4 and len(watch.rows) == 512
    assert model.num_timesteps == 1024 and model.rollout_buffer.full
    buffer, rows = SimpleNamespace(**watch.buffer), watch.rows[-128:]
    observations = buffer.observations.reshape(-1, 3)
    with torch.no_grad():
        given = torch.tensor(observations)
        values = model.policy.predict_values(given).numpy().reshape(128, 2)
        mean = model.policy.get_distribution(given).distribution.mean.numpy().reshape(128, 2, 1)
    np.testing.assert_allclose(buffer.values, values, atol=1e-5)
    wanted, cut = np.stack([r["rewards"] for r in rows]), 0
    for t, row in enumerate(rows):
        for k in np.flatnonzero(row["dones"]):
            assert row["infos"][k]["TimeLimit.truncated"]
            end = torch.tensor(row["infos"][k]["terminal_observation"])[None]
            wanted[t, k] += model.gamma * float(model.policy.predict_values(end))
            cut += 1
    assert cut >= 4
    np.testing.assert_allclose(buffer.rewards, wanted, atol=1e-4)
    np.testing.assert_array_equal(buffer.episode_starts[1:], np.stack([r["dones"] for r in rows])[:-1])
    np.testing.assert_array_equal(np.stack([r["clipped_actions"] for r in rows]), np.clip(buffer.actions, -2, 2))
    z = (buffer.actions - mean) / np.exp(model.policy.log_std.item())
    assert abs(z.mean()) < 5 / 16 and z.std() == pytest.approx(1, abs=0.2)
    last, following = 0.0, model.policy.predict_values(torch.tensor(model._last_obs)).detach().numpy()[:, 0]
    for t in reversed(range(128)):  # generalized advantage estimation
        goes_on = 1.0 - rows[t]["dones"]
        last = wanted[t] + model.gamma * goes_on * following - values[t] + model.gamma * model.gae_lambda * goes_on * last
        following = values[t]
        np.testing.assert_allclose(buffer.advantages[t], last, rtol=1e-4, atol=1e-3)


def test_old_log_probabilities_are_the_quantized_policys():
    model = make(PPO, "CartPole-v1", **STILL)
    model.learn(640)
    buffer, program = model.rollout_buffer, _ACTING[model].live.actor().program
    logits = reference.run(program, {program_input(program): buffer.observations.reshape(-1, 4)})[program.outputs[0]]
    want = torch.distributions.Categorical(logits=torch.tensor(logits)).log_prob(torch.tensor(buffer.actions.reshape(-1)))
    np.testing.assert_allclose(buffer.log_probs.reshape(-1), want.numpy(), atol=1e-5)


def program_input(program):
    return next(iter(program.inputs))


def test_a_callback_may_stop_a_rollout():
    model, watch = make(PPO, "CartPole-v1"), Watch(stop=400)
    model.learn(1000, callback=watch)
    assert len(watch.rows) == model.num_timesteps == 400


def acted(model, steps):
    """(observations, actions) that the replay buffer got from the engine."""
    model.learn(steps)
    assert _ACTING[model].requantized
    b = model.replay_buffer
    rows = slice(300, b.pos)
    return b.observations[rows, 0], b.actions[rows, 0]


def test_sac_acts_as_its_policy_does():
    observations, actions = acted(model := make(SAC, **STILL), 1300)
    with torch.no_grad():
        mean, log_std, _ = model.actor.get_action_dist_params(torch.tensor(observations))
    z = (np.arctanh(actions.clip(-0.99999, 0.99999)) - mean.numpy()) / log_std.exp().numpy()
    assert abs(z.mean()) < 0.16 and z.std() == pytest.approx(1, abs=0.12)


def test_td3_acts_as_its_policy_does():
    noise = NormalActionNoise(np.zeros(1), 0.05 * np.ones(1))
    observations, actions = acted(model := make(TD3, action_noise=noise, **STILL), 1300)
    with torch.no_grad():
        rest = actions - model.actor(torch.tensor(observations)).numpy()
    assert abs(rest.mean()) < 0.01 and rest.std() == pytest.approx(0.05, rel=0.15)


def test_dqn_acts_as_its_policy_does():
    more = {"exploration_initial_eps": 0.4, "exploration_final_eps": 0.4}
    observations, actions = acted(model := make(DQN, "CartPole-v1", **STILL, **more), 1800)
    with torch.no_grad():
        greedy = model.q_net(torch.tensor(observations)).argmax(1).numpy()
    assert (greedy == actions[:, 0]).mean() == pytest.approx(0.8, abs=0.06)


def test_gsde():
    model = make(SAC, use_sde=True, sde_sample_freq=8)
    model.learn(700)
    assert _ACTING[model].requantized and np.isfinite(model.replay_buffer.actions).all()
    model = make(A2C, use_sde=True, **STILL)
    model.learn(640)
    given, actions = (torch.tensor(v.reshape(128, -1)) for v in (model.rollout_buffer.observations, model.rollout_buffer.actions))
    with torch.no_grad():
        _, log_prob, _ = model.policy.evaluate_actions(given, actions)
    np.testing.assert_allclose(model.rollout_buffer.log_probs.reshape(-1), log_prob.numpy(), atol=0.1)


def test_weights_are_quantized_again_when_they_change_and_only_then():
    still, moving = make(SAC, **STILL), make(SAC)
    for model in (still, moving):
        model.learn(1300)
    assert _ACTING[still].requantized == 1
    assert 15 <= _ACTING[moving].requantized <= 1000 // 32 + 1
    acting = _ACTING[still]
    with torch.no_grad():
        still.actor.mu.bias.add_(0.1)
    acting.follow(1, 256)
    assert acting.requantized == 2


def test_a_normaliser_around_the_environment_stays_where_it_is():
    env = VecNormalize(DummyVecEnv([pendulum]))
    model = fewbit.rl.accelerate(PPO("MlpPolicy", env, n_steps=256, seed=0, policy_kwargs=dict(SMALL)))
    model.learn(1024)
    assert _ACTING[model].requantized and np.abs(_ACTING[model].recent()).max() <= 10


def test_the_model_stays_what_it_was(tmp_path):
    model = make(PPO, "CartPole-v1")
    assert isinstance(model, PPO) and type(model).__name__ == "PPO" and fewbit.rl.accelerate(model) is model
    model.learn(SEEN + 128, callback=EvalCallback(gym.make("CartPole-v1"), eval_freq=200, n_eval_episodes=1, verbose=0))
    model.save(tmp_path / "model.zip")
    loaded = PPO.load(tmp_path / "model.zip", env=gym.make("CartPole-v1"))
    assert type(loaded) is PPO
    observation = model.observation_space.sample()
    assert loaded.predict(observation, deterministic=True)[0] == model.predict(observation, deterministic=True)[0]
    loaded.learn(128)
    model.learn(256, reset_num_timesteps=False)


@pytest.mark.parametrize(
    "model, words",
    [
        (lambda: fewbit.rl.accelerate(TQC("MlpPolicy", "Pendulum-v1")), "TQC is not accelerated"),
        (lambda: fewbit.rl.accelerate(PPO("CnnPolicy", "small_envs:Catch-v0", n_steps=8)), "no Linear layer"),
        (lambda: fewbit.rl.accelerate(PPO("MlpPolicy", "CartPole-v1"), every=0), "at least one"),
        (lambda: fewbit.rl.accelerate(PPO("MlpPolicy", "CartPole-v1"), weights="float4"), "choose one of int8"),
        (lambda: fewbit.rl.accelerate(PPO("MlpPolicy", "FrozenLake-v1")), "Discrete are not"),
    ],
)
def test_bad_input(model, words):
    with pytest.raises(FewbitError, match=words):
        model()
