"""C for microcontrollers: one .c and one .h, C99, no malloc, no libm, the reference's bits (docs/c.md).

The flat program (engine/flatten) becomes one call a step of the few kernels in c_templates/; weights lie packed in constants,
registers in static buffers, one set of slots a type, reused where their contents are no longer needed.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fewbit.engine import reference
from fewbit.engine.flat import TYPES, Call, Flat, Register
from fewbit.engine.flatten import BINARY, UNARY, flatten
from fewbit.engine.lower import lower
from fewbit.engine.program import Program
from fewbit.errors import FewbitError
from fewbit.files import write_whole
from fewbit.graph import metadata
from fewbit.graph.read import read

NAMES = ["u8", "i8", "u16", "i16", "i32", "i64", "f32", "f64"]  # of TYPES
C_TYPES = {
    "u8": "uint8_t", "i8": "int8_t", "u16": "uint16_t", "i16": "int16_t", "i32": "int32_t", "i64": "int32_t", "f32": "float",
}  # fmt: skip
SIZES = {"uint8_t": 1, "int8_t": 1, "uint16_t": 2, "int16_t": 2, "int32_t": 4, "int64_t": 8, "float": 4}
LIMITS = {"u8": (0, 255), "i8": (-128, 127), "u16": (0, 65535), "i16": (-32768, 32767)}
SELF_TESTS = 4
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


# layout -> {file of the folder: template}; NAME is the network's
LAYOUTS: dict[str, dict[str, str]] = {
    "plain": {"NAME.c": "policy.c", "NAME.h": "policy.h"},
    "arduino": {  # PlatformIO reads it too
        "src/NAME.c": "policy.c",
        "src/NAME.h": "policy.h",
        "library.properties": "layouts/library.properties",
        "library.json": "layouts/library.json",
        "examples/Act/Act.ino": "layouts/Act.ino",
    },
    "esp-idf": {
        "NAME.c": "policy.c",
        "NAME.h": "policy.h",
        "CMakeLists.txt": "layouts/idf_component.cmake",
        "examples/act/main/CMakeLists.txt": "layouts/idf_example.cmake",
        "examples/act/main/main.c": "layouts/main.c",
    },
    "zephyr": {
        "NAME.c": "policy.c",
        "NAME.h": "policy.h",
        "CMakeLists.txt": "layouts/zephyr_module.cmake",
        "zephyr/module.yml": "layouts/module.yml",
        "samples/act/CMakeLists.txt": "layouts/zephyr_sample.cmake",
        "samples/act/prj.conf": "layouts/prj.conf",
        "samples/act/src/main.c": "layouts/main.c",
    },
}


def export(artifact: Path, out: Path, name: str = "policy", layout: str = "plain") -> dict[str, Any]:
    """Write the network into the folder out: {"files", "flash_bytes" (constants), "ram_bytes", "macs"}."""
    if layout not in LAYOUTS:
        raise FewbitError(f"--layout {layout} is unknown; choose one of {', '.join(LAYOUTS)}")
    model = read(artifact)
    evidence = metadata.read(model).get("evidence") or {}
    made = generate(lower(model), name, artifact.name, evidence, layout=layout)
    files = []
    for file, text in made["files"].items():
        path = out / file
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
        files.append(str(path))
    return {"files": files, **made["sizes"]}


def generate(
    program: Program,
    name: str,
    source: str = "",
    evidence: dict[str, Any] | None = None,
    tests: dict[str, np.ndarray] | None = None,
    layout: str = "plain",
) -> dict[str, Any]:
    """{"files": {path: text}, "sizes"}; refuses by name what has no integer form (S10). tests: the self-test's observations."""
    import jinja2

    if not program.exact:
        raise FewbitError("part of this graph runs in float (exact: no), which C without libm cannot; see fewbit inspect")
    if not re.fullmatch(r"[a-z_][a-z0-9_]*", name):
        raise FewbitError(f"--name {name}: give a C identifier in lower case")
    writer = _Writer(program, flatten(program, 1))
    calls = [writer.call(k, c) for k, c in enumerate(writer.flat.calls)]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("c_templates")),
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    sizes = {
        "flash_bytes": sum(c.bytes for c in writer.constants),
        "ram_bytes": sum(count * SIZES[C_TYPES[t]] for (t, _), count in writer.slots.items()),
        "macs": sum(s.weight.size for s in program.steps if hasattr(s, "weight")),
    }
    rounds = any(k["operation"] in ROUNDING and k.get("y") != "f32" for k in writer.kernels.values())
    dsp = {n for n, k in writer.kernels.items() if k["operation"] == "linear" and _by_dsp(k)}
    context = {
        "dsp": {writer.kernels[n]["x"] for n in dsp}, "dsp_kernels": dsp,
        "name": name, "source": source, "evidence": evidence or {}, "sizes": sizes, "calls": calls, "kernels": writer.kernels,
        "rounds": rounds, "constants": writer.constants, "slots": writer.slots, "c_types": C_TYPES, "limits": LIMITS,
        "inputs": writer.ends(writer.flat.inputs, writer.input_names), "array": _array,
        "outputs": writer.ends(writer.flat.outputs, writer.output_names),
        "tests": _tests(program, tests or _observations(program)),
    }  # fmt: skip
    context["entry"] = "app_main" if layout == "esp-idf" else "main"
    files = {file.replace("NAME", name): environment.get_template(t).render(context) for file, t in LAYOUTS[layout].items()}
    return {"files": files, "sizes": sizes}


