"""load(path, executor): a callable policy. executor is "reference" (NumPy) or "onnxruntime"."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir

from fewbit.engine import reference
from fewbit.engine.lower import lower
from fewbit.errors import FewbitError
from fewbit.graph.read import read

Observation = np.ndarray | dict[str, np.ndarray]
EXECUTORS = ("reference", "onnxruntime")


class Policy:
    """policy(observations [batch, ...] or {name: [batch, ...]}) -> actions [batch, ...]."""

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


def load(model: str | Path | ir.Model, executor: str = "reference") -> Policy:
    """A policy from an artifact or any ONNX file. A single observation without the batch dimension is taken too."""
    if executor not in EXECUTORS:
        raise FewbitError(f"executor {executor} is unknown; choose one of {', '.join(EXECUTORS)}")
    model = model if isinstance(model, ir.Model) else read(model)
    program = lower(model) if executor == "reference" else None
    if program is not None:
        output = program.outputs[0]
        return Policy(lambda feeds: reference.run(program, feeds)[output], program.inputs, executor)
    from fewbit.graph.calibrate import session

    runner = session(ir.to_proto(model))
    types = {
        i.name: np.uint8
        if "uint8" in i.type
        else np.int64
        if "int64" in i.type
        else np.float64
        if "double" in i.type
        else np.float32
        for i in runner.get_inputs()
    }
    name = runner.get_outputs()[0].name

    def run(feeds: dict[str, np.ndarray]) -> np.ndarray:
        return np.asarray(runner.run([name], {k: np.asarray(v).astype(types[k]) for k, v in feeds.items()})[0])

    return Policy(run, {i.name: tuple(i.shape[1:]) for i in runner.get_inputs()}, executor)
