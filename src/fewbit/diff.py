"""Where the error comes in: every tensor of an artifact beside the float source's, fed the float inputs and on its own.

local: the step that makes the tensor, given the source's values of its inputs. accumulated: the artifact run from the
observation on. A tensor whose elements equalization divided by powers of two is multiplied by them first.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from fewbit.engine import reference
from fewbit.engine.description import describe
from fewbit.engine.load import load, quickest
from fewbit.engine.operands import format_of, scale_of
from fewbit.engine.program import Program, Step
from fewbit.errors import FewbitError
from fewbit.fidelity import action_error
from fewbit.graph import calibrate, metadata
from fewbit.numerics import affine, metrics
from fewbit.numerics.formats import IntFormat

SUFFIX = ".codes"


@dataclass(frozen=True)
class Row:
    """One tensor. SQNR in dB, largest error in the source's units, shares of 1; dead: channels that never leave one code."""

    tensor: str
    format: str
    sqnr_local: float
    sqnr_accumulated: float
    max_error: float
    saturated: float
    dead: float


@dataclass(frozen=True)
class Tensor:
    """One tensor on the same observations [n, ...]. want: the source's, as equalized; got, local: the artifact's registers, codes
    where reading (scale, zero point, format) is known; local is None where the step's inputs are not known in the source, or
    where ONNX Runtime runs the graph (step is None then)."""

    name: str
    step: Step | None
    want: np.ndarray
    got: np.ndarray
    local: np.ndarray | None
    reading: "Reading | None"


@dataclass(frozen=True)
class Comparison:
    """actions: fidelity.action_error's record of the first output, with "states", how many were compared; outputs: names of the
    rows that are the network's outputs; tensors: every row, the worst local SQNR first."""

    actions: dict[str, float]
    outputs: tuple[str, ...]
    tensors: list[Row]


def comparison(original: ir.Model, artifact: ir.Model, feeds: dict[str, np.ndarray]) -> Comparison:
    """What the artifact's actions and its tensors are beside the float source's. feeds: observations [n, ...] by input name."""
    outputs = tuple(v.name or "" for v in artifact.graph.outputs)
    return Comparison(actions(original, artifact, feeds), outputs, diff(original, artifact, feeds))


def actions(original: ir.Model, artifact: ir.Model, feeds: dict[str, np.ndarray]) -> dict[str, float]:
    """fidelity.action_error's record of the artifact beside its source, with "states", how many were compared."""
    want, got = load(original, "onnxruntime")(feeds), quickest(artifact)(feeds)
    return action_error(want, got) | {"states": len(want)}


def diff(original: ir.Model, artifact: ir.Model, feeds: dict[str, np.ndarray]) -> list[Row]:
    """Rows, the worst local SQNR first. feeds: observations [n, ...] by input name."""
    return sorted(map(row, compare(original, artifact, feeds)), key=lambda r: r.sqnr_local)


def exponents(artifact: ir.Model) -> dict[str, np.ndarray]:
    """Tensor -> by what powers of two equalization divided its elements."""
    moved = metadata.read(artifact).get("equalized") or {}
    return {k: np.asarray(v, np.float64) for k, v in moved.items()} if isinstance(moved, dict) else {}


def compare(original: ir.Model, artifact: ir.Model, feeds: dict[str, np.ndarray]) -> list[Tensor]:
    """Every tensor that both have, in the program's order."""
    program = describe(artifact).program
    found = _by_runtime(original, artifact, feeds) if program is None else _by_reference(original, artifact, program, feeds)
    if not found:
        raise FewbitError("the artifact and the source have no tensor name in common; was one made from the other?")
    return found


def _by_reference(original: ir.Model, artifact: ir.Model, program: Program, feeds: dict[str, np.ndarray]) -> list[Tensor]:
    divided, readings = exponents(artifact), _readings(artifact)
    names = {step.out: _source_name(step.out) for step in program.steps if step.out in readings or step.out in program.outputs}
    floats = _float_values(original, feeds, list(names.values()))
    registers = reference.run(program, feeds)
    found = []
    for step in program.steps:
        name = names.get(step.out, "")
        if name not in floats:
            continue
        want = _as_equalized(floats[name], name, divided)
        local = _local(step, program, readings, names, floats, divided)
        found.append(Tensor(name, step, want, registers[step.out], local, readings.get(step.out)))
    return found


