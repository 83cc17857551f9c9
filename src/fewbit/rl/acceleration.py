"""Stable-Baselines3 that collects with the engine: `fewbit.rl.accelerate(model)`, and everything else stays as it was.

PPO and A2C collect a whole rollout before anyone looks at a value: values are found for all of it at once. What PPO's ratio
divides by is the probability under the quantized policy, which acted (the bypass of correct.old_log_prob). SAC, TD3 and DQN keep
their own loop and are given its actions. `predict`, and so evaluation, stays float; a saved file is an ordinary one.
"""

from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from fewbit.errors import FewbitError, MissingExtra
from fewbit.graph.qdq import Scheme
from fewbit.rl.explore import Explorer, explorer
from fewbit.rl.live import Live

try:
    import torch
    from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
    from stable_baselines3.common.buffers import RolloutBuffer
    from stable_baselines3.common.utils import obs_as_tensor
except ImportError as e:
    raise MissingExtra(e.name or "stable-baselines3", "sb3") from None

SEEN = 256  # observations that the first ranges are found on; the float policy acts until then
KEPT = 2048  # recent observations that ranges are held against
LOOK = 2048  # environment steps between two looks at the ranges
BLOCK = 256  # steps of an off-policy learner for which noise is drawn at once

_ACTING: "WeakKeyDictionary[Any, Acting]" = WeakKeyDictionary()
_CLASSES: dict[type, type] = {}


def accelerate(model: Any, weights: str = "int8", every: int = 32) -> Any:
    """The same model (PPO, A2C, SAC, TD3, DQN), which acts with the engine from now on, while it learns.

    weights: int8 to int2, rounded to nearest. every: steps of an off-policy learner between two looks at whether its weights have
    changed, in which case they are quantized again; PPO and A2C are looked at before every rollout. FewbitError for what cannot
    be followed (rl/live).
    """
    cls = next((c for c in (PPO, A2C, SAC, TD3, DQN) if type(model) is c or type(model) is _CLASSES.get(c)), None)
    if cls is None:
        raise FewbitError(f"{type(model).__name__} is not accelerated; PPO, A2C, SAC, TD3 and DQN are")
    if every < 1:
        raise FewbitError(f"every {every}: at least one step lies between two looks")
    space = model.observation_space
    if type(space).__name__ != "Box":
        raise FewbitError(f"observations of {type(space).__name__} are not accelerated; those of one array (Box) are")
    if cls in (PPO, A2C) and type(model.rollout_buffer) is not RolloutBuffer:
        raise FewbitError(f"a {type(model.rollout_buffer).__name__} is not filled; Stable-Baselines3's own RolloutBuffer is")
    _ACTING[model] = Acting(model, Scheme(weights), every)
    if cls not in _CLASSES:
        how = _ON_POLICY if cls in (PPO, A2C) else _OFF_POLICY
        name = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}  # pickled as what it was
        _CLASSES[cls] = type(cls.__name__, (cls,), name | how)
    model.__class__ = _CLASSES[cls]
    return model


class Acting:
    """What acts for one model: its policy followed by a Live, and an Explorer over the engine of the moment."""

    def __init__(self, model: Any, scheme: Scheme, every: int):
        self.every, self.started = every, False
        noise = np.random.default_rng(model.seed)
        self.random, shape = noise, model.observation_space.shape
        self.live = Live(model.policy, noise.standard_normal((SEEN, *shape)).astype(np.float32), scheme, every=_sde(model))
        self.seen = np.zeros((KEPT, *shape), np.float32)  # a ring
        self.count = self.looked = self.since = self.t = 0
        self.explorer: Explorer | None = None
        self.held: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self.requantized = 0

    def see(self, observations: np.ndarray) -> None:
        """[n, ...], as the policy is given them: what ranges come from."""
        observations = observations[-KEPT:]
        first = min(len(observations), KEPT - self.count % KEPT)
        self.seen[self.count % KEPT :][:first] = observations[:first]
        self.seen[: len(observations) - first] = observations[first:]
        self.count += len(observations)

    def recent(self) -> np.ndarray:
        return self.seen[: self.count]

    def ready(self) -> bool:
        return self.count >= SEEN

    def follow(self, rows: int, steps: int) -> Explorer:
        """The Explorer with the policy's weights as they are now, for `rows` environments and blocks of `steps` steps."""
        x, look = self.explorer, self.count - self.looked >= LOOK
        if not self.started:
            self.live.calibrate(self.recent())
        elif x is not None and not look and not self._changed():
            return x
        actor = self.live.actor(self.recent() if look else None)
        if look or not self.started:
            self.looked, self.started = self.count, True
        self.held = {k: (w.copy(), b.copy()) for k, (w, b) in self.live.weights().items()}
        self.requantized += 1
        if x is None or x.rows != rows or len(x.actions) != steps:
            self.explorer = explorer(actor.exploration, actor.engine(), rows, steps, self.random, actor.dtype)
        else:
            x.follow(actor.exploration, actor.engine())
        assert self.explorer is not None
        return self.explorer

    def _changed(self) -> bool:
        now, std = self.live.weights(), self.live.exploration().std
        before = None if self.explorer is None else self.explorer.exploration.std
        same = all(np.array_equal(a, b) for k in now for a, b in zip(now[k], self.held[k], strict=True))
        return not (same and (std is None or before is None or np.array_equal(std, before)))


def _sde(model: Any) -> int:
    return max(0, model.sde_sample_freq) if getattr(model, "use_sde", False) else 0


def _plain(self: Any) -> Any:
    """What the model's class was."""
    return type(self).__base__


