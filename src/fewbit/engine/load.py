"""load(path, executor): a callable policy. executor is "native" (fewbit's own engine), "reference" (NumPy) or "onnxruntime"."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from fewbit.engine import native, reference
from fewbit.engine.lower import lower
from fewbit.engine.policy import Feeds, Policy
from fewbit.engine.program import Program
from fewbit.engine.state import states
from fewbit.errors import FewbitError
from fewbit.graph.read import read

EXECUTORS = ("native", "reference", "onnxruntime")


def load(model: str | Path | ir.Model, executor: str = "native", instruction_set: str | None = None) -> Any:
    """A policy from an artifact or any ONNX file. A single observation without the batch dimension is taken too.

    native: act(observation or batch, out=None, threads=1), C-contiguous arrays of the input's dtype (float64 for float32 too);
    what it cannot run it refuses here. instruction_set: one of fewbit._native.available(), else FEWBIT_ISA, else the best.
    A policy that remembers is a Policy with every executor: act(observation), act.reset().
    """
    if executor not in EXECUTORS:
        raise FewbitError(f"executor {executor} is unknown; choose one of {', '.join(EXECUTORS)}")
    model = model if isinstance(model, ir.Model) else read(model)
    if executor == "onnxruntime":
        return _onnxruntime(model)
    program = lower(model)
    if executor == "reference":
        return _reference(program)
    engine = native.load(program, instruction_set)
    return _over_engine(program, engine) if program.state else engine


def quickest(model: ir.Model) -> Policy:
    """The native engine where it runs the graph, the reference elsewhere (the same codes), for observations of any dtype."""
    program = lower(model)
    try:
        return _over_engine(program, native.load(program))
    except FewbitError:
        return _reference(program)


def _over_engine(program: Program, engine: Any) -> Policy:
    kinds = program.input_dtypes

    def run(feeds: Feeds) -> tuple[np.ndarray, ...]:
        missing = [k for k in program.inputs if k not in feeds]
        if missing:
            raise FewbitError(f"input {missing[0]} is missing; the network takes {', '.join(program.inputs)}")
        made = engine({k: np.ascontiguousarray(feeds[k], kinds[k]) for k in kinds} if len(kinds) > 1 else _only(feeds, kinds))
        return made if isinstance(made, tuple) else (made,)

    return Policy(run, program.inputs, f"native {engine.instruction_set}", program.state, program.outputs)


def _only(feeds: Feeds, kinds: dict[str, np.dtype]) -> np.ndarray:
    ((name, kind),) = kinds.items()
    return np.ascontiguousarray(feeds[name], kind)


def _reference(program: Program) -> Policy:
    def run(feeds: Feeds) -> list[np.ndarray]:
        registers = reference.run(program, feeds)
        return [registers[o] for o in program.outputs]

    return Policy(run, program.inputs, "reference", program.state, program.outputs)


def _onnxruntime(model: ir.Model) -> Policy:
    from fewbit.graph import calibrate

    runner = calibrate.session(ir.to_proto(model))
    kinds = {"uint8": np.uint8, "int64": np.int64, "double": np.float64}
    types = {i.name: next((t for k, t in kinds.items() if k in i.type), np.float32) for i in runner.get_inputs()}
    shapes = {i.name: tuple(i.shape[1:]) for i in runner.get_inputs()}
    names = [o.name for o in runner.get_outputs()]

    def run(feeds: Feeds) -> list[np.ndarray]:
        return calibrate.run(runner, names, {k: np.asarray(v).astype(types[k]) for k, v in feeds.items() if k in types})

    return Policy(run, shapes, "onnxruntime", states(model, shapes), names)
