"""Networks that remember, trained over stretches of their own episodes: truncated backpropagation through time.

A stretch starts from what the student itself would remember there: before every round it walks all its episodes again, from their
first step on, with the weights that it has by then. What was remembered when the states were collected would be that of an older
student, round after round more so (Kapturowski et al. 2019, R2D2, who burn in at every update instead: a walk a round costs less
than that, and is exact at its beginning). Inside a stretch the codes that leave a step enter the next one, and the gradient goes
back the same way to the first.

Only what the memory needs is walked step by step; layers before and behind it take all the steps of a batch at once.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from fewbit.engine.policy import EPISODE
from fewbit.engine.program import Linear, Program, State, Step
from fewbit.train.qat import Layer, Start, Trainable, needed, reads
from fewbit.train.torch_ops import Tensor
from fewbit.train.torch_run import Codes, Dense, Reading, torch

TIME = ".time"  # int64 [n]: a row's step in its episode; the rows of an episode lie together, in order
Feeds = dict[str, np.ndarray]
Rows = dict[str, Tensor]


class Recurrent(Trainable):
    """A Trainable whose rows are steps of episodes: run takes [steps, stretches, ...] and makes [steps * stretches, ...]."""

    def __init__(self, program: Program, starts: dict[str, Start]):
        super().__init__(program, starts)
        state = self.program.state
        self.before, self.loop, self.behind = _parts(self.body, {s.input for s in state}, {s.output for s in state})
        looped, left = {s.out for s in self.loop} | {s.input for s in state}, {s.output for s in state}
        self.taken = (left | {i for s in self.loop for i in reads(s)}) - looped - self.program.constants.keys()
        self.kept = (left | {i for s in self.behind for i in reads(s)}) & looped
        self.ready: dict[str, Dense] = {}

    def enter(self, feeds: Feeds) -> Feeds:
        return super().enter(feeds) | ({TIME: times(feeds[EPISODE])} if EPISODE in feeds else {})

    def forward(self, feeds: Rows) -> dict[str, Any]:
        """One step, given what is remembered before it."""
        entered = self.enter({k: v.detach().numpy() for k, v in feeds.items()})
        return self.run({k: torch.from_numpy(np.ascontiguousarray(v))[None] for k, v in entered.items()})

    def run(self, entered: Rows) -> dict[str, Any]:
        self.ready = {}
        count = next(iter(entered.values())).shape[1]
        held = {s.input for s in self.program.state}
        state = {k: self._entered(k, v[0]) for k, v in entered.items() if k in held}
        registers = self._whole({k: v.flatten(0, 1) for k, v in entered.items() if k not in held})
        constants = {k: registers[k] for k in self.program.constants}
        parts = {k: _each(registers[k], lambda v: v.split(count)) for k in self.taken}
        made: dict[str, list[Any]] = {k: [] for k in self.kept}
        for k in range(len(next(iter(entered.values())))):
            r = self._one({name: part[k] for name, part in parts.items()} | constants | state)
            for name, values in made.items():
                values.append(r[name])
            state = {s.input: r[s.output] for s in self.program.state}
        registers |= {name: _joined(values) for name, values in made.items()}
        for step in self.behind:
            registers[step.out] = self._step(step, registers)
        return registers

    def _whole(self, entered: Rows) -> dict[str, Any]:
        """Constants, what entered, and what is made of it without the memory."""
        registers = {k: self._entered(k, torch.tensor(v)) for k, v in self.program.constants.items()}
        registers |= {k: self._entered(k, v) for k, v in entered.items() if k != TIME}
        for step in self.before:
            registers[step.out] = self._step(step, registers)
        return registers

    def _one(self, registers: dict[str, Any]) -> dict[str, Any]:
        """One step of the loop, in place."""
        for step in self.loop:
            registers[step.out] = self._step(step, registers)
        return registers

    def _dense(self, step: Linear, read: Reading, out: Reading | None) -> Dense:
        """Once for all the steps of a run."""
        if step.out not in self.ready:
            self.ready[step.out] = super()._dense(step, read, out)
        return self.ready[step.out]

    def narrow(self) -> list[Layer]:
        """None begins with more bits: the codes that it starts with were solved for those it ends with."""
        return []

    def draw(self, rows: Rows, count: int, length: int, generator: torch.Generator) -> Tensor:
        """[steps, count]: rows of `count` stretches of `length` steps, or of the longest episode's where all are shorter."""
        time = rows[f"x.{TIME}"]
        length = min(length, int(episodes(time.numpy())[1].max()))
        starts = torch.nonzero(time[length - 1 :] - time[: len(time) - length + 1] == length - 1)[:, 0]
        chosen = starts[torch.randint(len(starts), (count,), generator=generator)]
        return chosen + torch.arange(length)[:, None]

    def all(self, rows: Rows) -> Tensor:
        """[steps, episodes]: every row, of episodes of one length."""
        return torch.from_numpy(np.stack(list(lockstep(rows[f"x.{TIME}"].numpy()))))

    def refresh(self, rows: Rows) -> None:
        """What the student remembers in every row, by walking all episodes at once from their first step on."""
        self.ready = {}
        state: dict[str, Any] = {}
        with torch.no_grad():
            for index in map(torch.from_numpy, lockstep(rows[f"x.{TIME}"].numpy())):
                state = {k: _each(v, lambda a: [a[: len(index)]])[0] for k, v in state.items()} or self._first(rows, index)  # noqa: B023
                for name, value in state.items():
                    rows[f"x.{name}"][index] = _stored(value).to(rows[f"x.{name}"].dtype)
                entered = {k[2:]: v[index] for k, v in rows.items() if k.startswith("x.") and k[2:] not in state}
                r = self._one(self._whole(entered) | state)
                state = {s.input: r[s.output] for s in self.program.state}

    def _first(self, rows: Rows, index: Tensor) -> dict[str, Any]:
        """An episode's first state; of one whose beginning is not kept any more, what was remembered there."""
        begins = rows[f"x.{TIME}"][index] == 0
        found = {}
        for s in self.program.state:
            before, initial = rows[f"x.{s.input}"][index], torch.from_numpy(np.array(s.initial))
            where = begins.reshape(-1, *[1] * initial.ndim)
            found[s.input] = self._entered(s.input, torch.where(where, initial.to(before.dtype), before))
        return found


