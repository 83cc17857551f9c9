"""Exploration around what a network gives: a batch of environments at a time, with the exact log-probability of what was done.

    deterministic   action                  the network's own; log-probability 0
    gaussian        mean                    mean + std * noise; std [actions] does not depend on the observation
    squashed        mean, log_std           tanh(mean + exp(log_std) * noise) (SAC, Haarnoja et al. 2018)
    categorical     logits                  argmax(logits + Gumbel noise), which is a draw from softmax(logits)
    epsilon         values                  argmax(values), or with probability epsilon any action
    gsde            mean, features          mean + features @ matrix, normal entries of std [features, actions], kept for a
                                            while (generalized state-dependent, Raffin et al. 2021), squashed or not

The second column is what the network's outputs are. Noise is drawn and log-probabilities are found for a block of steps
at once, these in float64 of the float32 actions that were taken; what is left of a step is native/explore.h.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from fewbit.engine import native
from fewbit.errors import FewbitError

HEADS = {
    "deterministic": ("action",),
    "gaussian": ("mean",),
    "squashed": ("mean", "log_std"),
    "categorical": ("logits",),
    "epsilon": ("values",),
    "gsde": ("mean", "features"),
}
SDE_VARIANCE = 1e-6  # that Stable-Baselines3 adds to the variance of gsde
HALF_LOG_TAU = 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True)
class Exploration:
    """kind: of HEADS. low, high [actions]: what env.step takes (None where actions are numbers).

    std: of gaussian [actions], of gsde [features, actions]. squash: actions lie in [-1, 1] and are stretched to low..high;
    otherwise they are clipped. every: steps that a matrix of gsde is kept for, 0 a block. shape: of one action.
    """

    kind: str
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    std: np.ndarray | None = None
    epsilon: float = 0.0
    squash: bool = False
    every: int = 0
    shape: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in HEADS:
            raise FewbitError(f"exploration {self.kind} is unknown; choose one of {', '.join(HEADS)}")
        if (self.std is None) == (self.kind in ("gaussian", "gsde")):
            raise FewbitError(f"exploration {self.kind}: a std is for gaussian and gsde, and these need one")
        if not 0 <= self.epsilon <= 1:
            raise FewbitError(f"epsilon {self.epsilon}: a probability is expected")
        if not isinstance(self.squash, bool) or not isinstance(self.every, int) or not 0 <= self.every < 1 << 31:
            raise FewbitError(f"every {self.every}, squash {self.squash}: a number of steps and true or false are expected")

    def record(self) -> dict[str, Any]:
        """As JSON; `read` is its inverse."""
        return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in vars(self).items()}


def read(record: dict[str, Any]) -> Exploration:
    """From a file's record; FewbitError where it is damaged."""
    try:
        arrays = {k: None if record[k] is None else np.asarray(record[k], np.float32) for k in ("low", "high", "std")}
        return Exploration(**(record | arrays | {"shape": tuple(int(n) for n in record["shape"])}))
    except (KeyError, TypeError, ValueError, OverflowError):
        raise FewbitError(f"its record of the exploration is damaged ({str(record)[:80]}); make the actor again") from None


