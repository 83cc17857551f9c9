"""load(path, executor): a callable policy, in fewbit's own engine where it runs the graph and in ONNX Runtime elsewhere."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from fewbit.engine import native, reference
from fewbit.engine.lower import lower
from fewbit.engine.policy import Feeds, Policy, as_kind
from fewbit.engine.program import Program
from fewbit.engine.state import states
from fewbit.errors import FewbitError, Unsupported
from fewbit.graph.metadata import MASKS
from fewbit.graph.read import read

EXECUTORS = ("auto", "native", "reference", "onnxruntime")


def load(model: str | Path | ir.Model, executor: str = "auto", instruction_set: str | None = None) -> Any:
    """A policy from an artifact or any ONNX file. A single observation without the batch dimension is taken too.

    Args:
        model: a file, or a graph that was read.
        executor: "auto", fewbit's own engine, or ONNX Runtime where the graph has an operator that the engine lacks; "native",
            the engine or a refusal; "reference", the integer semantics in NumPy; "onnxruntime".
        instruction_set: of the engine; one of fewbit._native.available(), else FEWBIT_ISA, else the best.

    Returns:
        From the engine act(observation or batch, out=None, threads=1), C-contiguous arrays of the input's dtype (float64 for
        float32 too). A policy that remembers, is told what is allowed, or runs elsewhere is a Policy: act(observation),
        act.reset().

    Raises:
        FewbitError: the file cannot be read, or nothing runs the graph.
    """
    if executor not in EXECUTORS:
        raise FewbitError(f"executor {executor} is unknown; choose one of {', '.join(EXECUTORS)}")
    model = model if isinstance(model, ir.Model) else read(model)
    if executor == "onnxruntime":
        return _onnxruntime(model)
    if executor == "reference":
        return _reference(lower(model))
    try:
        program = lower(model)
        engine = native.load(program, instruction_set)
    except Unsupported as e:
        if executor == "native":
            raise Unsupported(f"{e}; load it with executor='auto', which takes ONNX Runtime for such a graph") from None
        return _instead(model, str(e))
    return _over_engine(program, engine) if program.state or MASKS in program.inputs else engine


def quickest(model: ir.Model) -> Policy:
    """What load chooses, as a Policy for observations of any dtype."""
    try:
        program = lower(model)
        return _over_engine(program, native.load(program))
    except Unsupported as e:
        return _instead(model, str(e))


def _instead(model: ir.Model, reason: str) -> Policy:
    """ONNX Runtime, for a graph that the engine does not run for that reason."""
    try:
        return _onnxruntime(model)
    except ImportError:
        raise FewbitError(f"{reason}, and ONNX Runtime is not installed; run: pip install onnxruntime") from None
    except FewbitError as e:
        raise FewbitError(f"{reason}; ONNX Runtime, which could run it instead, refuses the graph: {e}") from None


def _over_engine(program: Program, engine: Any) -> Policy:
    kinds = program.input_dtypes

    def run(feeds: Feeds) -> tuple[np.ndarray, ...]:
        missing = [k for k in program.inputs if k not in feeds]
        if missing:
            raise FewbitError(f"input {missing[0]} is missing; the network takes {', '.join(program.inputs)}")
        given = {k: np.ascontiguousarray(as_kind(k, feeds[k], kinds[k])) for k in kinds}
        made = engine(given if len(kinds) > 1 else next(iter(given.values())))
        return made if isinstance(made, tuple) else (made,)

    return Policy(run, program.inputs, f"native {engine.instruction_set}", program.state, program.outputs, kinds)


def _reference(program: Program) -> Policy:
    def run(feeds: Feeds) -> list[np.ndarray]:
        registers = reference.run(program, feeds)
        return [registers[o] for o in program.outputs]

    return Policy(run, program.inputs, "reference", program.state, program.outputs, program.input_dtypes)


def _onnxruntime(model: ir.Model) -> Policy:
    from fewbit.graph import calibrate

    proto = ir.to_proto(model)
    try:
        runner = calibrate.session(proto)
    except FewbitError:
        runner = calibrate.session(proto, optimise=False)  # its own rewrites fail on some graphs that it runs as they are
    kinds = {v.name or "": np.dtype(np.float32) if v.dtype is None else v.dtype.numpy() for v in model.graph.inputs}
    shapes = {i.name: tuple(i.shape[1:]) for i in runner.get_inputs()}
    names = [o.name for o in runner.get_outputs()]

    def run(feeds: Feeds) -> list[np.ndarray]:
        return calibrate.run(runner, names, {k: as_kind(k, feeds[k], kinds[k]) for k in kinds if k in feeds})

    return Policy(run, shapes, "onnxruntime", states(model, shapes), names, kinds)
