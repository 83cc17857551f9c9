"""What a program is once it is flat: registers of padded rows, and calls over them. engine/flatten makes it."""

from dataclasses import dataclass
from typing import Any

import numpy as np

TYPES = [np.dtype(t) for t in ("uint8", "int8", "uint16", "int16", "int32", "int64", "float32", "float64")]


@dataclass(frozen=True)
class Layout:
    """count vectors of inner elements, each padded to a multiple of block."""

    count: int
    inner: int
    block: int

    @property
    def stride(self) -> int:
        return -(-self.inner // self.block) * self.block

    @property
    def elements(self) -> int:
        return self.count * self.inner

    def places(self) -> np.ndarray:
        """Where each element lies in a row's storage."""
        e = np.arange(self.elements)
        return e // self.inner * self.stride + e % self.inner


@dataclass(frozen=True)
class Register:
    """shape is without the batch; held: a constant's content [count, stride]."""

    id: int
    shape: tuple[int, ...]
    layout: Layout
    dtype: np.dtype
    held: np.ndarray | None = None


@dataclass(frozen=True)
class Call:
    """One step: its operation's name, the numbers of its registers (the last is written), and what else it needs, in order;
    label: the program's register that it is a part of."""

    operation: str
    registers: tuple[int, ...]
    arguments: tuple[Any, ...]  # int or np.ndarray
    label: str = ""


@dataclass(frozen=True)
class Flat:
    registers: list[Register]
    inputs: list[Register]
    outputs: list[Register]
    calls: list[Call]


def runs(to: np.ndarray, source: np.ndarray) -> np.ndarray:
    """int32 triples (to, from, length) of the stretches in which both advance by one; from -1: the fill."""
    if not len(to):
        return np.zeros(0, np.int32)
    filled = (source[1:] < 0) & (source[:-1] < 0)
    joined = (np.diff(to) == 1) & (filled | ((np.diff(source) == 1) & (source[:-1] >= 0)))
    starts = np.concatenate([[0], np.flatnonzero(~joined) + 1])
    lengths = np.diff(np.concatenate([starts, [len(to)]]))
    return np.stack([to[starts], source[starts], lengths], 1).astype(np.int32).reshape(-1)