class Explorer:
    """Acts for `rows` environments through an engine, in blocks of up to `steps` steps; everything random comes from seed.

    heads: of each output what was given in the block, [steps, rows, ...]. actions [steps, rows, ...]: what the policy's
    distribution is over (not clipped, or in [-1, 1] where it squashes, or numbers), which is what learners keep. given
    [steps or 1, rows, ...]: what env.step takes. native: native/explore.h, which goes from a step's heads to these.
    """

    actions: np.ndarray
    given: np.ndarray

    def __init__(self, exploration: Exploration, engine: Any, rows: int, steps: int, seed: Any, dtype: Any = np.float32):
        self.exploration, self.engine, self.rows = exploration, engine, rows
        self.epsilon = exploration.epsilon
        self.random = np.random.default_rng(seed)
        if len(engine.inputs) != 1:
            raise FewbitError(f"an actor takes one array of observations, this network {', '.join(engine.inputs)}")
        given = engine(np.zeros((rows, *next(iter(engine.inputs.values()))), dtype))
        given, wanted = given if isinstance(given, tuple) else (given,), HEADS[exploration.kind]
        if len(given) != len(wanted):
            raise FewbitError(f"{exploration.kind} exploration needs a network that gives {', '.join(wanted)}")
        self.heads = [np.zeros((steps, *g.shape), g.dtype) for g in given]
        arrays = self._allocate()
        kind, squash = list(HEADS).index(exploration.kind), exploration.squash or exploration.kind == "squashed"
        self.native = native.module().Explorer(kind, self.heads, arrays | {"given": self.given}, exploration.every, squash)
        self._out: Any = list(zip(*self.heads, strict=True)) if len(given) > 1 else list(self.heads[0])
        self._given = [*self.given] * (steps // len(self.given))

    def begin(self) -> None:
        """A new block: its noise is drawn."""

    def follow(self, exploration: Exploration, engine: Any) -> None:
        """Go on with another engine and other numbers of the same exploration: a std counts from the next block on."""
        self.exploration, self.engine = exploration, engine

    def act(self, t: int, observations: np.ndarray) -> np.ndarray:
        """What env.step takes [rows, ...] at step t of the block, good until the next; observations [rows, ...]."""
        self.engine(observations, out=self._out[t])
        self.native.act(t)
        return self._given[t]

    def log_prob(self, count: int) -> np.ndarray:
        """float64 [count, rows] of the block's first actions: of a density, or of a probability where actions are numbers."""
        raise NotImplementedError

    def _allocate(self) -> dict[str, np.ndarray]:
        """What native/explore.h works in, by its names."""
        raise NotImplementedError


class _Deterministic(Explorer):
    def _allocate(self) -> dict[str, np.ndarray]:
        self.actions = self.given = self.heads[0]
        return {}

    def log_prob(self, count: int) -> np.ndarray:
        return np.zeros((count, self.rows))


class _Continuous(Explorer):
    """before: the actions before they are squashed, if they are."""

    def _allocate(self) -> dict[str, np.ndarray]:
        e, like = self.exploration, self.heads[0]
        if e.low is None or e.high is None:
            raise FewbitError(f"exploration {e.kind} needs the bounds of the actions")
        width = math.prod(like.shape[2:])
        deviations = (width,) if len(self.heads) == 1 else (self.heads[1].shape[-1], width)
        if {e.low.size, e.high.size, math.prod(e.shape)} != {width} or (e.std is not None and e.std.shape != deviations):
            raise FewbitError(
                f"the exploration's bounds, std and shape are not those of {width} actions, which the network gives"
            )
        self.squash = e.squash or e.kind == "squashed"
        self.actions = np.zeros_like(like)
        self.before = np.zeros_like(like) if self.squash else self.actions
        self.noise = self._noise()
        arrays = {"noise": self.noise, "before": self.before, "actions": self.actions}
        arrays |= {"low": e.low.astype(np.float32).reshape(-1), "high": e.high.astype(np.float32).reshape(-1)}
        if self.squash and (e.low == -1).all() and (e.high == 1).all():
            self.given = self.actions.reshape(len(like), self.rows, *e.shape)
            return arrays
        bounded = np.zeros_like(like[0])
        self.given = bounded.reshape(1, self.rows, *e.shape)
        return arrays | {"bounded": bounded}

    def _noise(self) -> np.ndarray:
        return np.zeros_like(self.heads[0])

    def begin(self) -> None:
        self.random.standard_normal(out=self.noise, dtype=np.float32)
        if self.exploration.std is not None:
            np.multiply(self.noise, self.exploration.std, out=self.noise)

    def _log_normal(self, count: int, std: np.ndarray) -> np.ndarray:
        before = self.before[:count].astype(np.float64)
        z = (before - self.heads[0][:count]) / std
        found = (-0.5 * z * z - np.log(std) - HALF_LOG_TAU).sum(axis=-1)
        if self.squash:  # less log(1 - tanh(u)^2), written so that it keeps its digits where tanh is 1
            u = np.abs(before)
            found -= (2 * (math.log(2) - u - np.log1p(np.exp(-2 * u)))).sum(axis=-1)
        return found


class _Gaussian(_Continuous):
    def log_prob(self, count: int) -> np.ndarray:
        return self._log_normal(count, np.asarray(self.exploration.std, np.float64))


class _Squashed(_Continuous):
    def log_prob(self, count: int) -> np.ndarray:
        return self._log_normal(count, np.exp(self.heads[1][:count].astype(np.float64)))


class _StateDependent(_Continuous):
    """noise: matrices [draws, rows, features, actions], each kept for exploration.every steps, or a block."""

    def _noise(self) -> np.ndarray:
        std, every = self.exploration.std, self.exploration.every
        assert std is not None
        return np.zeros((-(-len(self.heads[0]) // every) if every else 1, self.rows, *std.shape), np.float32)

    def log_prob(self, count: int) -> np.ndarray:
        """Over all matrices that could have been drawn, not given the one that was: as the learner has it."""
        assert self.exploration.std is not None
        variance = np.square(self.heads[1][:count].astype(np.float64)) @ np.square(self.exploration.std.astype(np.float64))
        return self._log_normal(count, np.sqrt(variance + SDE_VARIANCE))


class _Categorical(Explorer):
    def _allocate(self) -> dict[str, np.ndarray]:
        self.actions = self.given = np.zeros(self.heads[0].shape[:2], np.int64)
        self.noise = np.zeros(self.heads[0].shape)
        return {"noise": self.noise, "actions": self.actions}

    def begin(self) -> None:
        self.noise[...] = self.random.gumbel(size=self.noise.shape)

    def log_prob(self, count: int) -> np.ndarray:
        logits = self.heads[0][:count].astype(np.float64)
        logits -= logits.max(axis=-1, keepdims=True)
        chosen = np.take_along_axis(logits, self.actions[:count, :, None], -1)[..., 0]
        return chosen - np.log(np.exp(logits).sum(axis=-1))


class _Epsilon(Explorer):
    """epsilon may be changed between two steps; every environment has a coin of its own."""

    def _allocate(self) -> dict[str, np.ndarray]:
        steps, rows, self.count = self.heads[0].shape
        self.actions, self.others = (np.zeros((steps, rows), np.int64) for _ in range(2))
        self.noise, self.epsilons, self.given = np.zeros((steps, rows)), np.zeros(steps), self.actions
        return {"noise": self.noise, "actions": self.actions, "others": self.others, "epsilons": self.epsilons}

    def begin(self) -> None:
        self.random.random(out=self.noise)
        self.others[...] = self.random.integers(self.count, size=self.others.shape)
        self.epsilons[:] = self.epsilon

    def act(self, t: int, observations: np.ndarray) -> np.ndarray:
        self.epsilons[t] = self.epsilon
        return super().act(t, observations)

    def log_prob(self, count: int) -> np.ndarray:
        epsilon, greedy = self.epsilons[:count, None], self.heads[0][:count].argmax(-1)
        return np.log(epsilon / self.count + (1 - epsilon) * (self.actions[:count] == greedy))


_EXPLORERS: dict[str, type[Explorer]] = {
    "deterministic": _Deterministic,
    "gaussian": _Gaussian,
    "squashed": _Squashed,
    "gsde": _StateDependent,
    "categorical": _Categorical,
    "epsilon": _Epsilon,
}


def explorer(exploration: Exploration, engine: Any, rows: int, steps: int, seed: Any, dtype: Any = np.float32) -> Explorer:
    """The Explorer of that kind over a native engine; dtype: of the observations."""
    return _EXPLORERS[exploration.kind](exploration, engine, rows, steps, seed, dtype)
