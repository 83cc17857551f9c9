"""One worker's part of a rollout: its environments, stepped by an actor that is in the same process, into columns of memory."""

from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium
import numpy as np

from fewbit.engine import native
from fewbit.errors import FewbitError, MissingExtra, first_line
from fewbit.rl import returns
from fewbit.rl.actor import Actor
from fewbit.rl.experience import Columns, Layout
from fewbit.rl.explore import Explorer, explorer

BLOCK = 1024  # transitions between two commits: noise is drawn, and log-probabilities are found, for so many at once;
STEPS = 128  # or for so many steps, if those are more
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


Ends = list[tuple[int, int, Any]]  # (step, environment, last observation) of every episode that ended


class Vector(Protocol):
    """Several environments. `current` [envs, ...] is what they begin with.

    `block` makes steps `first` to `last` into columns [steps, envs, ...], which start as valid and not over: the step's goal is
    the next one's observation, the last one's `current`. left [envs]: episodes still to make of each, or None; an environment
    that has none left rests, and where none has any the block ends early. counters[0]: steps made. Where it ended, and what did.
    """

    current: np.ndarray

    def reset(self) -> None: ...

    def block(
        self, explorer: Explorer, columns: Columns, counters: np.ndarray, first: int, last: int, left: np.ndarray | None
    ) -> tuple[int, Ends]: ...

    def close(self) -> None: ...


class Collector:
    """Environments and what acts in them. Everything it does follows from the spec's seed, the actors and the orders."""

    def __init__(self, spec: Spec, actor: Actor):
        self.spec = spec
        sequence = np.random.SeedSequence(spec.seed)
        first, *seeds = (int(s) for s in sequence.generate_state(spec.envs + 1))
        self.noise = np.random.default_rng(first)
        self.vector = _VECTORS[spec.vector](spec, actor, seeds)
        self.block = max(STEPS, BLOCK // spec.envs)
        self.begun = False
        self.episode = np.full(spec.envs, (spec.seed[-1] << 32) - 1, np.int64)
        self.age = np.zeros(spec.envs, np.int64)
        self.starts = np.zeros(spec.envs, bool)
        self.layout = self._follow(actor)

    def load(self, actor: Actor) -> None:
        """Act with it from now on; it observes and acts in the shapes and types of the one before."""
        if self._follow(actor) != self.layout:
            raise FewbitError("the new actor's observations or actions have another shape or type; start another rollout for it")

    def _follow(self, actor: Actor) -> Layout:
        _fits(actor, self.vector.current, self.spec)
        self.explorer = explorer(actor.exploration, actor.engine(), self.spec.envs, self.block, self.noise, actor.dtype)
        return Layout((actor.shape, actor.dtype.str), (self.explorer.actions.shape[2:], self.explorer.actions.dtype.str))

    def fill(self, columns: Columns, counters: np.ndarray, order: Order) -> bool:
        """Rows from the first on; True when all that was ordered is done. counters: steps made, steps committed."""
        counters[:] = 0
        left = None if order.episodes is None else np.array(order.episodes, np.int64)
        if order.fresh or not self.begun:
            self._begin()
        columns = {k: v[: order.steps] for k, v in columns.items()}
        columns["observations"][0] = self.vector.current
        for first in range(0, order.steps, self.block):
            rows = slice(first, min(first + self.block, order.steps))
            columns["terminated"][rows] = columns["truncated"][rows] = False
            columns["valid"][rows] = True
            self.explorer.begin()
            last, ends = self.vector.block(self.explorer, columns, counters, rows.start, rows.stop, left)
            self._commit(columns, slice(first, last), ends)
            counters[1] = last
            if left is not None and not left.any():
                self.begun = False  # what `current` holds is no observation of now: the next order begins anew, whatever it is
                return True
        return left is None

    def _begin(self) -> None:
        self.vector.reset()
        self.episode += 1
        self.age[:], self.starts[:], self.begun = 0, False, True

    def _commit(self, columns: Columns, rows: slice, ends: Ends) -> None:
        """What is found for a block at once: actions, log-probabilities, what steps led to, and whose steps they are."""
        count = rows.stop - rows.start
        if not count:
            return
        columns["actions"][rows] = self.explorer.actions[:count]
        columns["log_prob"][rows] = self.explorer.log_prob(count)
        after = columns["next_observations"][rows]
        after[:-1] = columns["observations"][rows][1:]
        after[-1] = self.vector.current if rows.stop == len(columns["valid"]) else columns["observations"][rows.stop]
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
        self.steps, self.resets = [e.step for e in self.envs], [e.reset for e in self.envs]
        self.seeds: list[int | None] = [*seeds]
        self.name, self.discrete = spec.env, isinstance(self.envs[0].action_space, gymnasium.spaces.Discrete)
        self.current = np.zeros((spec.envs, *actor.shape), actor.dtype)

    def reset(self) -> None:
        for k, env in enumerate(self.envs):
            self.current[k] = env.reset(seed=self.seeds[k])[0]
            self.seeds[k] = None

    def block(
        self, explorer: Explorer, columns: Columns, counters: np.ndarray, first: int, last: int, left: np.ndarray | None
    ) -> tuple[int, Ends]:
        """In C++: a step costs little but the engine and env.step."""
        if self.discrete and explorer.given.ndim != 2:
            raise FewbitError(f"environment {self.name} takes a number for an action, the actor gives arrays")
        places = columns | {"current": self.current} | ({} if left is None else {"left": left})
        return native.module().rollout(explorer.native, explorer.engine, self.steps, self.resets, places, counters, first, last)

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
            raise FewbitError(f"environment {spec.env} cannot be made by EnvPool: {first_line(e)}") from None
        self.action_space = self.pool.action_space
        self.dtype, self.over = actor.dtype, np.zeros(spec.envs, bool)
        self.current = np.zeros((spec.envs, *(self.pool.observation_space.shape or ())), actor.dtype)

    def reset(self) -> None:
        self.current[...] = self.pool.reset()[0]
        self.over[:] = False

    def block(
        self, explorer: Explorer, columns: Columns, counters: np.ndarray, first: int, last: int, left: np.ndarray | None
    ) -> tuple[int, Ends]:
        for t in range(first, last):
            if left is not None and not left.any():
                return t, []
            actions = explorer.act(t - first, columns["observations"][t])
            following = columns["observations"][t + 1] if t + 1 < len(columns["valid"]) else self.current
            self._step(actions, following, *(columns[k][t] for k in ("rewards", "terminated", "truncated", "valid")))
            if left is not None:
                columns["valid"][t] &= left > 0
                left -= self.over & (left > 0)
            counters[0] = t + 1
        return last, []

    def _step(self, actions: np.ndarray, following: np.ndarray, *row: np.ndarray) -> None:
        rewards, terminated, truncated, valid = row
        valid[...] = ~self.over
        following[...], rewards[...], *ends, _ = self.pool.step(np.ascontiguousarray(actions, self.action_space.dtype))
        terminated[...], truncated[...] = ends[0] & valid, ends[1] & valid
        self.over = terminated | truncated

    def close(self) -> None:
        self.pool.close()


_VECTORS: dict[str, Any] = {"gymnasium": Gymnasium, "envpool": EnvPool}
