"""A Program made flat: registers of rows and steps over them, every move a copy with its runs, for engines that cannot shape.

Only what the outputs need is kept. Every register is rows of `count` vectors of `inner` elements, a vector padded to `block`.
Whatever moves values about (Transpose, Slice, Concat, …) is done here once to the elements' numbers, and becomes one copy.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from fewbit.engine.flat import Flat, Layout, Register, runs
from fewbit.engine.float_ops import MOVES, OPS
from fewbit.engine.program import Add, Dequantize, Float, Linear, Lookup, Multiply, Patches, Program, Quantize, Rescale, Table
from fewbit.engine.registers import Registers, behind_batch, inputs_of
from fewbit.errors import Unsupported
from fewbit.graph import patches

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
BY_ROW = {*BINARY, *UNARY, "Clip", "Cast", "Gemm", "MatMul", "Reshape", "Flatten", "Identity"}  # a row's own whatever is below it


def flatten(program: Program, block: int, patches: bool = True) -> Flat:
    """Refuses by name what cannot be made flat. patches: what a Conv sees lies in a register, where one multiplication finds it;
    otherwise (vectors one behind the other, block 1) a Conv is one call that gathers a patch at a time."""
    return _Flattener(program, block, patches).flat()


class _Flattener(Registers):
    def __init__(self, program: Program, block: int, patches: bool):
        super().__init__(program, block)
        self.patches = patches

    def flat(self) -> Flat:
        for name, shape in self.program.inputs.items():
            self.made[name] = self._new(shape, self.program.input_dtypes[name])
        for name in self.program.outputs:
            if self.in_rows(name):
                raise Unsupported(f"output {name}: its first dimension is not the batch")
        for name in self._computed():
            self._need(name)
        outputs = [self._need(name) for name in self.program.outputs]
        return Flat(self.registers, [self.made[name] for name in self.program.inputs], outputs, self.calls)

    def _computed(self) -> list[str]:
        """What the outputs need and is no mere move, in order: each is made before what reads it, however deep the graph is."""
        needed, found = set(self.program.outputs), []
        for step in reversed(self.program.steps):
            if step.out not in needed or step.out not in self.batched or self.is_repeated(step.out):
                continue
            moved = isinstance(step, Float) and step.op in MOVING
            needed.update(inputs_of(step)[:1] if moved else inputs_of(step))
            found += [] if moved or isinstance(step, Patches) else [step.out]
        return found[::-1]

    def _make(self, step) -> Register:
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
                three = (a.id, b.id, out.id)
                if isinstance(step, Add):
                    self._step("add", three, *step.zeros, step.m_a, step.m_b, step.shift, step.zero_point)
                else:
                    self._step("multiply", three, *step.zeros, step.m, step.shift, step.zero_point)
                return out
        x = self._need(step.x)
        dtype = np.dtype(np.float32 if isinstance(step, Dequantize) else step.format.dtype)
        out = self._new(x.shape, dtype, x.layout)
        ids = (x.id, out.id)
        match step:
            case Quantize():
                self._step("quantize", ids, np.array([step.scale], np.float32), step.zero_point)
            case Table():
                c = step.segments.c
                rest = (step.segments.guard, step.m, step.shift, step.zero_point)
                self._step("table", ids, c.shape[1], c.shape[0] - 1, c.astype(np.int16).reshape(-1), *rest)
            case Lookup():
                self._step("lookup", ids, step.table.astype(np.int32))
            case Rescale():
                self._step("rescale", ids, step.zero_input, step.m, step.shift, step.zero_point)
            case Dequantize():
                scale = np.asarray(step.scale, np.float32).reshape(-1)
                if scale.size > 1:
                    rows = np.broadcast_to(step.scale, x.shape).reshape(x.layout.count, x.layout.inner)
                    scale = np.pad(rows, ((0, 0), (0, x.layout.stride - x.layout.inner))).reshape(-1)
                self._step("dequantize", ids, step.zero_point, scale)
        return out

    def _operand(self, name: str, step) -> Register:
        """An operand of the step, broadcast to its output."""
        r, shape = self._need(name), self._shape(step.out)
        first = next((self._need(k) for k in (step.a, step.b) if k in self.batched and self._shape(k) == shape), None)
        return self._broadcast(r, name, shape, first.layout if first else self._layout(1, int(np.prod(shape))))

    def _linear(self, step: Linear) -> Register:
        shape, weight = self._shape(step.out), step.weight
        count, before = int(np.prod(shape[:-1])), self.makers.get(step.x)
        if not self.patches and isinstance(before, Patches) and len(before.window.kernel) <= 2:
            return self._conv_call(step, before)
        source, order = self._unmoved(step.x) if count == 1 else (None, np.zeros(0, int))
        if source is not None and np.array_equal(np.sort(order), np.arange(source.layout.elements)):
            x, weight = source, weight[:, np.argsort(order)]  # instead of the codes, the weights are moved, here and once
        else:
            x = self._need(step.x)
        x = x if self.block == 1 else self._vectors(x, count)
        dtype = np.dtype(np.float32 if step.format is None else step.format.dtype)
        out = self._new(shape, dtype, self._layout(count, shape[-1]))
        self._step("linear", (x.id, out.id), *layer_arguments(step, weight))
        return out

    def _unmoved(self, name: str) -> tuple[Register, np.ndarray]:
        """The register before its elements were only moved about, and which of them each moved one is."""
        step = self.makers.get(name)
        if not isinstance(step, Float) or step.op not in MOVES or not isinstance(step.inputs[0], str):
            r = self._need(name)
            return r, np.arange(r.layout.elements)
        r, numbers = self._unmoved(step.inputs[0])
        rest = [self.one[i] if isinstance(i, str) else i for i in step.inputs[1:]]
        return r, OPS[step.op](step.attributes, numbers.reshape(self.one[step.inputs[0]].shape), *rest).reshape(-1)

    def _conv_call(self, step: Linear, seen: Patches) -> Register:
        """One call: (image, room for a patch, output), the geometry, then what a layer needs."""
        x, shape = self._need(seen.x), self._shape(step.out)
        w, flat = seen.window, len(seen.window.kernel) == 1
        *space, channels = x.shape if seen.channels_last else (*x.shape[1:], x.shape[0])
        sizes = [shape[:-1], w.strides, w.pads[: len(w.kernel)], w.kernel, w.dilations, space]
        even = [0 if k == 2 else 1 for k in range(len(sizes))]  # a row of values is an image one high
        geometry = [v for pair, one in zip(sizes, even, strict=True) for v in ([one, *pair] if flat else pair)]
        patch = self._new((step.weight.shape[1],), x.dtype)
        dtype = np.dtype(np.float32 if step.format is None else step.format.dtype)
        out = self._new(shape, dtype, self._layout(int(np.prod(shape[:-1])), shape[-1]))
        first = (np.array([*geometry, channels], np.int32), int(seen.channels_last), seen.fill)
        self._step("conv", (x.id, patch.id, out.id), *first, *layer_arguments(step, step.weight))
        return out

    def _float(self, step: Float) -> Register:
        op, names = step.op, [i for i in step.inputs if i is not None]
        if op not in BY_ROW and any(isinstance(i, str) and self.in_rows(i) for i in [*names, step.out]):
            raise Unsupported(f"value {step.out}: {op} of what has its rows below each other is not run by the engine")
        if op == "Identity":
            return self._need(names[0])
        if op in MOVING:
            return self._move(step)
        if op == "Concat":
            return self._concat(step)
        self._check_types(step)
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
            self._step("unary", (x.id, out.id), list(UNARY).index(op), alpha)
            return out
        special: dict[str, Callable[[Float], Register]] = {
            "Cast": self._cast,
            "Gemm": self._gemm,
            "MatMul": self._gemm,
            "Conv": self._conv,
            "ArgMax": self._argmax,
            "ReduceMean": self._mean,
            "Softmax": self._softmax,
            "LogSoftmax": self._softmax,
        }
        if op not in special:
            raise Unsupported(f"value {step.out}: operator {op} is not run by the engine")
        return special[op](step)

    def _check_types(self, step: Float) -> None:
        """Flat engines compute in float32 alone; integers are moved, or cast to it."""
        kinds = [self.one[i].dtype for i in step.inputs if isinstance(i, str) and i in self.batched]
        made = self.one[step.out].dtype
        if step.op == "Cast":
            fits = made in (kinds[0], np.float32)
        else:
            fits = all(k == np.float32 for k in kinds) and (made == np.float32 or step.op == "ArgMax")
        if not fits:
            what = f"{step.op} of {', '.join(str(k) for k in kinds)}" + (f" to {made}" if step.op == "Cast" else "")
            raise Unsupported(f"value {step.out}: {what} is not run by the engine")

    def _move(self, step: Float) -> Register:
        """What moves values does to their numbers what it would do to them."""
        if any(isinstance(i, str) and i in self.live for i in step.inputs[1:]):
            raise Unsupported(f"value {step.out}: {step.op} by what is computed from the observation is not run by the engine")
        x = self._need(step.inputs[0])
        numbers = np.arange(x.layout.elements).reshape(self.one[step.inputs[0]].shape)
        rest = [self.one[i] if isinstance(i, str) else i for i in step.inputs[1:]]
        moved = OPS[step.op](step.attributes, numbers, *rest).reshape(-1)
        shape = self._shape(step.out)
        if np.array_equal(moved, np.arange(x.layout.elements)):
            return Register(x.id, shape, x.layout, x.dtype)
        return self._copied([(x, moved)], shape)

    def _concat(self, step: Float) -> Register:
        shape, rank = self._shape(step.out), len(self.one[step.out].shape)
        axis = step.attributes["axis"] % rank
        if axis == 0 or any(not isinstance(i, str) or i not in self.batched for i in step.inputs):
            raise Unsupported(f"value {step.out}: a Concat with constants or over the batch is not run by the engine")
        parts = [self._need(i) for i in step.inputs]
        starts = np.cumsum([0, *(p.layout.elements for p in parts)])
        numbers = [np.arange(p.layout.elements).reshape(1, *p.shape) + s for p, s in zip(parts, starts, strict=False)]
        order = np.concatenate(numbers, axis).reshape(-1)
        flat = self._copied([(p, np.arange(p.layout.elements)) for p in parts], shape)
        return flat if np.array_equal(order, np.arange(len(order))) else self._copied([(flat, order)], shape)

    def _operate(self, op: str, a, b, step: Float, again: int | None = None) -> Register:
        """One float operation of two values, each a name, an array or a register made before."""
        shape = self._shape(step.out)
        known = [v if isinstance(v, Register) else self._need(v) if isinstance(v, str) else None for v in (a, b)]
        live = [r for r, v in zip(known, (a, b), strict=True) if r is not None and (not isinstance(v, str) or v in self.batched)]
        layout = next((r.layout for r in live if r.shape == shape), self._layout(1, max(int(np.prod(shape)), 1)))
        ids = [self._float_operand(v, r, shape, layout).id for v, r in zip((a, b), known, strict=True)]
        out = self._new(shape, np.dtype(np.float32), layout)
        self._step("binary", (*ids, out.id), BINARY.index(op))
        return out

    def _float_operand(self, value, register: Register | None, shape: tuple[int, ...], layout: Layout) -> Register:
        if isinstance(value, str) and register is not None:
            return self._broadcast(register, value, shape, layout)
        if register is not None:
            return register
        held = np.broadcast_to(behind_batch(value, len(shape)), shape)
        return self._new(shape, np.dtype(np.float32), layout, held.astype(np.float32))

    def _clip(self, step: Float) -> Register:
        x, *limits = step.inputs
        out = self._need(x)
        for op, limit in zip(("Max", "Min"), limits, strict=False):
            if limit is not None:
                out = self._operate(op, out, limit, step)
        return out

    def _cast(self, step: Float) -> Register:
        x, dtype = self._need(step.inputs[0]), self.one[step.out].dtype
        if x.dtype == dtype:
            return x
        out = self._new(x.shape, dtype, x.layout)
        self._step("cast", (x.id, out.id))
        return out

    def _gemm(self, step: Float) -> Register:
        x, w, *b = step.inputs
        b = [i for i in b if i is not None]
        a = step.attributes
        if not isinstance(x, str) or not isinstance(w, np.ndarray) or (b and not isinstance(b[0], np.ndarray)):
            raise Unsupported(f"value {step.out}: a {step.op} of two computed values is not run by the engine")
        if w.ndim != 2 or a.get("transA") or a.get("alpha", 1.0) != 1 or a.get("beta", 1.0) != 1:
            raise Unsupported(f"value {step.out}: a {step.op} that is no plain dense layer is not run by the engine")
        if b and b[0].size not in (1, b[0].shape[-1]):
            raise Unsupported(f"value {step.out}: a constant that differs along the batch is not run by the engine")
        w = w if step.attributes.get("transB") else w.T
        shape = self._shape(step.out)
        bias = np.broadcast_to(b[0].reshape(-1) if b else np.float32(0), shape[-1:])
        return self._linear_floats(self._need(x), w, bias, shape)

    def _linear_floats(self, x: Register, w: np.ndarray, bias: np.ndarray, shape: tuple[int, ...]) -> Register:
        count = int(np.prod(shape[:-1]))
        source = self._vectors(x, count)
        out = self._new(shape, np.dtype(np.float32), self._layout(count, shape[-1]))
        bias = np.broadcast_to(bias, shape[-1:]).astype(np.float32)
        self._step("linear_floats", (source.id, out.id), w.astype(np.float32), bias)
        return out

    def _conv(self, step: Float) -> Register:
        name, w, *b = step.inputs
        if not isinstance(w, np.ndarray) or (b and b[0] is not None and not isinstance(b[0], np.ndarray)):
            raise Unsupported(f"value {step.out}: a Conv with computed weights is not run by the engine")
        x, seen = self._need(name), patches.window(step.attributes, w.shape[2:], step.out)
        which = patches.numbers(x.shape, seen, False)
        patched = self._copied_floats(x, which)
        bias = b[0] if b and b[0] is not None else np.zeros(len(w), np.float32)
        y = self._linear_floats(patched, w.reshape(len(w), -1), bias, (*which.shape[:-1], len(w)))
        order = np.moveaxis(np.arange(y.layout.elements).reshape(y.shape), -1, 0).reshape(-1)
        return self._copied([(y, order)], self._shape(step.out))

    def _copied_floats(self, x: Register, which: np.ndarray) -> Register:
        """Patches of floats, whose padding is one more register's zero."""
        if (which >= 0).all():
            return self._patched(x, which, 0)
        zero = self._new((1,), x.dtype, held=np.zeros(1, np.float32))
        out = self._patched(x, np.where(which < 0, 0, which), 0)
        self.calls.pop()
        to, flat = out.layout.places(), which.reshape(-1)
        for r, some in ((x, flat >= 0), (zero, flat < 0)):
            source = r.layout.places()[np.maximum(flat[some], 0)]
            self._step("copy", (r.id, out.id), 0, runs(to[some], source))
        return out

    def _argmax(self, step: Float) -> Register:
        if step.attributes.get("select_last_index"):
            raise Unsupported(f"value {step.out}: an ArgMax that takes the last of several is not run by the engine")
        return self._reduce("argmax", step, (step.attributes.get("axis", 0),))

    def _mean(self, step: Float) -> Register:
        axes = step.inputs[1] if len(step.inputs) > 1 else None
        if not isinstance(axes, np.ndarray) or not axes.size:
            raise Unsupported(f"value {step.out}: a ReduceMean over all axes, or over computed ones, is not run by the engine")
        return self._reduce("mean", step, tuple(int(i) for i in axes))

    def _reduce(self, operation: str, step: Float, axes: tuple[int, ...]) -> Register:
        """ArgMax or mean over the axes, which are moved last."""
        source, _ = self._moved_last(step, axes)
        out = self._new(self._shape(step.out), self.one[step.out].dtype, self._layout(1, source.layout.count))
        self._step(operation, (source.id, out.id))
        return out

    def _moved_last(self, step: Float, axes: tuple[int, ...]) -> tuple[Register, np.ndarray]:
        """(the first input as vectors over these axes, the numbers of its elements in that order)."""
        x, rank = self._need(step.inputs[0]), len(self.one[step.inputs[0]].shape)
        axes = tuple(a % rank for a in axes)
        if 0 in axes:
            raise Unsupported(f"value {step.out}: {step.op} over the batch is not run by the engine")
        kept = [a for a in range(1, rank) if a not in axes]
        numbers = np.arange(x.layout.elements).reshape(1, *x.shape).transpose([0, *kept, *axes]).reshape(-1)
        count = max(int(np.prod([x.shape[a - 1] for a in kept])), 1)
        if np.array_equal(numbers, np.arange(x.layout.elements)):
            return self._vectors(x, count), numbers
        return self._copied([(x, numbers)], x.shape, self._layout(count, x.layout.elements // count)), numbers

    def _softmax(self, step: Float) -> Register:
        """Over one axis, which is moved last and back again."""
        source, numbers = self._moved_last(step, (step.attributes.get("axis", -1),))
        shape, layout = self._shape(step.out), self._layout(source.layout.count, source.layout.inner)
        out = self._new(shape, self.one[step.out].dtype, layout)
        self._step("softmax", (source.id, out.id), int(step.op == "LogSoftmax"))
        back = np.argsort(numbers)
        return out if (np.diff(numbers) == 1).all() else self._copied([(out, back)], shape)


def layer_arguments(step: Linear, weight: np.ndarray) -> tuple[Any, ...]:
    """A layer's arguments: weight [out, in], bias, zero point of its input, whether it leaves in floats, and how it ends."""
    finish: tuple[Any, ...] = (step.zero_point, step.m, step.shift)
    if step.exit_scale is not None:
        finish = (np.broadcast_to(step.exit_scale.astype(np.float32), len(weight)),)
    return (weight.astype(np.int16), step.bias.astype(np.int64), step.zero_input, int(step.exit_scale is not None), *finish)