def times(numbers: np.ndarray) -> np.ndarray:
    """int64 [n]: each row's step in its episode, given the episodes' numbers; the rows of one lie together."""
    place = np.arange(len(numbers))
    begins = np.diff(numbers, prepend=numbers[:1] - 1) != 0
    return place - np.maximum.accumulate(np.where(begins, place, 0))


def episodes(time: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(first row, number of rows) of each episode."""
    begins = np.flatnonzero(np.diff(time, prepend=-2) != 1)
    return begins, np.diff(begins, append=len(time))


def lockstep(time: np.ndarray) -> Iterator[np.ndarray]:
    """The rows that are their episodes' first, then the second ones and so on, the longest episodes first."""
    begins, lengths = episodes(time)
    order = np.argsort(-lengths, kind="stable")
    begins, lengths = begins[order], lengths[order]
    for k in range(lengths[0]):
        yield begins[: int((lengths > k).sum())] + k


def remembering(run: Callable[[Feeds], Feeds], states: Sequence[State], feeds: Feeds) -> Feeds:
    """What run makes of every row of feeds, where it remembers by itself from each episode's first row on."""
    made: Feeds = {}
    state: Feeds = {}
    held = {s.input for s in states} | {EPISODE}
    for index in lockstep(times(feeds[EPISODE])):
        state = {k: v[: len(index)] for k, v in state.items()} or {s.input: np.stack([s.initial] * len(index)) for s in states}
        found = run({k: v[index] for k, v in feeds.items() if k not in held} | state)
        state = {s.input: found[s.output] for s in states}
        for name, value in found.items():
            if name not in made:
                made[name] = np.zeros((len(feeds[EPISODE]), *value.shape[1:]), value.dtype)
            made[name][index] = value
    return made


def _parts(body: list[Step], inputs: set[str], outputs: set[str]) -> tuple[list[Step], list[Step], list[Step]]:
    """(steps that read nothing of the memory, steps from memory to memory, the others)."""
    reached, leading = set(inputs), needed(body, outputs)
    for step in body:
        reached |= {step.out} if any(i in reached for i in reads(step)) else set()
    before = [s for s in body if s.out not in reached]
    loop = [s for s in body if s.out in reached and s.out in leading]
    return before, loop, [s for s in body if s.out in reached and s.out not in leading]


def _each(value: Any, cut: Callable[[Tensor], Sequence[Tensor]]) -> list[Any]:
    return [Codes(v, value.reading) for v in cut(value.steps)] if isinstance(value, Codes) else list(cut(value))


def _joined(values: list[Any]) -> Any:
    if isinstance(values[0], Codes):
        return Codes(torch.cat([v.steps for v in values]), values[0].reading)
    return torch.cat(values)


def _stored(value: Any) -> Tensor:
    """As rows keep it: codes, zero point included."""
    return value.steps + value.reading.zero_point if isinstance(value, Codes) else value
