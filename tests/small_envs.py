"""Environments of the tests' own, small enough to learn in seconds. Imported by name: `small_envs:Blind-v0`."""

import itertools
import os
import signal
import time

import gymnasium as gym
import numpy as np


class Blind(gym.ObservationWrapper):
    """CartPole without its velocities: acting well takes memory."""

    def __init__(self) -> None:
        super().__init__(gym.make("CartPole-v1"))
        space = self.env.observation_space
        self.observation_space = gym.spaces.Box(space.low[::2], space.high[::2])

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return observation[::2]


class Catch(gym.Env):
    """A square falls down a black screen; a paddle at the bottom moves left, stays, or moves right. Reward 1 for a catch.

    Observations are the last `frames` screens, uint8 [frames, size, size], or channels last where `last`.
    """

    def __init__(self, size: int = 84, frames: int = 4, last: bool = False) -> None:
        self.size, self.frames, self.last = size, frames, last
        shape = (size, size, frames) if last else (frames, size, size)
        self.observation_space = gym.spaces.Box(0, 255, shape, np.uint8)
        self.action_space = gym.spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.cells = 12
        self.row, self.paddle = 0, int(self.np_random.integers(self.cells))
        self.column = int(self.np_random.integers(self.cells))
        self.shown = [self._screen()] * self.frames
        return self._seen(), {}

    def step(self, action):
        self.paddle = int(np.clip(self.paddle + action - 1, 0, self.cells - 1))
        self.row += 1
        self.shown = [*self.shown[1:], self._screen()]
        done = self.row == self.cells - 1
        return self._seen(), float(done and abs(self.column - self.paddle) <= 1), done, False, {}

    def _screen(self) -> np.ndarray:
        screen, cell = np.zeros((self.size, self.size), np.uint8), self.size // self.cells
        for row, column, grey in ((self.row, self.column, 255), (self.cells - 1, self.paddle, 170)):
            screen[row * cell : (row + 1) * cell, column * cell : (column + 1) * cell] = grey
        return screen

    def _seen(self) -> np.ndarray:
        return np.stack(self.shown, -1 if self.last else 0)


class Plain(gym.Env):
    """Episodes of ten random observations of any space. Reward: less the more the action is.

    masks: how many choices action_masks() tells of, every other of which is allowed; a forbidden one is an error.
    """

    def __init__(self, observes: gym.Space, acts: gym.Space, masks: int = 0) -> None:
        self.observation_space, self.action_space, self.masks = observes, acts, masks
        if masks:
            self.action_masks = self._allowed

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.age = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        if self.masks and not self._allowed()[int(action)]:
            raise ValueError(f"action {action} is forbidden")
        self.age += 1
        return self.observation_space.sample(), -float(np.square(np.asarray(action, np.float64)).sum()), False, self.age >= 10, {}

    def _allowed(self) -> np.ndarray:
        return (np.arange(self.masks) + self.age) % 2 == 0


NUMBERS = itertools.count()


class Counted(gym.Env):
    """Every step is written to a file, by a name that the observation tells: process, environment, number. Once, at the step
    `at` of whoever gets there first, the process is killed, hangs, or fails."""

    def __init__(self, log: str, doom: str = "", at: int = 0, length: int = 7, pause: float = 0.0) -> None:
        self.log, self.doom, self.at, self.length, self.pause = log, doom, at, length, pause
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float64)
        self.action_space = gym.spaces.Discrete(2)
        self.made, self.number = 0, next(NUMBERS)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.age = 0
        return self._seen(), {}

    def step(self, action):
        if self.doom and self.made == self.at and self._first():
            if self.doom == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.doom == "hang":
                time.sleep(1000)
            raise RuntimeError("the simulation exploded")
        time.sleep(self.pause)
        with open(self.log, "a") as f:
            f.write(" ".join(str(int(v)) for v in self._seen()) + "\n")
        self.made += 1
        self.age += 1
        return self._seen(), 1.0, self.age == self.length, False, {}

    def _seen(self) -> np.ndarray:
        return np.array([os.getpid(), self.number, self.made], np.float64)

    def _first(self) -> bool:
        try:
            os.close(os.open(self.log + ".doomed", os.O_CREAT | os.O_EXCL))
            return True
        except FileExistsError:
            return False


gym.register("Fenced-v0", lambda: Plain(gym.spaces.Box(-3, 3, (4,)), gym.spaces.Discrete(4), 4))
gym.register("Counted-v0", "small_envs:Counted")
gym.register("Blind-v0", "small_envs:Blind", max_episode_steps=200)
gym.register("Catch-v0", "small_envs:Catch")
gym.register("CatchLast-v0", "small_envs:Catch", kwargs={"last": True})
