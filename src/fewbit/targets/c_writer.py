"""A flat program as C: each step one call of a kernel (c_templates/kernels), its arrays as constants, its registers as slots.

Registers lie in static buffers, one set of slots a type, reused where their contents are no longer needed.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from fewbit.engine.flat import TYPES, Call, Flat, Register
from fewbit.engine.flatten import BINARY, UNARY
from fewbit.engine.program import Program
from fewbit.errors import FewbitError
from fewbit.escape import c_identifier
from fewbit.targets.c_weights import bits_of, bound, pack, packed_type, reached

NAMES = ["u8", "i8", "u16", "i16", "i32", "i64", "f32", "f64"]  # of TYPES
C_TYPES = {
    "u8": "uint8_t", "i8": "int8_t", "u16": "uint16_t", "i16": "int16_t", "i32": "int32_t", "i64": "int32_t", "f32": "float",
}  # fmt: skip
SIZES = {"uint8_t": 1, "int8_t": 1, "uint16_t": 2, "int16_t": 2, "int32_t": 4, "int64_t": 8, "float": 4}
LIMITS = {"u8": (0, 255), "i8": (-128, 127), "u16": (0, 65535), "i16": (-32768, 32767)}
ROUNDING = ("linear", "table", "rescale", "add", "multiply")  # kernels that requantize, unless they leave in float


@dataclass(frozen=True)
class Constant:
    """One array in flash: its C type, its numbers, its bytes."""

    name: str
    type: str
    values: np.ndarray

    @property
    def bytes(self) -> int:
        return self.values.size * SIZES[self.type]


@dataclass(frozen=True)
class End:
    """An input or output: its name and C type, whether it is state, the expression behind it, whether it is written directly."""

    name: str
    type: str
    count: int
    register: str
    held: bool
    source: str
    direct: bool


class Writer:
    """Turns flat calls into C calls, collecting kernels, constants and slots on the way."""

    def __init__(self, program: Program, flat: Flat):
        self.program, self.flat = program, flat
        self.constants: list[Constant] = []
        self.kernels: dict[str, dict[str, Any]] = {}
        self.step = 0
        held = {s.input for s in program.state}
        names: dict[str, str] = {}
        for k in program.inputs:
            names[k] = c_identifier(k.removesuffix(".codes") if k in held else k, {n.lower() for n in names.values()})
        self.fields = {k: n for k, n in names.items() if k in held}
        self.input_names = list(names.values())
        self.parameters = self._parameters()
        self.slots: dict[tuple[str, int], int] = {}
        self.where = self._allocate()

    def inputs(self) -> list[End]:
        rows = zip(self.program.inputs, self.flat.inputs, self.input_names, strict=True)
        return [End(n, C_TYPES[_type(r)], r.layout.elements, k, k in self.fields, "", True) for k, r, n in rows]

    def outputs(self) -> list[End]:
        fields = {s.output: f"state->{self.fields[s.input]}" for s in self.program.state}
        rows = zip(self.program.outputs, self.flat.outputs, self._output_names(), strict=True)
        return [
            End(fields.get(k, n), C_TYPES[_type(r)], r.layout.elements, k, k in fields, self.where[r.id], r.id in self.direct)
            for k, r, n in rows
        ]

    def _output_names(self) -> list[str]:
        held = {s.output for s in self.program.state}
        count = sum(o not in held for o in self.program.outputs)
        return [f"action{k if count > 1 else ''}" for k in range(len(self.program.outputs))]

    def _parameters(self) -> dict[int, str]:
        """The registers that are the function's own arguments; what is remembered is written only when all is read."""
        rows = zip(self.program.inputs, self.flat.inputs, self.input_names, strict=True)
        found = {r.id: f"state->{n}" if k in self.fields else n for k, r, n in rows}
        self.direct: set[int] = set()
        held = {s.output for s in self.program.state}
        for k, r, n in zip(self.program.outputs, self.flat.outputs, self._output_names(), strict=True):
            if r.id not in found and r.held is None and k not in held:  # written straight into the caller's array
                found[r.id] = n
                self.direct.add(r.id)
        return found

    def _allocate(self) -> dict[int, str]:
        """Each register's C expression; a slot of its type, free again after its last use."""
        last: dict[int, int] = {}
        for k, call in enumerate(self.flat.calls):
            for r in call.registers:
                last[r] = k
        last |= {r.id: len(self.flat.calls) for r in self.flat.outputs}
        where, free, live = dict(self.parameters), {}, []  # type: ignore[var-annotated]
        for k, call in enumerate(self.flat.calls):
            for r in call.registers:
                register = self.flat.registers[r]
                if r in where:
                    continue
                kind = _type(register)
                if register.held is not None:
                    where[r] = self.constant(C_TYPES[kind], register.held.reshape(-1), "values")
                    continue
                pool = free.setdefault(kind, [])
                n = pool.pop() if pool else sum(t == kind for t, _ in self.slots)
                self.slots[kind, n] = max(self.slots.get((kind, n), 0), register.layout.elements)
                where[r] = f"{kind}_{n}"
                live.append((r, kind, n))
            for ended in [one for one in live if last[one[0]] <= k]:
                free[ended[1]].append(ended[2])
                live.remove(ended)
        for output in self.flat.outputs:
            if output.id not in where and output.held is not None:
                where[output.id] = self.constant(C_TYPES[_type(output)], output.held.reshape(-1), "values")
        return where

    def constant(self, c_type: str, values: np.ndarray, role: str) -> str:
        same = next((c for c in self.constants if c.type == c_type and np.array_equal(c.values, values)), None)
        if same is None:
            name = f"{role}_{self.step + 1}"
            taken = sum(c.name == name or c.name.startswith(f"{name}_") for c in self.constants)
            same = Constant(f"{name}_{taken}" if taken else name, c_type, values)
            self.constants.append(same)
        return same.name

    def kernel(self, operation: str, **traits: Any) -> str:
        name = "_".join([operation, *(str(v) for v in traits.values())])
        self.kernels[name] = {"operation": operation, **traits}
        return name

    def call(self, k: int, call: Call) -> dict[str, Any]:
        """{"comment", "text"} of one step."""
        maker = getattr(self, f"_{call.operation}", None)
        if maker is None:
            raise FewbitError(f"step {k}, {call.operation}, has no integer form (S10); C refuses it")
        self.step = k
        registers = [self.flat.registers[r] for r in call.registers]
        names = [self.where[r.id] for r in registers]
        comment, function, arguments = maker(registers, names, *call.arguments)
        label = call.label.removesuffix(".channels_last").removesuffix(".codes")
        return {
            "comment": f"{label}: {comment}{self._reading(call)}",
            "text": f"{function}({', '.join(str(a) for a in arguments)});",
        }

    def _reading(self, call: Call) -> str:
        """What one code of the step's output is worth, where the step makes the codes of a tensor."""
        known = self.program.readings.get(call.label.removesuffix(".channels_last"))
        if known is None or call.operation in ("quantize", "copy"):
            return ""
        return f"; {_type(self.flat.registers[call.registers[-1]])}, one code {known[0]:g}, zero point {known[1]}"

    def _copy(self, r: list[Register], n: list[str], fill: int, runs: np.ndarray) -> tuple[str, str, list[Any]]:
        if len(runs) == 3 and runs[1] >= 0:
            return "moved", self.kernel("move", y=_type(r[1])), [f"{n[0]} + {runs[1]}", f"{n[1]} + {runs[0]}", runs[2]]
        kind = self.kernel("copy", y=_type(r[1]))
        return "moved", kind, [n[0], n[1], self.constant("int32_t", runs, "runs"), len(runs) // 3, fill]

    def _quantize(self, r: list[Register], n: list[str], scale: np.ndarray, zero: int) -> tuple[str, str, list[Any]]:
        inverse = np.float32(1) / scale[0]
        exact = np.frexp(scale[0])[0] == 0.5 and np.isfinite(inverse) and 2.0**-120 < scale[0] < 2.0**120
        kind = self.kernel("quantize", y=_type(r[1]), how="times" if exact else "divided")
        return f"S1: {r[1].layout.elements} floats to {_type(r[1])}, one code {scale[0]:g}, zero point {zero}", kind, [
            n[0], n[1], r[1].layout.elements, literal(inverse if exact else scale[0]), zero,
        ]  # fmt: skip

    def _linear(
        self, r: list[Register], n: list[str], weight: np.ndarray, bias: np.ndarray, zero: int, leaves: int, *finish: Any
    ) -> tuple[str, str, list[Any]]:
        kind, arguments, after = self._layer(r[0], r[-1], weight, bias, zero, leaves, *finish)
        return self._sums(r, weight, bias, zero, leaves), kind, [n[0], n[-1], *arguments, r[-1].layout.count, *after]

    def _conv(
        self, r: list[Register], n: list[str], geometry: np.ndarray, last: int, fill: int,
        weight: np.ndarray, bias: np.ndarray, zero: int, leaves: int, *finish: Any,
    ) -> tuple[str, str, list[Any]]:  # fmt: skip
        """A layer at every position, its patch gathered into a small buffer first."""
        layer, arguments, after = self._layer(r[0], r[-1], weight, bias, zero, leaves, *finish)
        kind = self.kernel("conv", channels="last" if last else "first", of=layer)
        self.kernels[kind] |= {k: self.kernels[layer][k] for k in ("x", "w", "y", "acc")}
        arguments = [*n, self.constant("int32_t", geometry, "geometry"), fill, *arguments, *after]
        return self._sums(r, weight, bias, zero, leaves), kind, arguments

    def _sums(self, r: list[Register], weight: np.ndarray, bias: np.ndarray, zero: int, leaves: int) -> str:
        (rows, fan_in), count = weight.shape, r[-1].layout.count
        bits = bound(weight, bias, zero, LIMITS[_type(r[0])]).bit_length()
        over = f", at {count} positions" if count > 1 else ""
        return f"S2-S{7 if leaves else 4}: {fan_in} -> {rows}, {bits_of(weight)}-bit weights, |sum| < 2^{bits}{over}"

    def _layer(
        self, x: Register, y: Register, weight: np.ndarray, bias: np.ndarray, zero: int, leaves: int, *finish: Any
    ) -> tuple[str, list[Any], list[Any]]:
        """A linear kernel's name, and its arguments up to the number of vectors and behind it."""
        bits = bits_of(weight)
        bias = bias - zero * weight.astype(np.int64).sum(1)
        wide = reached(weight, bits, bias, LIMITS[_type(x)]) > 2**31 - 1
        traits: dict[str, Any] = dict(x=_type(x), w=f"w{bits}", y=_type(y), acc="wide" if wide else "narrow")
        after = [self.constant("float", finish[0], "scale")] if leaves else self._multipliers(traits, *finish)
        kind = self.kernel("linear", **traits)
        packed = self.constant(packed_type(bits), pack(weight, bits, _type(x)), "weight")
        return kind, [packed, self.constant("int64_t" if wide else "int32_t", bias, "bias"), *weight.shape], after

    def _multipliers(self, traits: dict[str, Any], zero: int, m: np.ndarray, shift: np.ndarray) -> list[Any]:
        """m and s of S3; both raised alike where that brings every s to 33 or more: |acc m| < 2^53 leaves room for 2^9."""
        more = np.maximum(33 - shift, 0)
        traits["round"] = "high" if more.max() <= 9 else "any"
        if traits["round"] == "high":
            m, shift = m << more, shift + more
        return [self.constant("int32_t", m, "m"), self.constant("uint8_t", shift, "shift"), zero]

    def _table(self, r: list[Register], n: list[str], segments: int, degree: int, c: np.ndarray, *rest: int):
        kind = self.kernel("table", y=_type(r[1]))
        bits = segments.bit_length() - 1
        return f"S6: {segments} polynomials of degree {degree}", kind, [
            n[0], n[1], r[1].layout.elements, self.constant("int16_t", c, "segments"), bits, degree, *rest,
        ]  # fmt: skip

    def _lookup(self, r: list[Register], n: list[str], table: np.ndarray) -> tuple[str, str, list[Any]]:
        kind = self.kernel("lookup", x=_type(r[0]), y=_type(r[1]))
        values = self.constant(C_TYPES[_type(r[1])], table, "table")
        return "S6: every code's own value", kind, [n[0], n[1], r[1].layout.elements, values]

    def _rescale(self, r: list[Register], n: list[str], zero: int, m: int, shift: int, out: int) -> tuple[str, str, list[Any]]:
        kind = self.kernel("rescale", x=_type(r[0]), y=_type(r[1]))
        return "S4: to another scale", kind, [n[0], n[1], r[1].layout.elements, zero, m, shift, out]

    def _add(self, r: list[Register], n: list[str], *rest: int) -> tuple[str, str, list[Any]]:
        kind = self.kernel("add", a=_type(r[0]), b=_type(r[1]), y=_type(r[2]))
        return "S5: sum", kind, [*n, r[2].layout.elements, *rest]

    def _multiply(self, r: list[Register], n: list[str], *rest: int) -> tuple[str, str, list[Any]]:
        kind = self.kernel("multiply", a=_type(r[0]), b=_type(r[1]), y=_type(r[2]))
        return "S5: product", kind, [*n, r[2].layout.elements, *rest]

    def _dequantize(self, r: list[Register], n: list[str], zero: int, scale: np.ndarray) -> tuple[str, str, list[Any]]:
        kind = self.kernel("dequantize", x=_type(r[0]))
        each = int(scale.size > 1)
        return "S7: to float", kind, [n[0], n[1], r[1].layout.elements, zero, self.constant("float", scale, "scale"), each]

    def _binary(self, r: list[Register], n: list[str], op: int) -> tuple[str, str, list[Any]]:
        return BINARY[op], self.kernel("float", op=BINARY[op].lower()), [*n, r[2].layout.elements]

    def _unary(self, r: list[Register], n: list[str], op: int, alpha: np.ndarray) -> tuple[str, str, list[Any]]:
        name = list(UNARY)[op]
        if name not in ("Relu", "Neg", "Abs"):
            raise FewbitError(f"{name} runs in float (S10), and C has no libm here")
        return name, self.kernel("float", op=name.lower()), [*n, r[1].layout.elements]

    def _argmax(self, r: list[Register], n: list[str]) -> tuple[str, str, list[Any]]:
        return "the largest", self.kernel("argmax"), [*n, r[0].layout.count, r[0].layout.inner]

    def _cast(self, r: list[Register], n: list[str]) -> tuple[str, str, list[Any]]:
        return "to float", self.kernel("cast", x=_type(r[0])), [*n, r[1].layout.elements]


def _type(r: Register) -> str:
    name = NAMES[TYPES.index(r.dtype)]
    if name not in C_TYPES:
        raise FewbitError(f"a tensor of {r.dtype} has no form in C for microcontrollers")
    return name


def array(values: np.ndarray, width: int = 118) -> str:
    """The numbers of a C array, lines no longer than width; floats with the digits that give them back."""
    if values.dtype.kind == "f":
        words = [literal(v) for v in values.reshape(-1)]
    else:
        words = [str(int(v)) if int(v) != -(2**31) else "-2147483647 - 1" for v in values.reshape(-1)]
    lines, line = [], "   "
    for word in words:
        if len(line) + len(word) + 2 > width:
            lines.append(line)
            line = "   "
        line += f" {word},"
    return "\n".join([*lines, line])


def literal(v: np.floating) -> str:
    """A literal that float32 reads back exactly; infinity without math.h."""
    if np.isinf(v):
        return "FEWBIT_INFINITY" if v > 0 else "-FEWBIT_INFINITY"
    text = f"{float(v):.9g}"
    return text + ("f" if "." in text or "e" in text else ".0f")
