"""Where an artifact can go. RUNTIMES: the rules of another runtime, as a rewrite of the artifact, and how to run it there.
PLACES: what `fewbit export --to` writes. One file a room, one line in a table; nothing is imported until asked for.

A runtime's module has
    rewrite(model) -> model      a copy that this runtime takes and fuses into its integer kernels; the record goes along
    load(model) -> Policy        the real runtime, one thread, what it does checked by tests/test_targets_NAME.py
"""

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx_ir as ir

from fewbit.engine.load import quickest
from fewbit.engine.policy import Policy
from fewbit.errors import FewbitError, MissingExtra
from fewbit.graph import metadata
from fewbit.graph.qdq import SATURATING


@dataclass(frozen=True)
class Room:
    """Where it is, and what to install for it (an extra of the package)."""

    module: str
    extra: str = ""


RUNTIMES = {
    "onnxruntime": Room("fewbit.targets.onnxruntime"),
    "openvino": Room("fewbit.targets.openvino", "openvino"),
    "tensorrt": Room("fewbit.targets.tensorrt", "tensorrt"),
}
PLACES = {
    "c": Room("fewbit.targets.c"),
    "litert": Room("fewbit.targets.litert", "litert"),
    "onnx": Room("fewbit.targets.onnx"),
    "tensorrt-rtx": Room("fewbit.targets.tensorrt_rtx", "tensorrt-rtx"),
}
ON_A_PC = "a robot's PC needs no export: call the artifact by fewbit.load(FILE) in Python, or by ONNX Runtime in C++ or Python"
ELSEWHERE = dict.fromkeys(("ros", "ros2", "cpp", "c++", "cxx", "python", "linux"), f"{ON_A_PC}; without either, --to c") | {
    "gguf": "that is for language models: fewbit llm export", "openvino": "--to onnx --target openvino writes for it",
    "onnxruntime": "--to onnx --target onnxruntime writes for it", "tensorrt": "--to onnx --target tensorrt writes for it",
    "tflite": "it is LiteRT today: --to litert",
}  # fmt: skip


def rewrite(model: ir.Model, name: str) -> ir.Model:
    """A copy by a runtime's rules, its record saying whose; refused where the runtime could saturate (targets/saturation)."""
    from fewbit.targets import saturation

    made = runtime(name).rewrite(model)
    record = metadata.read(model) | {"target": name}
    if name in SATURATING:
        record["pairs"] = saturation.proof(made)
    metadata.write(made, record)
    return made


def runtime(name: str, option: str = "--target") -> ModuleType:
    """The module of a runtime."""
    return _room(RUNTIMES, option, name)


def loader(name: str) -> Callable[[ir.Model], Policy]:
    """How to run a rewritten model: in its runtime, or, where that is not installed or has no device here, in fewbit's engine."""

    def load(model: ir.Model) -> Policy:
        try:
            return runtime(name).load(model)
        except FewbitError:
            return quickest(model)

    return load


def export(artifact: Path, to: str, out: Path, **options: Any) -> dict[str, Any]:
    """Write the artifact for a place into the folder or file `out`; what it says of itself (sizes, files)."""
    room = _room(PLACES, "--to", to)
    unknown = sorted(set(options) - set(inspect.signature(room.export).parameters))
    if unknown:
        raise FewbitError(f"--{unknown[0].replace('_', '-')} does not apply to --to {to}")
    return room.export(artifact, out, **options)


def _room(table: dict[str, Room], option: str, name: str) -> ModuleType:
    if name not in table:
        hint = f"; {ELSEWHERE[name.lower()]}" if table is PLACES and name.lower() in ELSEWHERE else ""
        raise FewbitError(f"{option} {name} is unknown; choose one of {', '.join(table)}{hint}")
    try:
        return importlib.import_module(table[name].module)
    except ModuleNotFoundError as e:
        if table[name].extra and not (e.name or "").startswith("fewbit"):
            raise MissingExtra(e.name or name, table[name].extra) from None
        raise
