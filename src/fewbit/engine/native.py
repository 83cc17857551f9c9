"""The flat bytes that the native engine reads (native/program.h), and the engine over them."""

import os
import struct
from dataclasses import replace
from typing import Any

import numpy as np

from fewbit.engine import reference
from fewbit.engine.flat import TYPES, Flat
from fewbit.engine.flatten import flatten
from fewbit.engine.program import Program
from fewbit.engine.registers import reached
from fewbit.errors import FewbitError, Unsupported

MAGIC = 0x3130544942574546  # "FEWBIT01"
BLOCK = 16
OPERATIONS = ["copy", "quantize", "linear", "linear_floats", "table", "lookup", "rescale", "add", "multiply", "dequantize"] + [
    "binary",
    "unary",
    "argmax",
    "mean",
    "cast",
    "softmax",
]  # in the order of steps.cpp


def load(program: Program, instruction_set: str | None = None):
    """The native engine of a program. instruction_set: a name from fewbit._native.available(); FEWBIT_ISA, or the best.

    Outputs that no input reaches (a policy's log_std) are no rows of a batch: they are computed here, once.
    """
    varying = reached(program)
    outputs = tuple(o for o in program.outputs if o in varying)
    if program.outputs[:1] != outputs[:1]:
        raise FewbitError(f"output {program.outputs[0]} is a constant; this is no policy")
    engine = from_flat(program, flatten(replace(program, outputs=outputs), BLOCK), instruction_set)
    if outputs == program.outputs:
        return engine
    zeros = {k: np.zeros((1, *s), program.input_dtypes[k]) for k, s in program.inputs.items()}
    made = reference.run(program, zeros)
    return _WithConstants(engine, [None if o in varying else made[o] for o in program.outputs])


class _WithConstants:
    """An engine and, among its outputs, constants; None stands where the engine's own outputs go."""

    def __init__(self, engine: Any, outputs: list[np.ndarray | None]):
        self.engine, self.outputs = engine, outputs

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def __call__(self, *args: Any, **options: Any) -> tuple[np.ndarray, ...]:
        made = self.engine(*args, **options)
        computed = iter(made if isinstance(made, tuple) else (made,))
        return tuple(next(computed) if o is None else o for o in self.outputs)


def from_flat(program: Program, flat: Flat, instruction_set: str | None = None):
    """The same, of a program that was made flat already, in blocks of BLOCK."""
    name = instruction_set or os.environ.get("FEWBIT_ISA", "")
    inputs, outputs = {k: tuple(v) for k, v in program.inputs.items()}, [o.shape for o in flat.outputs]
    try:
        return module().Engine(to_bytes(flat), inputs, outputs, name)
    except FewbitError as e:
        damage = "damaged program: "
        if not str(e).startswith(damage):
            raise
        # These bytes were made here, of a sound graph: what C++ rejects in them is what it has no kernel for.
        raise Unsupported(f"the native engine has no kernel for this graph ({str(e).removeprefix(damage)})") from None


def module() -> Any:
    """fewbit._native, which is there where the package was built with a compiler."""
    try:
        from fewbit import _native
    except ImportError as e:
        raise FewbitError(f"the native engine was not built ({e}); reinstall fewbit, or use executor='onnxruntime'") from None
    return _native


def to_bytes(flat: Flat) -> bytes:
    """As native/program.h has it: int64 words, then the data that they point into."""
    data = bytearray()

    def placed(a: np.ndarray) -> list[int]:
        """Two words: where it lies in the data, and its length."""
        data.extend(bytes(-len(data) % 8))
        at = len(data)
        data.extend(np.ascontiguousarray(a).tobytes())
        return [at, a.size]

    words = [len(flat.registers)]
    for r in flat.registers:
        words += [TYPES.index(r.dtype), r.layout.count, r.layout.inner, -1 if r.held is None else placed(r.held)[0]]
    for ends in (flat.inputs, flat.outputs):
        words += [len(ends), *(r.id for r in ends)]
    words.append(len(flat.calls))
    for call in flat.calls:
        more = [w for a in call.arguments for w in (placed(a) if isinstance(a, np.ndarray) else [int(a)])]
        words += [OPERATIONS.index(call.operation), len(call.registers) + len(more), *call.registers, *more]
    return struct.pack(f"<qq{len(words)}q", MAGIC, len(words), *words) + bytes(data)
