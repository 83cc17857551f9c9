"""S8: what a recurrent network remembers, as inputs and outputs of one step; read from the record, held as codes where it can be.

The record's "state" is a list of {"input", "output", "initial"}: what leaves as the graph's output enters as its input at the
next step; initial (numbers, without the batch; zeros where it is missing) is what enters at an episode's first.
"""

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from fewbit.engine.program import Dequantize, Float, Program, Quantize, State, Step
from fewbit.errors import FewbitError
from fewbit.graph import metadata
from fewbit.numerics import affine


def states(model: ir.Model, shapes: dict[str, tuple[int, ...]]) -> list[State]:
    """Of a graph's record, checked against its inputs (name -> shape without the batch) and outputs."""
    found = []
    for entry in metadata.state(model):
        name, initial = entry["input"], entry.get("initial")
        try:
            start = np.asarray(np.zeros(shapes[name]) if initial is None else initial, np.float32).reshape(shapes[name])
            if not np.isfinite(start).all():
                raise ValueError
        except (TypeError, KeyError, ValueError, OverflowError):
            raise FewbitError(f"its record of the state is damaged ({str(entry)[:80]}); quantize the source again") from None
        found.append(State(name, entry["output"], start))
    return found


def integer(program: Program) -> Program:
    """The same with each state as codes instead of floats, where every code comes back (S8): nothing is lost but two steps."""
    for state in program.state:
        readers = [s for s in program.steps if state.input in _reads(s)]
        maker = next((s for s in program.steps if s.out == state.output), None)
        first = readers[0] if readers else None
        if not (isinstance(first, Quantize) and isinstance(maker, Dequantize) and np.size(maker.scale) == 1):
            continue
        source = next((s for s in program.steps if s.out == maker.x), None)
        written = (np.float32(np.reshape(maker.scale, -1)[0]), maker.zero_point, getattr(source, "format", None))
        alike = (first.scale, first.zero_point, first.format)
        same = [s for s in readers if isinstance(s, Quantize) and (s.scale, s.zero_point, s.format) == alike]
        if written == alike and len(same) == len(readers):
            program = _held_as_codes(program, state, first, readers[1:], maker)
    return program


def _held_as_codes(program: Program, state: State, first: Quantize, again: list[Step], maker: Dequantize) -> Program:
    steps: list[Step] = [Float("Identity", s.out, (first.out,)) if s in again else s for s in program.steps if s is not first]
    codes = affine.quantize(state.initial, first.scale, first.zero_point, first.format)
    held = State(first.out, maker.x, codes)
    return replace(
        program,
        inputs={first.out if k == state.input else k: v for k, v in program.inputs.items()},
        input_dtypes={
            first.out if k == state.input else k: np.dtype(first.format.dtype) if k == state.input else v
            for k, v in program.input_dtypes.items()
        },
        outputs=tuple(maker.x if o == state.output else o for o in program.outputs),
        steps=tuple(steps),
        state=tuple(held if s is state else s for s in program.state),
    )


def _reads(step: Step) -> list[str]:
    if isinstance(step, Float):
        return [i for i in step.inputs if isinstance(i, str)]
    return [getattr(step, k) for k in ("x", "a", "b") if hasattr(step, k)]
