"""The reference executor: walks a Program over numerics.semantics, in NumPy. Slow, plain, and right by definition."""

from typing import Any

import numpy as np

from fewbit.engine.float_ops import OPS
from fewbit.engine.policy import as_kind
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


def run(program: Program, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every register after one batch. feeds: input name -> [batch, ...]. NaN is refused, naming its index."""
    registers: dict[str, np.ndarray] = {}
    for name, shape in program.inputs.items():
        if name not in feeds:
            raise FewbitError(f"input {name} is missing; the network takes {', '.join(program.inputs)}")
        x = np.asarray(feeds[name])
        if x.shape[1:] != shape:
            raise FewbitError(f"input {name}: expected [batch, {', '.join(map(str, shape))}], found {list(x.shape)}")
        x = as_kind(name, x, program.input_dtypes[name])
        if x.dtype.kind == "f" and np.isnan(x).any():
            raise FewbitError(f"input {name}: element {tuple(int(i) for i in np.argwhere(np.isnan(x))[0])} is NaN")
        registers[name] = x
    return _walk(program, registers)


def _walk(program: Program, registers: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    registers = dict(program.constants) | registers
    for one in program.steps:
        registers[one.out] = step(one, registers)
    return registers


def step(step: Step, r: dict[str, Any]) -> np.ndarray:
    """What one step makes of the registers r."""
    match step:
        case Quantize():
            return affine.quantize(r[step.x], step.scale, step.zero_point, step.format)
        case Linear():
            acc = semantics.accumulate(r[step.x], step.zero_input, step.weight, 0, step.bias)
            if step.exit_scale is not None:
                return acc.astype(np.float32) * step.exit_scale
            assert step.format is not None and step.m is not None and step.shift is not None
            return semantics.requantize(acc, step.m, step.shift, step.zero_point, step.format)
        case Patches():
            return patches.gather(r[step.x], step.window, step.fill, step.channels_last)
        case Table():
            y = unary.evaluate(r[step.x], step.segments)
            return semantics.requantize(y, step.m, step.shift, step.zero_point, step.format)
        case Lookup():
            return step.table[r[step.x].astype(np.int64) - step.lowest]
        case Rescale():
            acc = r[step.x].astype(np.int64) - step.zero_input
            return semantics.requantize(acc, step.m, step.shift, step.zero_point, step.format)
        case Add():
            a, b = (r[k].astype(np.int64) - z for k, z in zip((step.a, step.b), step.zeros, strict=True))
            return semantics.add(a, b, step.m_a, step.m_b, step.shift, step.zero_point, step.format)
        case Multiply():
            a, b = (r[k].astype(np.int64) - z for k, z in zip((step.a, step.b), step.zeros, strict=True))
            return semantics.multiply(a, b, step.m, step.shift, step.zero_point, step.format)
        case Dequantize():
            return affine.dequantize(r[step.x], step.scale, step.zero_point)
        case Float() if step.op == "Scan":
            return _scan(step.attributes, [r[i] if isinstance(i, str) else i for i in step.inputs])
        case Float():
            with np.errstate(over="ignore"):  # an observation of 1e38 becomes infinity, and infinity saturates (S1)
                return OPS[step.op](step.attributes, *(r[i] if isinstance(i, str) else i for i in step.inputs))


def _scan(attributes: dict[str, Any], inputs: list[np.ndarray]) -> np.ndarray:
    """One output of ONNX Scan-16 over axis 0: the body's program once for each row of its scanned inputs."""
    body: Program = attributes["body"]
    count = len(inputs) - attributes["num_scan_inputs"]
    states, rows = inputs[:count], inputs[count:]
    collected = []
    for k in range(len(rows[0])):
        made = _walk(body, dict(zip(body.inputs, [*states, *(row[k] for row in rows)], strict=True)))
        results = [made[o] for o in body.outputs]
        states = results[:count]
        collected.append(results[count:])
    output = attributes["output"]
    return states[output] if output < count else np.stack([c[output - count] for c in collected])
