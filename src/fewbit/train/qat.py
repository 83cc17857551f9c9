"""An artifact as a trainable torch module: the program of engine/lower with weights that are learned.

What it computes while it trains is what the artifact computes (train/torch_run), so nothing is lost when the codes are taken out
again. Learned are each layer's weight, one scale an output channel (LSQ: Esser et al. 2020) and the bias; activations keep the
scales that graph/qdq chose.

Every parameter is kept in the step that its row started with, so that one learning rate suits all rows and all layers.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fewbit.engine import reference, state
from fewbit.engine.program import (
    Add,
    Dequantize,
    Float,
    Linear,
    Lookup,
    Multiply,
    Patches,
    Program,
    Quantize,
    Rescale,
    Step,
    Table,
)
from fewbit.errors import FewbitError
from fewbit.graph import patches
from fewbit.numerics import affine, semantics, unary
from fewbit.numerics.formats import IntFormat
from fewbit.train import torch_run
from fewbit.train.torch_ops import FLOATS
from fewbit.train.torch_run import Codes, Reading, torch

SMOOTH = 16  # codes on either side, of a 16-bit function's slope: wider than the steps between its segments
FEW = 4  # bits up to which it was seen to help that they are lowered step by step, and that the lowest code is used
MOST = 2.0**30  # S2: what a bias may reach


@dataclass(frozen=True)
class Start:
    """What a layer's training starts with: weight [out, ...] and bias [out] float32, scale float32 [out], rms of its inputs."""

    weight: np.ndarray
    bias: np.ndarray
    scale: np.ndarray
    rms: float
    format: IntFormat


class Layer(torch.nn.Module):
    """weight [out, in] and bias [out], in steps of the scale [out] that each row started with; log_scale [out]."""

    first: torch.Tensor
    unit: torch.Tensor
    most: torch.Tensor

    def __init__(self, start: Start):
        super().__init__()
        scale = torch.tensor(np.maximum(start.scale, np.finfo(np.float32).tiny))
        rows = torch.tensor(np.ascontiguousarray(start.weight)).flatten(1)
        self.format, self.shape = start.format, start.weight.shape
        self.register_buffer("first", scale)
        self.register_buffer("most", torch.tensor(start.format.quant_max))
        self.register_buffer("unit", scale.double() * max(start.rms, 1e-30))
        self.weight = torch.nn.Parameter(rows / scale[:, None])
        self.bias = torch.nn.Parameter((torch.tensor(start.bias).double() / self.unit).float())
        self.log_scale = torch.nn.Parameter(torch.zeros(len(scale)))

    def scale(self) -> torch.Tensor:
        """float32 [out]."""
        return self.first * torch.exp(self.log_scale)

    def codes(self) -> torch.Tensor:
        """float32 [out, in], integers up to most; the negative side has one more where a level counts (as LSQ has)."""
        most = int(self.most)
        least = -most - 1 if self.format.bits <= FEW and not self.format.narrow else -most
        return torch_run.weight_codes(self.weight, self.log_scale, least, most)

    def widen(self, bits: int) -> None:
        """Codes of `bits` more than the format has: the range stays, the steps get finer."""
        most = (self.format.quant_max + 1 << bits) - 1
        with torch.no_grad():
            self.log_scale.add_(math.log(int(self.most) / most))
            self.most.fill_(most)

    def bias_codes(self, scale_input: float) -> torch.Tensor:
        """float64 [out], integers on the accumulator's scale."""
        return torch_run.round_to(self.bias.double() * self.unit / (self.scale().double() * scale_input), -MOST, MOST)


