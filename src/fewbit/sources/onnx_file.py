"""An ONNX file as a source: read with every check, straightened."""

from pathlib import Path

from fewbit.graph import fold, metadata, read
from fewbit.sources import Source, digest


def load(path: Path) -> Source:
    model = fold.fold(read.read(path))
    contract = {
        "observation": {v.name: [d if isinstance(d, int) else str(d) for d in (v.shape or [])][1:] for v in model.graph.inputs},
        "action": {v.name: [d if isinstance(d, int) else str(d) for d in (v.shape or [])][1:] for v in model.graph.outputs},
    }
    state = metadata.read(model).get("state") or []
    return Source(model, path.name, digest(path.read_bytes()), contract, tuple(state))
