"""The flat program that every executor walks: what it needs and nothing else, multipliers included (S3, computed once)."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fewbit.numerics.formats import IntFormat


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
    """S2-S4: codes x -> codes out, or S7 where format is None: float32(acc) * exit_scale."""

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


@dataclass(frozen=True)
class Table:
    """S6: int16 codes -> codes through interpolated knots."""

    x: str
    out: str
    knots: np.ndarray
    m: int
    shift: int
    zero_point: int
    format: IntFormat
    function: str


@dataclass(frozen=True)
class Dequantize:
    """codes -> float32."""

    x: str
    out: str
    scale: np.ndarray
    zero_point: int


@dataclass(frozen=True)
class Float:
    """A float operator; an input is a register's name, an array, or None."""

    op: str
    out: str
    inputs: tuple[Any, ...]
    attributes: dict[str, Any] = field(default_factory=dict)


Step = Quantize | Linear | Table | Dequantize | Float


@dataclass(frozen=True)
class Program:
    """inputs and outputs: names; input_shapes without the batch; exact: every bit is covered by a clause (S10)."""

    inputs: dict[str, tuple[int, ...]]
    input_dtypes: dict[str, np.dtype]
    outputs: tuple[str, ...]
    steps: tuple[Step, ...]
    exact: bool
