"""One worker's part of a rollout: its environments, stepped by an actor that is in the same process, into columns of memory."""

from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium
import numpy as np

from fewbit.errors import FewbitError, MissingExtra
from fewbit.rl import returns
from fewbit.rl.actor import Actor
from fewbit.rl.experience import Columns, Layout
from fewbit.rl.explore import explorer

BLOCK = 128  # steps between two commits: noise is drawn, and log-probabilities are found, for so many at once
VECTORS = ("gymnasium", "envpool")


@dataclass(frozen=True)
class Spec:
    """envs environments of a kind; seed: whatever the worker's randomness is to come from."""

    env: str
    env_args: dict[str, Any] | None
    envs: int
    vector: str
    seed: tuple[int, ...]


@dataclass(frozen=True)
class Order:
    """Fill up to `steps` steps; episodes [envs]: no more than so many of each environment, all begun anew where fresh."""

    steps: int
    episodes: tuple[int, ...] | None = None
    fresh: bool = False


class Vector(Protocol):
    """Several environments. `current` [envs, ...] is what they begin with; `step` writes what is to be acted on next into
    `following`, and gives (environment, last observation) of every episode that ended."""

    current: np.ndarray

    def reset(self) -> None: ...

    def step(self, actions: np.ndarray, row: "Row", following: np.ndarray, active: list[int]) -> list[tuple[int, Any]]: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Row:
    """One step's places in the columns, [envs, ...] each."""

    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    valid: np.ndarray


class Collector:
    """Environments and what acts in them. Everything it does follows from the spec's seed, the actors and the orders."""

    def __init__(self, spec: Spec, actor: Actor):
        self.spec, self.generation = spec, spec.seed[-1]
        sequence = np.random.SeedSequence(spec.seed)
        first, *seeds = (int(s) for s in sequence.generate_state(spec.envs + 1))
        self.noise = np.random.default_rng(first)
        self.vector = _VECTORS[spec.vector](spec, actor, seeds)
        self.begun = False
        self.episode = np.full(spec.envs, self.generation << 32, np.int64)
        self.age = np.zeros(spec.envs, np.int64)
        self.starts = np.zeros(spec.envs, bool)
        self.load(actor)

    def load(self, actor: Actor) -> None:
        """Act with it from now on."""
        _fits(actor, self.vector.current, self.spec)
        self.explorer = explorer(actor.exploration, actor.engine(), self.spec.envs, BLOCK, self.noise, actor.dtype)
        self.layout = Layout(
            (self.vector.current.shape[1:], self.vector.current.dtype.str),
            (self.explorer.actions.shape[2:], self.explorer.actions.dtype.str),
        )

    def fill(self, columns: Columns, counters: np.ndarray, order: Order) -> bool:
        """Rows from the first on; True when all that was ordered is done. counters: steps made, steps committed."""
        counters[:] = 0
        left = None if order.episodes is None else np.array(order.episodes)
        if order.fresh or not self.begun:
            self._begin()
        rows = [Row(*r) for r in zip(*(columns[k][: order.steps] for k in Row.__dataclass_fields__), strict=True)]
        observed = [*columns["observations"][: order.steps], self.vector.current]  # a step's goal is the next one's start
        observed[0][...] = self.vector.current
        act, step, active = self.explorer.act, self.vector.step, list(range(self.spec.envs))
        for first in range(0, order.steps, BLOCK):
            last = min(first + BLOCK, order.steps)
            for name in ("terminated", "truncated"):
                columns[name][first:last] = False
            columns["valid"][first:last] = True
            self.explorer.begin()
            ends: list[tuple[int, int, Any]] = []
            for t in range(first, last):
                if left is not None:
                    active = np.flatnonzero(left).tolist()
                    if not active:
                        last = t
                        break
                    observed[t + 1][...] = observed[t]  # of those that rest
                for k, end in step(act(t - first, observed[t]), rows[t], observed[t + 1], active):
                    ends.append((t, k, end))
                if left is not None:
                    _only(active, rows[t], left)
                counters[0] = t + 1
            self._commit(columns, slice(first, last), observed[last], ends)
            counters[1] = last
            if left is not None and not left.any():
                return True  # the next order begins anew
        return left is None

    def _begin(self) -> None:
        self.vector.reset()
        self.episode += self.begun  # those that were going on have ended
        self.age[:], self.starts[:], self.begun = 0, False, True

    def _commit(self, columns: Columns, rows: slice, following: np.ndarray, ends: list[tuple[int, int, Any]]) -> None:
        """What is found for a block at once: actions, log-probabilities, what steps led to, and whose steps they are."""
        count = rows.stop - rows.start
        if not count:
            return
        columns["actions"][rows] = self.explorer.actions[:count]
        columns["log_prob"][rows] = self.explorer.log_prob(count)
        after = columns["next_observations"][rows]
        after[:-1], after[-1] = columns["observations"][rows][1:], following
        for t, k, end in ends:
            after[t - rows.start, k] = end
        valid = columns["valid"][rows]
        over = columns["terminated"][rows] | columns["truncated"][rows]
        ended = np.concatenate([self.starts[None], (over | ~valid)[:-1]])  # before this row an episode was over, or a reset
        starts = ended & valid
        steps = np.arange(count)[:, None]
        since = np.maximum.accumulate(np.where(starts, steps, -self.age), 0)
        columns["step"][rows] = steps - since
        columns["episode"][rows] = self.episode + np.cumsum(starts, 0)
        self.episode = columns["episode"][rows][-1].copy()
        self.age = np.where(valid[-1], columns["step"][rows][-1] + 1, 0)
        self.starts = over[-1] | ~valid[-1]

    def close(self) -> None:
        self.vector.close()


