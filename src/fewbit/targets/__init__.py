"""Where an artifact can go. RUNTIMES: the rules of another runtime, as a rewrite of the artifact, and how to run it there.
PLACES: what `fewbit export --to` writes. One file a room, one line in a table; nothing is imported until asked for.

A runtime's module has
    rewrite(model) -> model      a copy that this runtime takes and fuses into its integer kernels; the record goes along
    load(model) -> Policy        the real runtime, one thread, what it does checked by tests/test_targets_NAME.py
"""

import importlib
import inspect
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from fewbit.errors import FewbitError, MissingExtra


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


def runtime(name: str) -> ModuleType:
    """The module of a runtime."""
    return _room(RUNTIMES, "--target", name)


def export(artifact: Path, to: str, out: Path, **options: Any) -> dict[str, Any]:
    """Write the artifact for a place into the folder or file `out`; what it says of itself (sizes, files)."""
    room = _room(PLACES, "--to", to)
    unknown = sorted(set(options) - set(inspect.signature(room.export).parameters))
    if unknown:
        raise FewbitError(f"--{unknown[0].replace('_', '-')} does not apply to --to {to}")
    return room.export(artifact, out, **options)


def _room(table: dict[str, Room], option: str, name: str) -> ModuleType:
    if name not in table:
        raise FewbitError(f"{option} {name} is unknown; choose one of {', '.join(table)}")
    try:
        return importlib.import_module(table[name].module)
    except ModuleNotFoundError as e:
        if table[name].extra and not (e.name or "").startswith("fewbit"):
            raise MissingExtra(e.name or name, table[name].extra) from None
        raise
