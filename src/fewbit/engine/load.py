"""load(path, executor): a callable policy. executor is "native" (fewbit's own engine), "reference" (NumPy) or "onnxruntime"."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from fewbit.engine import native, reference
from fewbit.engine.lower import lower
from fewbit.engine.program import Program
from fewbit.errors import FewbitError
from fewbit.graph.read import read

Observation = np.ndarray | dict[str, np.ndarray]
EXECUTORS = ("native", "reference", "onnxruntime")


class Policy:
    """policy(observations [batch, ...] or {name: [batch, ...]}) -> actions [batch, ...]; observations of any dtype."""

    def __init__(self, run: Callable[[dict[str, np.ndarray]], np.ndarray], inputs: dict[str, tuple[int, ...]], executor: str):
        self._run, self.inputs, self.executor = run, inputs, executor

    def __call__(self, observation: Observation) -> np.ndarray:
        if not isinstance(observation, dict):
            if len(self.inputs) != 1:
                raise FewbitError(f"this policy takes a dictionary of observations: {', '.join(self.inputs)}")
            observation = {next(iter(self.inputs)): observation}
        first = next(iter(self.inputs))
        if first in observation and np.asarray(observation[first]).ndim == len(self.inputs[first]):
            return self._run({k: np.asarray(v)[None] for k, v in observation.items()})[0]
        return self._run(observation)


def load(model: str | Path | ir.Model, executor: str = "native", instruction_set: str | None = None) -> Any:
    """A policy from an artifact or any ONNX file. A single observation without the batch dimension is taken too.

    native: act(observation or batch, out=None, threads=1), C-contiguous arrays of the input's dtype (float64 for float32 too);
    what it cannot run it refuses here. instruction_set: one of fewbit._native.available(), else FEWBIT_ISA, else the best.
    """
    if executor not in EXECUTORS:
        raise FewbitError(f"executor {executor} is unknown; choose one of {', '.join(EXECUTORS)}")
    model = model if isinstance(model, ir.Model) else read(model)
    if executor == "onnxruntime":
        return _onnxruntime(model)
    program = lower(model)
    return native.load(program, instruction_set) if executor == "native" else _reference(program)


def quickest(model: ir.Model) -> Policy:
    """The native engine where it runs the graph, the reference elsewhere (the same codes), for observations of any dtype."""
    program = lower(model)
    try:
        engine = native.load(program)
    except FewbitError:
        return _reference(program)

    def run(feeds: dict[str, np.ndarray]) -> np.ndarray:
        missing = [k for k in program.inputs if k not in feeds]
        if missing:
            raise FewbitError(f"input {missing[0]} is missing; the network takes {', '.join(program.inputs)}")
        made = engine({k: np.ascontiguousarray(feeds[k], dtype) for k, dtype in program.input_dtypes.items()})
        return made[0] if isinstance(made, tuple) else made

    return Policy(run, program.inputs, f"native {engine.instruction_set}")


def _reference(program: Program) -> Policy:
    output = program.outputs[0]
    return Policy(lambda feeds: reference.run(program, feeds)[output], program.inputs, "reference")


def _onnxruntime(model: ir.Model) -> Policy:
    from fewbit.graph.calibrate import session

    runner = session(ir.to_proto(model))
    kinds = {"uint8": np.uint8, "int64": np.int64, "double": np.float64}
    types = {i.name: next((t for k, t in kinds.items() if k in i.type), np.float32) for i in runner.get_inputs()}
    name = runner.get_outputs()[0].name

    def run(feeds: dict[str, np.ndarray]) -> np.ndarray:
        return np.asarray(runner.run([name], {k: np.asarray(v).astype(types[k]) for k, v in feeds.items()})[0])

    return Policy(run, {i.name: tuple(i.shape[1:]) for i in runner.get_inputs()}, "onnxruntime")