def _by_runtime(original: ir.Model, artifact: ir.Model, feeds: dict[str, np.ndarray]) -> list[Tensor]:
    """Of a graph that has no program: its codes and outputs as ONNX Runtime makes them."""
    divided, readings = exponents(artifact), _readings(artifact)
    made = [o.name or "" for node in artifact.graph for o in node.outputs]
    outputs = {v.name for v in artifact.graph.outputs}
    names = {value: _source_name(value) for value in made if value in readings or value in outputs}
    floats = _float_values(original, feeds, list(names.values()))
    values = _float_values(artifact, feeds, list(names))
    return [
        Tensor(name, None, _as_equalized(floats[name], name, divided), values[value], None, readings.get(value))
        for value, name in names.items()
        if name in floats
    ]


def _as_equalized(value: np.ndarray, name: str, divided: dict[str, np.ndarray]) -> np.ndarray:
    return value / 2.0 ** divided[name] if name in divided else value


def _source_name(register: str) -> str:
    return register.removesuffix(SUFFIX).removesuffix(".narrow").removesuffix(".equalized")


Reading = tuple[np.float32, int, IntFormat]


def _readings(artifact: ir.Model) -> dict[str, Reading]:
    """Codes' name -> (scale, zero_point, format), from the DequantizeLinear that reads them."""
    found = {}
    for node in artifact.graph:
        if node.op_type == "DequantizeLinear" and node.inputs[0] is not None and node.inputs[0].const_value is None:
            scale, zero = scale_of(node)
            found[node.inputs[0].name or ""] = (np.float32(scale), zero, format_of(node))
    return found


def _float_values(original: ir.Model, feeds: dict[str, np.ndarray], names: list[str]) -> dict[str, np.ndarray]:
    present = {o.name for node in original.graph for o in node.outputs} | {i.name for i in original.graph.inputs}
    wanted = [n for n in dict.fromkeys(names) if n in present and n not in feeds]
    inputs = {i.name: feeds[i.name] for i in original.graph.inputs if i.name in feeds}
    values = calibrate.session(calibrate.with_outputs(original, wanted)).run(wanted, inputs) if wanted else []
    return dict(zip(wanted, values, strict=True)) | {k: v for k, v in feeds.items() if k in names}


def _local(
    step: Step,
    program: Program,
    readings: dict[str, Reading],
    names: dict[str, str],
    floats: dict[str, np.ndarray],
    exponents: dict[str, np.ndarray],
) -> np.ndarray | None:
    """What the step makes of the source's own inputs; None where they are not known."""
    made: dict[str, Any] = dict(program.constants)
    for register in (*(getattr(step, field, None) for field in ("x", "a", "b")), *getattr(step, "inputs", ())):
        if not isinstance(register, str) or register in made:
            continue
        name = names.get(register, register)
        if name not in floats:
            return None
        value = _as_equalized(floats[name], name, exponents)
        if register in readings and value.dtype.kind == "f":  # pixels are codes themselves
            value = affine.quantize(value, *readings[register])  # a ReLU is the saturation of its codes
        made[register] = value
    return reference.step(step, made) if made.keys() - program.constants.keys() else None


def row(tensor: Tensor) -> Row:
    want, got, local, reading = tensor.want, tensor.got, tensor.local, tensor.reading
    fmt = reading[2] if reading is not None else getattr(tensor.step, "format", None)  # a Concat of codes has none of its own
    saturated = dead = 0.0
    if reading is not None and isinstance(fmt, IntFormat):
        low, high = fmt.quant_min, fmt.quant_max
        if not fmt.signed and reading[1] == low:
            want = np.maximum(want, 0)
            saturated = float((got == high).mean())
        else:
            saturated = float(((got == low) | (got == high)).mean())
        dead = float((got.reshape(len(got), -1).min(axis=0) == got.reshape(len(got), -1).max(axis=0)).mean())
        got = affine.dequantize(got, *reading[:2])
        local = affine.dequantize(local, *reading[:2]) if local is not None else None
    local = got if local is None else local
    return Row(
        tensor.name,
        fmt.name if isinstance(fmt, IntFormat) else "float32",
        metrics.sqnr_db(want, local),
        metrics.sqnr_db(want, got),
        metrics.max_error(want, got),
        saturated,
        dead,
    )
