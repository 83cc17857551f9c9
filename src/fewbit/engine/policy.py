"""A network as a callable: observations in, actions out, what it remembers kept between calls until reset."""

from collections.abc import Callable, Sequence

import numpy as np

from fewbit.engine.program import State
from fewbit.errors import FewbitError
from fewbit.graph.metadata import MASKS

Observation = np.ndarray | dict[str, np.ndarray]
Feeds = dict[str, np.ndarray]
EPISODE = ".episode"  # int64 [n] beside recorded observations of a policy that remembers: the episode that each is of


def as_kind(name: str, observation: np.ndarray, kind: np.dtype) -> np.ndarray:
    """An observation in the dtype that the network takes: what an environment counts in need not be what the network was fed.

    Args:
        name: of the input, for the refusal.
        observation: [batch, ...], of any dtype.
        kind: what the input takes.

    Raises:
        FewbitError: kind is of integers and a number of the observation is none of them.
    """
    given = np.asarray(observation)
    if given.dtype == kind:
        return given
    with np.errstate(invalid="ignore", over="ignore"):
        made = given.astype(kind)
    if kind.kind in "iub" and not np.array_equal(made, given):
        raise FewbitError(f"input {name} takes {kind}, and the observation holds {given.dtype} numbers that are none")
    return made


class Policy:
    """policy(observations [batch, ...] or {name: [batch, ...]}) -> actions [batch, ...]; observations of any dtype.

    run(feeds) gives the graph's outputs in order, the action first; names are the outputs' names, of which `states` tells those
    that are remembered; kinds: the dtypes that inputs take. A single observation without
    the batch dimension is taken too. Of a policy that is told what is allowed, everything is where no masks are given.
    """

    def __init__(
        self,
        run: Callable[[Feeds], Sequence[np.ndarray]],
        inputs: dict[str, tuple[int, ...]],
        executor: str,
        states: Sequence[State] = (),
        names: Sequence[str] = (),
        kinds: dict[str, np.dtype] | None = None,
    ):
        held = {s.input for s in states}
        self.inputs = {k: v for k, v in inputs.items() if k not in held}
        self.executor, self.states, self.kinds = executor, tuple(states), kinds or {}
        self._run, self._places = run, [list(names).index(s.output) for s in states]
        self._held: Feeds | None = None

    def initial(self, count: int) -> Feeds:
        """What `count` episodes start with; {} where nothing is remembered."""
        return {s.input: np.repeat(s.initial[None], count, 0) for s in self.states}

    def step(self, observations: Observation, state: Feeds) -> tuple[np.ndarray, Feeds]:
        """(actions, the state after them) of a batch, given the state before them."""
        made = self._run(self._named(observations) | state)
        return np.asarray(made[0]), {s.input: np.asarray(made[k]) for s, k in zip(self.states, self._places, strict=True)}

    def reset(self) -> None:
        """Forget: the next call is an episode's first."""
        self._held = None

    def __call__(self, observation: Observation) -> np.ndarray:
        """Given a dictionary that holds the state too, the state is taken from it and none is kept."""
        feeds = self._named(observation)
        first = next(iter(self.inputs))
        if first in feeds and np.asarray(feeds[first]).ndim == len(self.inputs[first]):
            return self._remembering({k: np.asarray(v)[None] for k, v in feeds.items()})[0]
        return self._remembering(feeds)

    def _remembering(self, feeds: Feeds) -> np.ndarray:
        if not self.states or any(s.input in feeds for s in self.states):
            return np.asarray(self._run(feeds)[0])
        count = len(next(iter(feeds.values())))
        if self._held is None:
            self._held = self.initial(count)
        kept = len(next(iter(self._held.values())))
        if kept != count:
            raise FewbitError(f"this policy remembers {kept} episodes and is given {count} observations; reset() it first")
        action, self._held = self.step(feeds, self._held)
        return action

    def _named(self, observation: Observation) -> Feeds:
        observed = [name for name in self.inputs if name != MASKS]
        if not isinstance(observation, dict) and len(observed) != 1:
            raise FewbitError(f"this policy takes a dictionary of observations: {', '.join(self.inputs)}")
        feeds = dict(observation) if isinstance(observation, dict) else {observed[0]: observation}
        if MASKS in self.inputs and MASKS not in feeds and observed[0] in feeds:  # as sb3-contrib's predict without masks
            first = np.asarray(feeds[observed[0]])
            batch = first.shape[: first.ndim - len(self.inputs[observed[0]])]
            feeds[MASKS] = np.ones((*batch, *self.inputs[MASKS]), np.float32)
        return feeds
