"""Registers of a flat program in the making: rows of `count` vectors of `inner` elements, a vector padded to `block`; and copies.

engine/flatten adds what makes each of them.
"""

from typing import Any

import numpy as np

from fewbit.engine import reference
from fewbit.engine.flat import TYPES, Call, Layout, Register, runs
from fewbit.engine.program import Add, Float, Multiply, Program
from fewbit.errors import FewbitError, Unsupported, first_line


class Registers:
    """By name; `one`, `two`: every value for a batch of zeros of that size, for shapes and constants."""

    def __init__(self, program: Program, block: int):
        self.program, self.block = program, block
        self.one, self.two = (_probe(program, n) for n in (1, 2))
        self.makers = {s.out: s for s in program.steps}
        self.batched, self.live = reached(program), reached(program, by_shape=False)
        self.registers: list[Register] = []
        self.calls: list[Call] = []
        self.making = [""]
        self.made: dict[str, Register] = {}

    def _layout(self, count: int, inner: int) -> Layout:
        return Layout(count, inner, self.block)

    def _new(self, shape: tuple[int, ...], dtype: np.dtype, layout: Layout | None = None, held: np.ndarray | None = None):
        if dtype not in TYPES:
            raise Unsupported(f"a tensor of {dtype} is not run by the engine")
        layout = layout or self._layout(1, max(int(np.prod(shape)), 1))
        if held is not None:
            row = np.zeros((layout.count, layout.stride), dtype)
            row[:, : layout.inner] = held.reshape(layout.count, layout.inner)
            held = row
        self.registers.append(Register(len(self.registers), tuple(shape), layout, np.dtype(dtype), held))
        return self.registers[-1]

    def _step(self, operation: str, registers: tuple[int, ...], *arguments: Any) -> None:
        self.calls.append(Call(operation, registers, arguments, self.making[-1]))

    def _shape(self, name: str) -> tuple[int, ...]:
        """Behind the batch; where a Reshape laid an observation's rows below each other, with their number in front."""
        one, two = self.one[name].shape, self.two[name].shape
        if name in self.batched and (not one or 2 * one[0] != two[0] or one[1:] != two[1:]):
            raise Unsupported(f"value {name}: its first dimension is not the batch")
        return one if name not in self.batched or self.in_rows(name) else one[1:]

    def in_rows(self, name: str) -> bool:
        """Has it several rows an observation, one below the other?"""
        return name in self.batched and len(self.one[name].shape) > 0 and self.one[name].shape[0] > 1

    def is_repeated(self, name: str) -> bool:
        """Is it one row of constants, repeated as often as there are observations? Their shape is what that was made of."""
        one, two = self.one[name], self.two[name]
        same = one.ndim > 0 and len(one) == 1 and two.shape == (2, *one.shape[1:])
        return name in self.batched and name not in self.live and same and np.array_equal(two, np.concatenate([one, one]))

    def _need(self, name: str) -> Register:
        if name not in self.made:
            if name not in self.batched:
                value = self.one[name]
                self.made[name] = self._new(value.shape, value.dtype, held=value)
            elif self.is_repeated(name):
                row = self.one[name][0]
                self.made[name] = self._new(row.shape, row.dtype, held=row)
            else:
                self.making.append(name)
                self.made[name] = self._make(self.makers[name])
                self.making.pop()
        return self.made[name]

    def _vectors(self, r: Register, count: int) -> Register:
        """The same elements as count vectors; a copy where they lie otherwise."""
        layout = self._layout(count, r.layout.elements // count)
        return r if r.layout == layout else self._copied([(r, np.arange(layout.elements))], r.shape, layout)

    def _copied(self, parts: list[tuple[Register, np.ndarray]], shape: tuple[int, ...], layout: Layout | None = None, fill=0):
        """A new register whose elements are the parts' numbered ones, one part after the other; -1 is the fill."""
        out = self._new(shape, parts[0][0].dtype, layout)
        to, start = out.layout.places(), 0
        for r, numbers in parts:
            source = np.where(numbers < 0, -1, r.layout.places()[np.maximum(numbers, 0)])
            self._step("copy", (r.id, out.id), fill, runs(to[start : start + len(numbers)], source))
            start += len(numbers)
        return out

    def _broadcast(self, r: Register, name: str, shape: tuple[int, ...], layout: Layout) -> Register:
        """r as an operand of that shape and layout."""
        if name not in self.batched:
            value = np.broadcast_to(behind_batch(self.one[name], len(shape)), shape)
            return self._new(shape, r.dtype, layout, value)
        if (r.shape, r.layout) == (shape, layout):
            return r
        numbers = np.arange(r.layout.elements).reshape((1,) * (len(shape) - len(r.shape)) + r.shape)
        return self._copied([(r, np.broadcast_to(numbers, shape).reshape(-1))], shape, layout)

    def _patched(self, x: Register, which: np.ndarray, fill: int) -> Register:
        layout = self._layout(int(np.prod(which.shape[:-1])), which.shape[-1])
        return self._copied([(x, which.reshape(-1))], which.shape, layout, fill)

    def _make(self, step: Any) -> Register:
        raise NotImplementedError


def _probe(program: Program, rows: int) -> dict[str, np.ndarray]:
    """Every register for a batch of zeros: its shape, dtype, and value where no input reaches it."""
    zeros = {k: np.zeros((rows, *s), program.input_dtypes[k]) for k, s in program.inputs.items()}
    try:
        return reference.run(program, zeros)
    except (IndexError, ValueError, MemoryError) as e:
        raise FewbitError(f"the graph cannot be run ({first_line(e)}); export it again") from None


def reached(program: Program, by_shape: bool = True) -> set[str]:
    """The registers that depend on an input; by_shape: on its shape too, on its numbers alone otherwise."""
    found = set(program.inputs)
    for s in program.steps:
        only_shape = isinstance(s, Float) and s.op == "Shape" and not by_shape
        if not only_shape and any(i in found for i in inputs_of(s)):
            found.add(s.out)
    return found


def inputs_of(step) -> list[str]:
    if isinstance(step, Float):
        return [i for i in step.inputs if isinstance(i, str)]
    return [step.a, step.b] if isinstance(step, Add | Multiply) else [step.x]


def behind_batch(value: np.ndarray, rank: int) -> np.ndarray:
    """A constant operand without the batch dimension, if it has one."""
    value = np.asarray(value)
    if value.ndim > rank:
        if value.shape[0] != 1:
            raise Unsupported("a constant that differs along the batch is not run by the engine")
        return value[0]
    return value
