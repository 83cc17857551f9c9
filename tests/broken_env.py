"""An environment that returns NaN after a few steps, for the tests of bad input: --env broken_env:Diverges-v0."""

import gymnasium
import numpy as np


class Diverges(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (17,))
    action_space = gymnasium.spaces.Box(-1, 1, (6,))
    steps = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(17, np.float32), {}

    def step(self, action):
        self.steps += 1
        observation = np.zeros(17, np.float32)
        if self.steps == 7:
            observation[4] = np.nan
        return observation, 0.0, False, self.steps == 20, {}


gymnasium.register("Diverges-v0", Diverges)
