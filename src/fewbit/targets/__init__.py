"""Where an artifact can go: one file a place, one line each in TARGETS; export(name, ...) calls its module's `export`."""

import importlib
from pathlib import Path
from typing import Any

from fewbit.errors import FewbitError

TARGETS = {
    "c": "fewbit.targets.c",
}


def export(artifact: Path, to: str, out: Path, **options: Any) -> dict[str, Any]:
    """Write the artifact for a target into the folder or file `out`; what it says of itself (sizes, files)."""
    if to not in TARGETS:
        raise FewbitError(f"--to {to} is unknown; choose one of {', '.join(TARGETS)}")
    return importlib.import_module(TARGETS[to]).export(artifact, out, **options)
