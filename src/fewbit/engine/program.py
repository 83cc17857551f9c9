"""The flat program that every executor walks: what it needs and nothing else, multipliers included (S3, computed once)."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fewbit.graph.patches import Window
from fewbit.numerics.formats import IntFormat
from fewbit.numerics.unary import Segments


@dataclass(frozen=True)
class Quantize:
    """S1: float register x -> codes."""

    x: str
    out: str
    scale: np.float32
    zero_point: int
    format: IntFormat


@dataclass(frozen=True)
class Linear:
    """S2-S4: codes x -> codes out, or S7 where format is None: float32(acc) * exit_scale. layer: what its node made in the graph,
    by which whoever trains it finds its weight again."""

    x: str
    out: str
    weight: np.ndarray
    bias: np.ndarray
    zero_input: int
    bound: int
    m: np.ndarray | None = None
    shift: np.ndarray | None = None
    zero_point: int = 0
    format: IntFormat | None = None
    exit_scale: np.ndarray | None = None
    layer: str = ""


@dataclass(frozen=True)
class Patches:
    """What a Conv's Linear multiplies: codes [n, C, *space] or [n, *space, C] -> codes [n, *positions, elements of a patch]."""

    x: str
    out: str
    window: Window
    fill: int
    channels_last: bool


@dataclass(frozen=True)
class Table:
    """S6, then S4: int16 codes -> int16 codes of the segments' own scale -> codes."""

    x: str
    out: str
    segments: Segments
    m: int
    shift: int
    zero_point: int
    format: IntFormat
    function: str


@dataclass(frozen=True)
class Lookup:
    """S6 for 8-bit codes: codes x -> table[x - the smallest code]."""

    x: str
    out: str
    table: np.ndarray
    lowest: int
    format: IntFormat
    function: str


@dataclass(frozen=True)
class Rescale:
    """S4 alone: codes on one scale -> codes on another."""

    x: str
    out: str
    zero_input: int
    m: int
    shift: int
    zero_point: int
    format: IntFormat


@dataclass(frozen=True)
class Add:
    """S5: codes a, b -> codes; a subtraction has a negative m_b."""

    a: str
    b: str
    out: str
    zeros: tuple[int, int]
    m_a: int
    m_b: int
    shift: int
    zero_point: int
    format: IntFormat


@dataclass(frozen=True)
class Multiply:
    """S5: codes a, b -> codes."""

    a: str
    b: str
    out: str
    zeros: tuple[int, int]
    m: int
    shift: int
    zero_point: int
    format: IntFormat


@dataclass(frozen=True)
class Dequantize:
    """codes -> float32."""

    x: str
    out: str
    scale: np.ndarray
    zero_point: int


@dataclass(frozen=True)
class Float:
    """A float operator, or one that only moves values (codes too); an input is a register's name, an array, or None."""

    op: str
    out: str
    inputs: tuple[Any, ...]
    attributes: dict[str, Any] = field(default_factory=dict)


Step = Quantize | Linear | Patches | Table | Lookup | Rescale | Add | Multiply | Dequantize | Float


@dataclass(frozen=True)
class State:
    """S8: the register `output` of one step is the input `input` of the next; initial: what enters first, without the batch."""

    input: str
    output: str
    initial: np.ndarray


@dataclass(frozen=True)
class Program:
    """inputs: name -> shape without the batch; inexact: the operators whose bits no clause covers, with their nodes;
    constants: codes known before any input; state: which inputs and outputs are one; readings: scale and zero point of
    registers of codes."""

    inputs: dict[str, tuple[int, ...]]
    input_dtypes: dict[str, np.dtype]
    outputs: tuple[str, ...]
    steps: tuple[Step, ...]
    inexact: tuple[str, ...] = ()
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    state: tuple[State, ...] = ()
    readings: dict[str, tuple[float, int]] = field(default_factory=dict)

    @property
    def exact(self) -> bool:
        """Does a clause of the semantics cover every bit?"""
        return not self.inexact

    @property
    def observations(self) -> dict[str, tuple[int, ...]]:
        """The inputs that are not state."""
        held = {s.input for s in self.state}
        return {k: v for k, v in self.inputs.items() if k not in held}


def packed_bytes(program: Program) -> int:
    """Bytes of weights (at the width that their codes need), biases and tables, without the file around them."""
    total = 0
    for step in program.steps:
        match step:
            case Linear():
                total += -(-step.weight.size * code_width(step.weight) // 8) + step.bias.nbytes
            case Table():
                total += step.segments.c.nbytes
            case Lookup():
                total += step.table.nbytes
            case Float():
                total += sum(i.nbytes for i in step.inputs if isinstance(i, np.ndarray))
    return total


def code_width(codes: np.ndarray) -> int:
    """The bits that these codes need, of the widths that weights come in."""
    return next(b for b in (2, 3, 4, 6, 8, 16, 32) if codes.min() >= -(1 << (b - 1)) and codes.max() < 1 << (b - 1))