def _observations(program: Program) -> dict[str, np.ndarray]:
    rng, kinds = np.random.default_rng(0), program.input_dtypes
    made = {k: (SELF_TESTS, *shape) for k, shape in program.inputs.items()}
    values = {k: rng.normal(0, 2, s) if kinds[k].kind == "f" else rng.integers(0, 100, s) for k, s in made.items()}
    return {k: v.astype(kinds[k]) for k, v in values.items()}


def _tests(program: Program, feeds: dict[str, np.ndarray]) -> dict[str, list[np.ndarray]]:
    """Observations for the self-test and the reference's actions, in the order of inputs and outputs."""
    found = reference.run(program, feeds)
    given = [np.asarray(feeds[k], program.input_dtypes[k]).reshape(-1) for k in program.inputs]
    return {"inputs": given, "outputs": [found[o].reshape(-1) for o in program.outputs]}


def _array(values: np.ndarray, width: int = 118) -> str:
    """The numbers of a C array, lines no longer than width; floats with the digits that give them back."""
    if values.dtype.kind == "f":
        words = [_float(v) for v in values.reshape(-1)]
    else:
        words = [str(int(v)) if int(v) != -(2**31) else "-2147483647 - 1" for v in values.reshape(-1)]
    lines, line = [], "   "
    for word in words:
        if len(line) + len(word) + 2 > width:
            lines.append(line)
            line = "   "
        line += f" {word},"
    return "\n".join([*lines, line])


def _float(v: np.floating) -> str:
    """A literal that float32 reads back exactly; infinity without math.h."""
    if np.isinf(v):
        return "FEWBIT_INFINITY" if v > 0 else "-FEWBIT_INFINITY"
    text = f"{float(v):.9g}"
    return text + ("f" if "." in text or "e" in text else ".0f")