def _only(active: list[int], row: Row, left: np.ndarray) -> None:
    """Environments that have done their episodes step on, or rest, without a transition."""
    resting = np.ones(len(left), bool)
    resting[active] = False
    row.valid[resting] = False
    left[active] -= (row.terminated | row.truncated)[active]


def _fits(actor: Actor, current: np.ndarray, spec: Spec) -> None:
    if actor.shape != current.shape[1:]:
        raise FewbitError(
            f"environment {spec.env} gives observations of shape {list(current.shape[1:])}, the actor takes {list(actor.shape)}"
        )


class Gymnasium:
    """gymnasium.make, one by one; an environment whose episode is over is reset at once."""

    def __init__(self, spec: Spec, actor: Actor, seeds: list[int]):
        self.envs = [returns.make(spec.env, spec.env_args) for _ in range(spec.envs)]
        shape = {next(iter(actor.program.inputs)): actor.shape}
        returns.check(spec.env, self.envs[0], shape)
        self.envs = [returns.facing(e, shape) for e in self.envs]
        self.seeds: list[int | None] = [*seeds]
        self.action_space = self.envs[0].action_space
        self.discrete = isinstance(self.action_space, gymnasium.spaces.Discrete)
        self.current = np.zeros((spec.envs, *actor.shape), actor.dtype)

    def reset(self) -> None:
        for k, env in enumerate(self.envs):
            self.current[k] = env.reset(seed=self.seeds[k])[0]
            self.seeds[k] = None

    def step(self, actions: np.ndarray, row: Row, following: np.ndarray, active: list[int]) -> list[tuple[int, Any]]:
        given = actions.tolist() if self.discrete else list(actions.copy())  # an environment may keep what it was given
        rewards, envs, ends = row.rewards, self.envs, []
        for k in active:
            observation, rewards[k], terminated, truncated, _ = envs[k].step(given[k])
            if terminated or truncated:
                row.terminated[k], row.truncated[k] = terminated, truncated
                ends.append((k, np.array(observation)))  # an environment may write its next one there
                observation = envs[k].reset()[0]
            following[k] = observation
        return ends

    def close(self) -> None:
        for env in self.envs:
            env.close()


class EnvPool:
    """EnvPool's environments, all stepped by one call; the call after an episode's end resets, and is no transition."""

    def __init__(self, spec: Spec, actor: Actor, seeds: list[int]):
        try:
            import envpool
        except ImportError:
            raise MissingExtra("envpool", "envpool") from None
        try:
            self.pool = envpool.make(
                spec.env,
                env_type="gymnasium",
                num_envs=spec.envs,
                seed=seeds[0] % 2**31,
                num_threads=1,
                **(spec.env_args or {}),
            )
        except Exception as e:
            raise FewbitError(f"environment {spec.env} cannot be made by EnvPool: {str(e).splitlines()[0][:200]}") from None
        self.action_space = self.pool.action_space
        self.dtype, self.over = actor.dtype, np.zeros(spec.envs, bool)
        self.current = np.zeros((spec.envs, *(self.pool.observation_space.shape or ())), actor.dtype)

    def reset(self) -> None:
        self.current[...] = self.pool.reset()[0]
        self.over[:] = False

    def step(self, actions: np.ndarray, row: Row, following: np.ndarray, active: list[int]) -> list[tuple[int, Any]]:
        given = np.ascontiguousarray(actions, self.action_space.dtype)
        following[...], row.rewards[...], terminated, truncated, _ = self.pool.step(given)
        row.valid[...] = ~self.over
        row.terminated[...], row.truncated[...] = terminated & row.valid, truncated & row.valid
        self.over = row.terminated | row.truncated
        return []

    def close(self) -> None:
        self.pool.close()


_VECTORS: dict[str, Any] = {"gymnasium": Gymnasium, "envpool": EnvPool}
