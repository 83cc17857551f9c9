"""A Program as the flat bytes that the native engine reads (native/program.h), and the engine over them.

Only what the outputs need is written. Every register is rows of `count` vectors of `inner` elements, a vector padded to 16.
Whatever moves values about (Transpose, Slice, Concat, …) is done here once to the elements' numbers, and becomes one copy.
"""

import os
import struct
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fewbit.engine import patches, reference
from fewbit.engine.float_ops import MOVES, OPS
from fewbit.engine.program import Add, Dequantize, Float, Linear, Lookup, Multiply, Patches, Program, Quantize, Rescale, Table
from fewbit.errors import FewbitError

MAGIC = 0x3130544942574546  # "FEWBIT01"
BLOCK = 16
TYPES = [np.dtype(t) for t in ("uint8", "int8", "uint16", "int16", "int32", "int64", "float32", "float64")]
OPERATIONS = ["copy", "quantize", "linear", "linear_floats", "table", "lookup", "rescale", "add", "multiply", "dequantize"] + [
    "binary",
    "unary",
    "argmax",
    "mean",
    "cast",
]  # in the order of steps.cpp
BINARY = ["Add", "Sub", "Mul", "Div", "Min", "Max"]
UNARY = {
    "Relu": 0.0,
    "Neg": 0.0,
    "Abs": 0.0,
    "Tanh": 0.0,
    "Sigmoid": 0.0,
    "Exp": 0.0,
    "Elu": 1.0,
    "Softplus": 0.0,
    "LeakyRelu": 0.01,
}  # with the alpha that ONNX defaults to
MOVING = MOVES | {"Expand", "Gather"}


def load(program: Program, instruction_set: str | None = None):
    """The native engine of a program. instruction_set: a name from fewbit._native.available(); FEWBIT_ISA, or the best."""
    try:
        from fewbit import _native
    except ImportError as e:
        raise FewbitError(f"the native engine was not built ({e}); reinstall fewbit, or use executor='reference'") from None
    flat, outputs = flatten(program)
    name = instruction_set or os.environ.get("FEWBIT_ISA", "")
    return _native.Engine(flat, {k: tuple(v) for k, v in program.inputs.items()}, outputs, name)


def flatten(program: Program) -> tuple[bytes, list[tuple[int, ...]]]:
    """(the bytes, the outputs' shapes without the batch); refuses by name what the native engine cannot run."""
    return _Writer(program).bytes()