class _Writer:
    """Turns flat calls into C calls, collecting kernels, constants and slots on the way."""

    def __init__(self, program: Program, flat: Flat):
        self.flat = flat
        self.constants: list[Constant] = []
        self.kernels: dict[str, dict[str, Any]] = {}
        self.output_names = [f"action{k if len(flat.outputs) > 1 else ''}" for k in range(len(flat.outputs))]
        self.input_names: list[str] = []
        for n in program.inputs:
            self.input_names.append(_identifier(n, self.input_names))
        self.parameters = self._parameters()
        self.slots: dict[tuple[str, int], int] = {}
        self.where = self._allocate()

    def ends(self, registers: list[Register], names: list[str]) -> list[dict[str, Any]]:
        """What the templates say of inputs or outputs."""
        return [
            {
                "name": n,
                "type": C_TYPES[_type(r)],
                "count": r.layout.elements,
                "from": self.where[r.id],
                "direct": r.id in self.direct,
            }
            for n, r in zip(names, registers, strict=True)
        ]

    def _parameters(self) -> dict[int, str]:
        """The registers that are the function's own arguments."""
        found = {r.id: n for r, n in zip(self.flat.inputs, self.input_names, strict=True)}
        self.direct: set[int] = set()
        for r, n in zip(self.flat.outputs, self.output_names, strict=True):
            if r.id not in found and r.held is None:  # written straight into the caller's array
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
                    where[r] = self.constant(C_TYPES[kind], register.held.reshape(-1))
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
                where[output.id] = self.constant(C_TYPES[_type(output)], output.held.reshape(-1))
        return where

    def constant(self, c_type: str, values: np.ndarray) -> str:
        same = next((c for c in self.constants if c.type == c_type and np.array_equal(c.values, values)), None)
        if same is None:
            same = Constant(f"c{len(self.constants)}", c_type, values)
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
        registers = [self.flat.registers[r] for r in call.registers]
        names = [self.where[r.id] for r in registers]
        comment, function, arguments = maker(registers, names, *call.arguments)
        return {"comment": comment, "text": f"{function}({', '.join(str(a) for a in arguments)});"}

    def _copy(self, r: list[Register], n: list[str], fill: int, runs: np.ndarray) -> tuple[str, str, list[Any]]:
        if len(runs) == 3 and runs[1] >= 0:
            size = SIZES[C_TYPES[_type(r[1])]]
            return "moved", "memcpy", [f"{n[1]} + {runs[0]}", f"{n[0]} + {runs[1]}", f"{runs[2]} * {size}"]
        kind = self.kernel("copy", y=_type(r[1]))
        return "moved", kind, [n[0], n[1], self.constant("int32_t", runs), len(runs) // 3, fill]

    def _quantize(self, r: list[Register], n: list[str], scale: np.ndarray, zero: int) -> tuple[str, str, list[Any]]:
        inverse = np.float32(1) / scale[0]
        exact = np.frexp(scale[0])[0] == 0.5 and np.isfinite(inverse) and 2.0**-120 < scale[0] < 2.0**120
        kind = self.kernel("quantize", y=_type(r[1]), how="times" if exact else "divided")
        return f"S1: to {_type(r[1])}, scale {scale[0]:g}, zero point {zero}", kind, [
            n[0], n[1], r[1].layout.elements, _float(inverse if exact else scale[0]), zero,
        ]  # fmt: skip

    def _linear(
        self, r: list[Register], n: list[str], weight: np.ndarray, bias: np.ndarray, zero: int, leaves: int, *finish: Any
    ) -> tuple[str, str, list[Any]]:
        x, y, (rows, fan_in) = r[0], r[1], (r[1].layout.inner, r[0].layout.inner)
        weight = weight.reshape(rows, fan_in)
        low, high = LIMITS[_type(x)]
        bound = int((np.abs(weight.astype(np.int64)).sum(1) * max(high - zero, zero - low) + np.abs(bias)).max())
        bits = _bits(weight)
        wide = bound > 2**31 - 1
        kind = self.kernel(
            "linear", x=_type(x), w=f"w{bits}", y=_type(y), acc="wide" if wide else "narrow", z="zero" if zero else "plain"
        )
        arguments: list[Any] = [n[0], n[1], self.constant(_packed_type(bits), _pack(weight, bits))]
        arguments += [self.constant("int64_t" if wide else "int32_t", bias), rows, fan_in, x.layout.count]
        arguments += [zero] if zero else []
        if leaves:
            arguments.append(self.constant("float", finish[0]))
        else:
            zero_out, m, shift = finish
            arguments += [self.constant("int32_t", m), self.constant("uint8_t", shift), zero_out]
        over = f", at {x.layout.count} positions" if x.layout.count > 1 else ""
        return f"S2-S4: {fan_in} -> {rows}, {bits}-bit weights, |sum| < 2^{bound.bit_length()}{over}", kind, arguments

    def _table(self, r: list[Register], n: list[str], segments: int, degree: int, c: np.ndarray, *rest: int):
        kind = self.kernel("table", y=_type(r[1]))
        bits = segments.bit_length() - 1
        return f"S6: {segments} polynomials of degree {degree}", kind, [
            n[0], n[1], r[1].layout.elements, self.constant("int16_t", c), bits, degree, *rest,
        ]  # fmt: skip

    def _lookup(self, r: list[Register], n: list[str], table: np.ndarray) -> tuple[str, str, list[Any]]:
        kind = self.kernel("lookup", x=_type(r[0]), y=_type(r[1]))
        return "S6: every code's own value", kind, [n[0], n[1], r[1].layout.elements, self.constant(C_TYPES[_type(r[1])], table)]

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
        return "S7: to float", kind, [n[0], n[1], r[1].layout.elements, zero, self.constant("float", scale), each]

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


def _identifier(name: str, taken: list[str]) -> str:
    word = re.sub(r"\W", "_", name) or "input"
    word = f"in_{word}" if not word[0].isalpha() or word in ("x", "y", "int", "float", "action", "char", "short") else word
    return word if word not in taken else _identifier(f"{word}_", taken)


def _by_dsp(k: dict[str, Any]) -> bool:
    """Can a linear kernel use the products of two 16-bit pairs? (A zero point that is not zero would need 17 bits.)"""
    return k["w"] == "w8" and k["acc"] == "narrow" and k["z"] == "plain" and k["x"] in ("u8", "i8", "i16")


def _bits(weight: np.ndarray) -> int:
    """2, 4, 8 or 16: the narrowest that holds these codes."""
    return next(b for b in (2, 4, 8, 16) if weight.min() >= -(1 << (b - 1)) and weight.max() < 1 << (b - 1))


def _packed_type(bits: int) -> str:
    return {2: "uint8_t", 4: "uint8_t", 8: "int8_t", 16: "int16_t"}[bits]


def _pack(weight: np.ndarray, bits: int) -> np.ndarray:
    """[out, in] codes, a row filled up to whole bytes, the first code in a byte's lowest bits."""
    if bits >= 8:
        return weight.reshape(-1)
    per = 8 // bits
    padded = np.pad(weight, ((0, 0), (0, -weight.shape[1] % per))).astype(np.int64) & ((1 << bits) - 1)
    groups = padded.reshape(len(weight), -1, per)
    return np.bitwise_or.reduce(groups << (bits * np.arange(per)), axis=-1).astype(np.uint8).reshape(-1)