def _on_policy_rollouts(self: Any, env: Any, callback: Any, rollout_buffer: Any, n_rollout_steps: int) -> bool:
    acting = _ACTING.get(self)
    if acting is None:
        return _plain(self).collect_rollouts(self, env, callback, rollout_buffer, n_rollout_steps)
    if acting.ready():
        explorer = acting.follow(env.num_envs, n_rollout_steps)
        going = _collect(self, env, callback, rollout_buffer, explorer, n_rollout_steps)
    else:
        going = _plain(self).collect_rollouts(self, env, callback, rollout_buffer, n_rollout_steps)
    acting.see(rollout_buffer.observations.reshape(-1, *rollout_buffer.obs_shape))
    return going


def _collect(self: Any, env: Any, callback: Any, rollout_buffer: Any, explorer: Explorer, n_rollout_steps: int) -> bool:
    """As OnPolicyAlgorithm.collect_rollouts, with its names, because callbacks read them; `values` and `log_probs` at the end."""
    self.policy.set_training_mode(False)
    rollout_buffer.reset()
    callback.on_rollout_start()
    explorer.begin()
    ends: list[tuple[int, int, np.ndarray]] = []  # (step, environment, what a time limit cut off)
    n_steps, dones = 0, self._last_episode_starts
    while n_steps < n_rollout_steps:
        rollout_buffer.observations[n_steps] = self._last_obs
        rollout_buffer.episode_starts[n_steps] = self._last_episode_starts
        clipped_actions = explorer.act(n_steps, np.ascontiguousarray(self._last_obs)).copy()
        actions = explorer.actions[n_steps]
        new_obs, rewards, dones, infos = env.step(clipped_actions)
        self.num_timesteps += env.num_envs
        callback.update_locals(locals())
        if not callback.on_step():
            return False
        self._update_info_buffer(infos, dones)
        rollout_buffer.rewards[n_steps] = rewards
        for idx in np.flatnonzero(dones):
            if infos[idx].get("TimeLimit.truncated", False) and infos[idx].get("terminal_observation") is not None:
                ends.append((n_steps, int(idx), infos[idx]["terminal_observation"]))
        self._last_obs, self._last_episode_starts = new_obs, dones
        n_steps += 1
    log_probs = explorer.log_prob(n_steps)
    values = _values(self, rollout_buffer.observations.reshape(-1, *rollout_buffer.obs_shape))
    if ends:
        found = _values(self, np.stack([e[2] for e in ends]))
        for (step, k, _), value in zip(ends, found, strict=True):
            rollout_buffer.rewards[step, k] += self.gamma * value
    rollout_buffer.actions[...] = explorer.actions[:n_steps].reshape(rollout_buffer.actions.shape)
    rollout_buffer.log_probs[...] = log_probs
    rollout_buffer.values[...] = values.reshape(rollout_buffer.values.shape)
    rollout_buffer.pos, rollout_buffer.full = n_steps, True
    with torch.no_grad():
        last = self.policy.predict_values(obs_as_tensor(self._last_obs, self.device))
    rollout_buffer.compute_returns_and_advantage(last_values=last, dones=dones)
    callback.update_locals(locals())
    callback.on_rollout_end()
    return True


def _values(self: Any, observations: np.ndarray) -> np.ndarray:
    """[n] of [n, ...], by the float critic."""
    with torch.no_grad():
        return self.policy.predict_values(obs_as_tensor(observations, self.device)).cpu().numpy().reshape(-1)


def _off_policy_rollouts(self: Any, *args: Any, **more: Any) -> Any:
    acting = _ACTING.get(self)
    if acting is not None and getattr(self, "use_sde", False):
        acting.t = BLOCK  # a matrix of its own
    return _plain(self).collect_rollouts(self, *args, **more)


def _off_policy_action(self: Any, learning_starts: int, action_noise: Any = None, n_envs: int = 1) -> tuple[Any, Any]:
    """As OffPolicyAlgorithm._sample_action: (what the environments are given, what the replay buffer keeps)."""
    acting = _ACTING.get(self)
    if acting is not None:
        acting.see(self._last_obs)
    warming = self.num_timesteps < learning_starts and not (getattr(self, "use_sde", False) and self.use_sde_at_warmup)
    if acting is None or warming or not acting.ready():
        return _plain(self)._sample_action(self, learning_starts, action_noise, n_envs)
    x = _next(acting, n_envs)
    x.epsilon = getattr(self, "exploration_rate", 0.0)
    given = x.act(acting.t, np.ascontiguousarray(self._last_obs)).copy()
    done = x.actions[acting.t].copy()
    acting.t += 1
    if x.exploration.kind == "epsilon":
        return given, given
    scaled = done.reshape(given.shape) if x.exploration.kind != "deterministic" else self.policy.scale_action(given)
    if action_noise is None:
        return given, scaled
    scaled = np.clip(scaled + action_noise(), -1, 1).astype(np.float32)
    return self.policy.unscale_action(scaled), scaled


def _next(acting: Acting, rows: int) -> Explorer:
    """The Explorer, its weights looked at every `every` steps, a new block of noise where one is over."""
    x = acting.explorer
    if x is None or acting.since >= acting.every or x.rows != rows:
        x, acting.since = acting.follow(rows, BLOCK), 0
    acting.since += 1
    if acting.t >= BLOCK or acting.t == 0:
        x.begin()
        acting.t = 0
    return x


_ON_POLICY = {"collect_rollouts": _on_policy_rollouts}
_OFF_POLICY = {"collect_rollouts": _off_policy_rollouts, "_sample_action": _off_policy_action}