@dataclass(frozen=True)
class _Layout:
    count: int
    inner: int

    @property
    def stride(self) -> int:
        return -(-self.inner // BLOCK) * BLOCK

    @property
    def elements(self) -> int:
        return self.count * self.inner

    def places(self) -> np.ndarray:
        """Where each element lies in a row's storage."""
        e = np.arange(self.elements)
        return e // self.inner * self.stride + e % self.inner


@dataclass(frozen=True)
class _Register:
    id: int
    shape: tuple[int, ...]  # without the batch
    layout: _Layout
    dtype: np.dtype


class _Writer:
    def __init__(self, program: Program):
        self.program = program
        self.one, self.two = (_probe(program, n) for n in (1, 2))
        self.makers = {s.out: s for s in program.steps}
        self.batched = set(program.inputs)
        for s in program.steps:
            if any(i in self.batched for i in _inputs(s)):
                self.batched.add(s.out)
        self.registers: list[list[int]] = []
        self.steps: list[list[int]] = []
        self.data = bytearray()
        self.made: dict[str, _Register] = {}

    def bytes(self) -> tuple[bytes, list[tuple[int, ...]]]:
        for name, shape in self.program.inputs.items():
            self.made[name] = self._new(shape, self.program.input_dtypes[name])
        inputs = [self.made[name].id for name in self.program.inputs]
        outputs = [self._need(name) for name in self.program.outputs]
        words = [len(self.registers), *(w for r in self.registers for w in r)]
        words += [len(inputs), *inputs, len(outputs), *(o.id for o in outputs)]
        words += [len(self.steps), *(w for s in self.steps for w in s)]
        head = struct.pack(f"<qq{len(words)}q", MAGIC, len(words), *words)
        return head + bytes(self.data), [o.shape for o in outputs]

    # ---- registers

    def _new(self, shape: tuple[int, ...], dtype: np.dtype, layout: _Layout | None = None, held: np.ndarray | None = None):
        if dtype not in TYPES:
            raise FewbitError(f"a tensor of {dtype} is not run by the native engine; use executor='reference'")
        layout = layout or _Layout(1, max(int(np.prod(shape)), 1))
        offset = -1
        if held is not None:
            row = np.zeros((layout.count, layout.stride), dtype)
            row[:, : layout.inner] = held.reshape(layout.count, layout.inner)
            offset = self._array(row)[0]
        self.registers.append([TYPES.index(np.dtype(dtype)), layout.count, layout.inner, offset])
        return _Register(len(self.registers) - 1, tuple(shape), layout, np.dtype(dtype))

    def _array(self, a: np.ndarray) -> tuple[int, int]:
        """Two words: where it lies in the data, and its length."""
        self.data += bytes(-len(self.data) % 8)
        at = len(self.data)
        self.data += np.ascontiguousarray(a).tobytes()
        return at, a.size

    def _step(self, operation: str, *arguments: int) -> None:
        self.steps.append([OPERATIONS.index(operation), len(arguments), *(int(a) for a in arguments)])

    def _shape(self, name: str) -> tuple[int, ...]:
        one, two = self.one[name].shape, self.two[name].shape
        if name in self.batched and (not one or (one[0], two[0]) != (1, 2) or one[1:] != two[1:]):
            raise FewbitError(f"value {name}: its first dimension is not the batch; use executor='reference'")
        return one[1:] if name in self.batched else one

    def _need(self, name: str) -> _Register:
        if name not in self.made:
            if name not in self.batched:
                value = self.one[name]
                self.made[name] = self._new(value.shape, value.dtype, held=value)
            else:
                self.made[name] = self._make(self.makers[name])
        return self.made[name]

    def _vectors(self, r: _Register, count: int) -> _Register:
        """The same elements as count vectors; a copy where they lie otherwise."""
        layout = _Layout(count, r.layout.elements // count)
        return r if r.layout == layout else self._copied([(r, np.arange(layout.elements))], r.shape, layout)

    def _copied(self, parts: list[tuple[_Register, np.ndarray]], shape: tuple[int, ...], layout: _Layout | None = None, fill=0):
        """A new register whose elements are the parts' numbered ones, one part after the other; -1 is the fill."""
        out = self._new(shape, parts[0][0].dtype, layout)
        to, start = out.layout.places(), 0
        for r, numbers in parts:
            source = np.where(numbers < 0, -1, r.layout.places()[np.maximum(numbers, 0)])
            runs = _runs(to[start : start + len(numbers)], source)
            self._step("copy", r.id, out.id, fill, *self._array(runs))
            start += len(numbers)
        return out

    def _broadcast(self, r: _Register, name: str, shape: tuple[int, ...], layout: _Layout) -> _Register:
        """r as an operand of that shape and layout."""
        if name not in self.batched:
            value = np.broadcast_to(_behind_batch(self.one[name], len(shape)), shape)
            return self._new(shape, r.dtype, layout, value)
        if (r.shape, r.layout) == (shape, layout):
            return r
        numbers = np.arange(r.layout.elements).reshape((1,) * (len(shape) - len(r.shape)) + r.shape)
        return self._copied([(r, np.broadcast_to(numbers, shape).reshape(-1))], shape, layout)

    def _patched(self, x: _Register, which: np.ndarray, fill: int) -> _Register:
        layout = _Layout(int(np.prod(which.shape[:-1])), which.shape[-1])
        return self._copied([(x, which.reshape(-1))], which.shape, layout, fill)

    # ---- steps

    def _make(self, step) -> _Register:
        match step:
            case Float():
                return self._float(step)
            case Linear():
                return self._linear(step)
            case Patches():
                x = self._need(step.x)
                which = patches.numbers(x.shape, step.window, step.channels_last)
                return self._patched(x, which, step.fill)
            case Add() | Multiply():
                a, b = (self._operand(k, step) for k in (step.a, step.b))
                out = self._new(a.shape, np.dtype(step.format.dtype), a.layout)
                both = [a.id, b.id, out.id, *step.zeros]
                if isinstance(step, Add):
                    self._step("add", *both, step.m_a, step.m_b, step.shift, step.zero_point)
                else:
                    self._step("multiply", *both, step.m, step.shift, step.zero_point)
                return out
        x = self._need(step.x)
        dtype = np.dtype(np.float32 if isinstance(step, Dequantize) else step.format.dtype)
        out = self._new(x.shape, dtype, x.layout)
        match step:
            case Quantize():
                self._step("quantize", x.id, out.id, *self._array(np.array([step.scale], np.float32)), step.zero_point)
            case Table():
                c = step.segments.c
                self._step("table", x.id, out.id, c.shape[1], c.shape[0] - 1, *self._array(c.astype(np.int16)))
                self._extend(step.segments.guard, step.m, step.shift, step.zero_point)
            case Lookup():
                self._step("lookup", x.id, out.id, *self._array(step.table.astype(np.int32)))
            case Rescale():
                self._step("rescale", x.id, out.id, step.zero_input, step.m, step.shift, step.zero_point)
            case Dequantize():
                scale = np.asarray(step.scale, np.float32).reshape(-1)
                if scale.size > 1:
                    rows = np.broadcast_to(step.scale, x.shape).reshape(x.layout.count, x.layout.inner)
                    scale = np.pad(rows, ((0, 0), (0, x.layout.stride - x.layout.inner))).reshape(-1)
                self._step("dequantize", x.id, out.id, step.zero_point, *self._array(scale))
        return out

    def _extend(self, *more: int) -> None:
        self.steps[-1] += more
        self.steps[-1][1] += len(more)

    def _operand(self, name: str, step) -> _Register:
        """An operand of the step, broadcast to its output."""
        r, shape = self._need(name), self._shape(step.out)
        first = next((self._need(k) for k in (step.a, step.b) if k in self.batched and self._shape(k) == shape), None)
        return self._broadcast(r, name, shape, first.layout if first else _Layout(1, int(np.prod(shape))))

    def _linear(self, step: Linear) -> _Register:
        x, shape = self._need(step.x), self._shape(step.out)
        count = int(np.prod(shape[:-1]))
        x = self._vectors(x, count)
        dtype = np.dtype(np.float32 if step.format is None else step.format.dtype)
        out = self._new(shape, dtype, _Layout(count, shape[-1]))
        arrays = [*self._array(step.weight.astype(np.int16)), *self._array(step.bias.astype(np.int64))]
        self._step("linear", x.id, out.id, *arrays, step.zero_input, int(step.exit_scale is not None))
        if step.exit_scale is not None:
            self._extend(*self._array(np.broadcast_to(step.exit_scale.astype(np.float32), shape[-1:])))
        else:
            assert step.m is not None and step.shift is not None
            pairs = [*self._array(step.m.astype(np.int64)), *self._array(step.shift.astype(np.int64))]
            self._extend(step.zero_point, *pairs)
        return out

    def _float(self, step: Float) -> _Register:
        op, names = step.op, [i for i in step.inputs if i is not None]
        if op == "Identity":
            return self._need(names[0])
        if op in MOVING:
            return self._move(step)
        if op == "Concat":
            return self._concat(step)
        if op in BINARY:
            out = self._operate(op, names[0], names[1], step)
            for k, other in enumerate(names[2:]):
                out = self._operate(op, out, other, step, k)
            return out
        if op == "Clip":
            return self._clip(step)
        if op in UNARY:
            x = self._need(names[0])
            out = self._new(x.shape, np.dtype(np.float32), x.layout)
            alpha = np.array([step.attributes.get("alpha", UNARY[op])], np.float32)
            self._step("unary", list(UNARY).index(op), x.id, out.id, *self._array(alpha))
            return out
        special: dict[str, Callable[[Float], _Register]] = {
            "Cast": self._cast,
            "Gemm": self._gemm,
            "MatMul": self._gemm,
            "Conv": self._conv,
            "ArgMax": lambda s: self._reduce("argmax", s, (s.attributes.get("axis", 0),)),
            "ReduceMean": lambda s: self._reduce("mean", s, tuple(int(i) for i in s.inputs[1])),
        }
        if op not in special:
            raise FewbitError(f"operator {op} is not run by the native engine; use executor='reference' or 'onnxruntime'")
        return special[op](step)

    def _move(self, step: Float) -> _Register:
        """What moves values does to their numbers what it would do to them."""
        x = self._need(step.inputs[0])
        numbers = np.arange(x.layout.elements).reshape(1, *x.shape)
        rest = [self.one[i] if isinstance(i, str) else i for i in step.inputs[1:]]
        moved = OPS[step.op](step.attributes, numbers, *rest).reshape(-1)
        shape = self._shape(step.out)
        if np.array_equal(moved, np.arange(x.layout.elements)):
            return _Register(x.id, shape, x.layout, x.dtype)
        return self._copied([(x, moved)], shape)

    def _concat(self, step: Float) -> _Register:
        shape, rank = self._shape(step.out), len(self.one[step.out].shape)
        axis = step.attributes["axis"] % rank
        if axis == 0 or any(not isinstance(i, str) or i not in self.batched for i in step.inputs):
            raise FewbitError(f"value {step.out}: a Concat with constants or over the batch needs executor='reference'")
        parts = [self._need(i) for i in step.inputs]
        starts = np.cumsum([0, *(p.layout.elements for p in parts)])
        numbers = [np.arange(p.layout.elements).reshape(1, *p.shape) + s for p, s in zip(parts, starts, strict=False)]
        order = np.concatenate(numbers, axis).reshape(-1)
        flat = self._copied([(p, np.arange(p.layout.elements)) for p in parts], shape)
        return flat if np.array_equal(order, np.arange(len(order))) else self._copied([(flat, order)], shape)

    def _operate(self, op: str, a, b, step: Float, again: int | None = None) -> _Register:
        """One float operation of two values, each a name, an array or a register made before."""
        shape = self._shape(step.out)
        known = [v if isinstance(v, _Register) else self._need(v) if isinstance(v, str) else None for v in (a, b)]
        live = [r for r, v in zip(known, (a, b), strict=True) if r is not None and (not isinstance(v, str) or v in self.batched)]
        layout = next((r.layout for r in live if r.shape == shape), _Layout(1, max(int(np.prod(shape)), 1)))
        ids = [self._float_operand(v, r, shape, layout).id for v, r in zip((a, b), known, strict=True)]
        out = self._new(shape, np.dtype(np.float32), layout)
        self._step("binary", BINARY.index(op), *ids, out.id)
        return out

    def _float_operand(self, value, register: _Register | None, shape: tuple[int, ...], layout: _Layout) -> _Register:
        if isinstance(value, str) and register is not None:
            return self._broadcast(register, value, shape, layout)
        if register is not None:
            return register
        held = np.broadcast_to(_behind_batch(value, len(shape)), shape)
        return self._new(shape, np.dtype(np.float32), layout, held.astype(np.float32))

    def _clip(self, step: Float) -> _Register:
        x, *limits = step.inputs
        out = self._need(x)
        for op, limit in zip(("Max", "Min"), limits, strict=False):
            if limit is not None:
                out = self._operate(op, out, limit, step)
        return out

    def _cast(self, step: Float) -> _Register:
        x, dtype = self._need(step.inputs[0]), self.one[step.out].dtype
        if x.dtype == dtype:
            return x
        out = self._new(x.shape, dtype, x.layout)
        self._step("cast", x.id, out.id)
        return out

    def _gemm(self, step: Float) -> _Register:
        x, w, *b = step.inputs
        if not isinstance(w, np.ndarray) or (b and not isinstance(b[0], np.ndarray)):
            raise FewbitError(f"value {step.out}: a Gemm of two computed values needs executor='reference'")
        w = w if step.attributes.get("transB") else w.T
        shape = self._shape(step.out)
        bias = np.broadcast_to(b[0].reshape(-1) if b else np.float32(0), shape[-1:])
        return self._linear_floats(self._need(x), w, bias, shape)

    def _linear_floats(self, x: _Register, w: np.ndarray, bias: np.ndarray, shape: tuple[int, ...]) -> _Register:
        count = int(np.prod(shape[:-1]))
        source = self._vectors(x, count)
        out = self._new(shape, np.dtype(np.float32), _Layout(count, shape[-1]))
        arrays = [*self._array(w.astype(np.float32)), *self._array(np.broadcast_to(bias, shape[-1:]).astype(np.float32))]
        self._step("linear_floats", source.id, out.id, *arrays)
        return out

    def _conv(self, step: Float) -> _Register:
        name, w, *b = step.inputs
        if not isinstance(w, np.ndarray) or (b and b[0] is not None and not isinstance(b[0], np.ndarray)):
            raise FewbitError(f"value {step.out}: a Conv with computed weights needs executor='reference'")
        x, seen = self._need(name), patches.window(step.attributes, w.shape[2:], step.out)
        which = patches.numbers(x.shape, seen, False)
        patched = self._copied_floats(x, which)
        bias = b[0] if b and b[0] is not None else np.zeros(len(w), np.float32)
        y = self._linear_floats(patched, w.reshape(len(w), -1), bias, (*which.shape[:-1], len(w)))
        order = np.moveaxis(np.arange(y.layout.elements).reshape(y.shape), -1, 0).reshape(-1)
        return self._copied([(y, order)], self._shape(step.out))

    def _copied_floats(self, x: _Register, which: np.ndarray) -> _Register:
        """Patches of floats, whose padding is one more register's zero."""
        if (which >= 0).all():
            return self._patched(x, which, 0)
        zero = self._new((1,), x.dtype, held=np.zeros(1, np.float32))
        out = self._patched(x, np.where(which < 0, 0, which), 0)
        self.steps.pop()
        to, flat = out.layout.places(), which.reshape(-1)
        for r, some in ((x, flat >= 0), (zero, flat < 0)):
            source = r.layout.places()[np.maximum(flat[some], 0)]
            self._step("copy", r.id, out.id, 0, *self._array(_runs(to[some], source)))
        return out

    def _reduce(self, operation: str, step: Float, axes: tuple[int, ...]) -> _Register:
        """ArgMax or mean over the axes, which are moved last."""
        x, rank = self._need(step.inputs[0]), len(self.one[step.inputs[0]].shape)
        axes = tuple(a % rank for a in axes)
        if 0 in axes:
            raise FewbitError(f"value {step.out}: {step.op} over the batch needs executor='reference'")
        kept = [a for a in range(1, rank) if a not in axes]
        numbers = np.arange(x.layout.elements).reshape(1, *x.shape).transpose([0, *kept, *axes])
        count = max(int(np.prod([x.shape[a - 1] for a in kept])), 1)
        inner = x.layout.elements // count
        ordered = np.array_equal(numbers.reshape(-1), np.arange(x.layout.elements))
        source = self._vectors(x, count) if ordered else self._copied([(x, numbers.reshape(-1))], x.shape, _Layout(count, inner))
        out = self._new(self._shape(step.out), self.one[step.out].dtype, _Layout(1, count))
        self._step(operation, source.id, out.id)
        return out


def _probe(program: Program, rows: int) -> dict[str, np.ndarray]:
    """Every register for a batch of zeros: its shape, dtype, and value where no input reaches it."""
    return reference.run(program, {k: np.zeros((rows, *s), program.input_dtypes[k]) for k, s in program.inputs.items()})


def _inputs(step) -> list[str]:
    if isinstance(step, Float):
        return [i for i in step.inputs if isinstance(i, str)]
    return [step.a, step.b] if isinstance(step, Add | Multiply) else [step.x]


def _behind_batch(value: np.ndarray, rank: int) -> np.ndarray:
    """A constant operand without the batch dimension, if it has one."""
    value = np.asarray(value)
    if value.ndim > rank:
        if value.shape[0] != 1:
            raise FewbitError("a constant that differs along the batch needs executor='reference'")
        return value[0]
    return value


def _runs(to: np.ndarray, source: np.ndarray) -> np.ndarray:
    """int32 triples (to, from, length) of the stretches in which both advance by one; from -1: the fill."""
    if not len(to):
        return np.zeros(0, np.int32)
    filled = (source[1:] < 0) & (source[:-1] < 0)
    joined = (np.diff(to) == 1) & (filled | ((np.diff(source) == 1) & (source[:-1] >= 0)))
    starts = np.concatenate([[0], np.flatnonzero(~joined) + 1])
    lengths = np.diff(np.concatenate([starts, [len(to)]]))
    return np.stack([to[starts], source[starts], lengths], 1).astype(np.int32).reshape(-1)
