"""An ONNX file by the rules of one runtime: its rewrite of the artifact, written beside and renamed."""

from pathlib import Path
from typing import Any

from fewbit import targets
from fewbit.errors import FewbitError
from fewbit.files import write_whole
from fewbit.graph import metadata
from fewbit.graph.read import read


def export(artifact: Path, out: Path, target: str = "") -> dict[str, Any]:
    """{"files", "size_bytes"}; out is the file's path."""
    if not target:
        raise FewbitError(f"--to onnx writes a file for one runtime; give --target, one of {', '.join(targets.RUNTIMES)}")
    try:
        model = targets.rewrite(read(artifact), target)
    except FewbitError as e:
        raise FewbitError(f"{artifact}: {e}") from None
    size = write_whole(out, metadata.to_bytes(model))
    return {"files": [str(out)], "size_bytes": size}