class Trainable(torch.nn.Module):
    """forward(feeds: name -> tensor [n, ...]) gives every register that depends on a weight: Codes, or floats."""

    def __init__(self, program: Program, starts: dict[str, Start]):
        super().__init__()
        self.program, self.outside = state.integer(program), program.state
        self.names = {name: f"layer{k}" for k, name in enumerate(starts)}
        self.layers = torch.nn.ModuleDict({self.names[name]: Layer(s) for name, s in starts.items()})
        self.formats = _formats(self.program)
        self.head, self.body = _split(self.program)
        self.tables = {s.out: _table(s, self._reading(s.out)) for s in self.body if isinstance(s, Table | Lookup)}

    def enter(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The registers before the first weight that anything later reads: what need not be computed at every step. What is
        remembered is given as floats, as the artifact has it, and enters as codes."""
        registers: dict[str, Any] = dict(self.program.constants) | {k: np.asarray(v) for k, v in feeds.items()}
        for given, held in zip(self.outside, self.program.state, strict=True):
            if (reading := self._reading(held.input)) is not None and given.input != held.input:
                codes = affine.quantize(registers[given.input], np.float32(reading.scale), reading.zero_point, reading.format)
                registers[held.input] = codes
        for name, kind in self.program.input_dtypes.items():
            registers[name] = registers[name].astype(kind, copy=False)
        for step in self.head:
            registers[step.out] = reference.step(step, registers)
        wanted = {i for s in self.body for i in reads(s)}
        return {k: v for k, v in registers.items() if k in wanted and k not in self.program.constants}

    def forward(self, feeds: dict[str, torch.Tensor]) -> dict[str, Any]:
        entered = self.enter({k: v.detach().numpy() for k, v in feeds.items()})
        return self.run({k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in entered.items()})

    def run(self, entered: dict[str, torch.Tensor]) -> dict[str, Any]:
        """As forward, of what `enter` gave."""
        registers: dict[str, Any] = {k: self._entered(k, v) for k, v in entered.items()}
        for name, array in self.program.constants.items():
            registers[name] = self._entered(name, torch.from_numpy(np.ascontiguousarray(array)))
        for step in self.body:
            registers[step.out] = self._step(step, registers)
        return registers

    def narrow(self) -> list[Layer]:
        """The layers that are first trained with more bits than they end with."""
        return [layer for layer in self.layers.children() if isinstance(layer, Layer) and layer.format.bits <= FEW]

    def layer(self, name: str) -> Layer:
        found = self.layers[self.names[name]]
        assert isinstance(found, Layer)
        return found

    def _entered(self, name: str, value: torch.Tensor) -> Any:
        reading = self._reading(name)
        return value if reading is None else Codes(value.float() - reading.zero_point, reading)

    def _reading(self, name: str) -> Reading | None:
        if name not in self.program.readings or name not in self.formats:
            return None
        return Reading(*self.program.readings[name], self.formats[name])

    def _step(self, step: Step, r: dict[str, Any]) -> Any:
        out = self._reading(step.out)
        match step:
            case Linear():
                return self._linear(step, r[step.x], out)
            case Patches():
                return Codes(_gather(r[step.x].steps, step), r[step.x].reading)
            case Table() | Lookup():
                return self._function(step, r[step.x], out)
            case Float():
                return _float(step, [r[i] if isinstance(i, str) else i for i in step.inputs])
            case Dequantize():
                return r[step.x].floats()
        assert out is not None
        match step:
            case Rescale():
                return Codes(torch_run.rescale(r[step.x].steps, r[step.x].reading.scale / out.scale, out), out)
            case Add():
                return Codes(torch_run.add(r[step.a], r[step.b], out, step.m_a, step.m_b, step.shift), out)
            case Multiply():
                return Codes(torch_run.multiply(r[step.a], r[step.b], out), out)
            case Quantize():
                return Codes(torch_run.round_to(r[step.x] / np.float32(out.scale), out.low, out.high), out)

    def _linear(self, step: Linear, x: Codes, out: Reading | None) -> Any:
        made = torch_run.linear(x.steps, self._dense(step, x.reading, out), out)
        return made if out is None else Codes(made, out)

    def _dense(self, step: Linear, read: Reading, out: Reading | None) -> torch_run.Dense:
        """What the layer's parameters make of it."""
        layer = self.layer(step.layer)
        weight = layer.codes()
        if _channels_last(self.program, step.x):
            weight = weight.reshape(layer.shape).movedim(1, -1).flatten(1)
        return torch_run.dense(weight, layer.bias_codes(read.scale), layer.scale(), int(layer.most) + 1, read, out)

    def _function(self, step: Table | Lookup, x: Codes, out: Reading | None) -> Codes:
        assert out is not None
        table, slope, lowest = self.tables[step.out]
        return Codes(torch_run.lookup(x.steps, table, slope, lowest - x.reading.zero_point), out)

    def draw(self, rows: dict[str, Any], count: int, length: int, generator: torch.Generator) -> torch.Tensor:
        """[count] of the rows to learn from at one step; length belongs to networks that remember."""
        return torch.randint(len(next(iter(rows.values()))), (count,), generator=generator)

    def all(self, rows: dict[str, Any]) -> torch.Tensor:
        """Every row."""
        return torch.arange(len(next(iter(rows.values()))))

    def refresh(self, rows: dict[str, Any]) -> None:
        """What depends on the weights in rows, brought up to them: nothing, where nothing is remembered."""


def _split(program: Program) -> tuple[list[Step], list[Step]]:
    """(steps that depend on no weight and on nothing remembered, the others)."""
    trained = {s.input for s in program.state}
    head: list[Step] = []
    body: list[Step] = []
    for step in program.steps:
        late = isinstance(step, Linear | Patches) or any(i in trained for i in reads(step))
        if late and isinstance(step, Float) and step.op not in FLOATS:
            raise FewbitError(f"value {step.out}: {step.op} behind a quantized layer cannot be trained; use another method")
        (body if late else head).append(step)
        trained |= {step.out} if late else set()
    return head, body


def _formats(program: Program) -> dict[str, IntFormat]:
    """Of the registers of codes, those that were only moved too."""
    made = {s.out: getattr(s, "format", None) for s in program.steps}
    found = {s.input: fmt for s in program.state if isinstance(fmt := made.get(s.output), IntFormat)}
    for step in program.steps:
        fmt = getattr(step, "format", None)
        if not isinstance(fmt, IntFormat) and isinstance(step, Float):
            fmt = next((found[i] for i in reads(step) if i in found and step.out in program.readings), None)
        if isinstance(fmt, IntFormat):
            found[step.out] = fmt
    return found


def reads(step: Step) -> list[str]:
    """The registers that a step reads."""
    if isinstance(step, Float):
        return [i for i in step.inputs if isinstance(i, str)]
    return [getattr(step, k) for k in ("x", "a", "b") if hasattr(step, k)]


def needed(steps: Sequence[Step], outputs: Iterable[str]) -> set[str]:
    """The registers that lead to outputs, themselves included."""
    found = set(outputs)
    for step in reversed(steps):
        found |= set(reads(step)) if step.out in found else set()
    return found


def _channels_last(program: Program, register: str) -> bool:
    return any(isinstance(s, Patches) and s.out == register and s.channels_last for s in program.steps)


def _table(step: Table | Lookup, out: Reading | None) -> tuple[torch.Tensor, torch.Tensor, int]:
    """(the steps that every input code gives, its slope, the lowest input code)."""
    assert out is not None
    if isinstance(step, Lookup):
        codes, values, lowest, reach, ratio = step.table, step.table.astype(np.float64), step.lowest, 1, 1.0
    else:
        made, ratio = unary.evaluate(unary.CODES, step.segments), float(step.segments.scale) / out.scale
        codes = semantics.requantize(made, step.m, step.shift, step.zero_point, step.format)
        values, lowest, reach = made.astype(np.float64), -32768, SMOOTH
    padded = np.pad(values, reach, mode="edge")
    slope = (padded[2 * reach :] - padded[: -2 * reach]) / (2 * reach) * ratio
    slope[np.rint(values * ratio) != np.clip(np.rint(values * ratio), out.low, out.high)] = 0.0
    steps = codes.astype(np.float32) - out.zero_point
    return torch.tensor(steps), torch.tensor(slope, dtype=torch.float32), lowest


def _gather(steps: torch.Tensor, step: Patches) -> torch.Tensor:
    which = torch.from_numpy(patches.numbers(tuple(steps.shape[1:]), step.window, step.channels_last))
    flat = torch.cat([steps.flatten(1), torch.zeros(len(steps), 1)], 1)
    return flat[:, which]


def _float(step: Float, inputs: list[Any]) -> Any:
    """A float operator; one that only moves values does it with codes."""
    codes = [i for i in inputs if isinstance(i, Codes)]
    args = [i.steps if isinstance(i, Codes) else torch.tensor(i) if isinstance(i, np.ndarray) else i for i in inputs]
    made = FLOATS[step.op](step.attributes, *args)
    return Codes(made, codes[0].reading) if codes else made
