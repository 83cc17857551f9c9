"""New float weights in a program that stays as it is: rounded to nearest on their own scales, every other scale kept.

What a learner needs whose policy changes a little many times: the same program that quantizing the graph again at these ranges
would give (solvers/rtn, S2, S3), without the graph. Not for convolutions, and not where columns were scaled.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from fewbit.engine import native
from fewbit.engine.flat import Flat
from fewbit.engine.flatten import flatten, layer_arguments
from fewbit.engine.program import Float, Linear, Program
from fewbit.errors import FewbitError
from fewbit.numerics import semantics
from fewbit.numerics.formats import IntFormat
from fewbit.solvers import rtn

Weights = dict[str, tuple[np.ndarray, np.ndarray]]  # layer (Linear.layer) -> float32 weight [out, in], bias [out]
Codes = dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]  # layer -> codes [out, in], bias codes [out], float32 scale [out]


def rounded(program: Program, weights: Weights, fmt: IntFormat) -> Codes:
    """Those layers' weights on scales of their own, as the program's inputs of them ask; fmt: of the weights."""
    return {s.layer: _rounded(program, s, *weights[s.layer], fmt) for s in program.steps if isinstance(s, Linear)}


def _rounded(
    program: Program, step: Linear, weight: np.ndarray, bias: np.ndarray, fmt: IntFormat
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if weight.shape != step.weight.shape or step.x not in program.readings:
        raise FewbitError(
            f"layer {step.layer}: its weight {list(weight.shape)} cannot take the place of {list(step.weight.shape)}"
        )
    if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
        raise FewbitError(f"layer {step.layer}: its weight or bias holds NaN or infinity; the training diverged")
    scale_input = np.float32(program.readings[step.x][0])
    scale = semantics.raised_scale(bias, scale_input, rtn.channel_scale(weight, fmt))
    return rtn.solve(weight, scale, fmt), semantics.bias_codes(bias, scale_input, scale), scale


def reweigh(program: Program, codes: Codes) -> Program:
    """program with those layers' codes and scales, and the multipliers that they need (S3)."""
    steps = (_layer(program, s, *codes[s.layer]) if isinstance(s, Linear) and s.layer in codes else s for s in program.steps)
    return replace(program, steps=tuple(steps))


def _layer(program: Program, step: Linear, weight: np.ndarray, bias: np.ndarray, scale: np.ndarray) -> Linear:
    bound = semantics.accumulator_bound(weight, 0, bias, _format(program, step.x), step.zero_input)
    made = replace(step, weight=weight, bias=bias, bound=bound)
    rows = scale.astype(np.float64) * program.readings[step.x][0]
    if step.format is None:
        return replace(made, exit_scale=rows.astype(np.float32))
    m, shift = semantics.multipliers(rows / program.readings[step.out][0], bound)
    return replace(made, m=m, shift=shift)


def into_graph(model: ir.Model, program: Program, codes: Codes) -> ir.Model:
    """A copy of the QDQ graph that the program was lowered from, with those codes and scales."""
    model = model.clone()
    inputs = {s.layer: program.readings[s.x][0] for s in program.steps if isinstance(s, Linear)}
    for node in model.graph:
        layer = node.outputs[0].name or ""
        if layer not in codes:
            continue
        weight, bias, scale = codes[layer]
        for reader, (code, s) in zip(node.inputs[1:], ((weight, scale), (bias, np.float32(inputs[layer]) * scale)), strict=True):
            made = reader.producer() if reader is not None else None
            assert made is not None
            for value, array in zip(made.inputs, (code, s.astype(np.float32)), strict=True):
                assert value is not None and value.const_value is not None
                dtype = value.const_value.dtype.numpy()  # 4-bit codes are kept as such
                value.const_value = ir.tensor(array.astype(dtype), name=value.name)
    return model


def _format(program: Program, register: str) -> IntFormat:
    """Of the codes in a register: those of the step that made them, before they were only moved about."""
    step = next(s for s in program.steps if s.out == register)
    if isinstance(step, Float):
        return _format(program, next(i for i in step.inputs if isinstance(i, str)))
    return step.format  # type: ignore[union-attr, return-value]


@dataclass(frozen=True)
class Reloader:
    """Engines of programs that differ from one in their weights alone: it is made flat once."""

    program: Program
    flat: Flat
    plain: bool  # the engine's weights are the program's, with no column moved

    @classmethod
    def of(cls, program: Program) -> "Reloader":
        flat = flatten(program, native.BLOCK)
        layers = {s.out: s for s in program.steps if isinstance(s, Linear)}
        calls = {c.label: c for c in flat.calls if c.operation == "linear"}
        plain = all(k in layers and np.array_equal(c.arguments[0], layers[k].weight) for k, c in calls.items())
        return cls(program, flat, plain)

    def load(self, program: Program, instruction_set: str | None = None) -> Any:
        """The native engine of such a program."""
        if not self.plain:
            return native.load(program, instruction_set)
        layers = {s.out: s for s in program.steps if isinstance(s, Linear)}
        calls = [
            replace(c, arguments=layer_arguments(layers[c.label], layers[c.label].weight)) if c.operation == "linear" else c
            for c in self.flat.calls
        ]
        return native.from_flat(program, replace(self.flat, calls=calls), instruction_set)
