"""A quantized graph with its record, and how it becomes a file that nobody meets half written."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from fewbit.files import write_whole
from fewbit.graph import metadata


@dataclass(frozen=True, repr=False)
class Artifact:
    """A quantized graph and its record (source, scheme, recipe, contract, evidence). fewbit.load(artifact.model) acts."""

    model: ir.Model
    record: dict[str, Any]

    def __repr__(self) -> str:
        recipe, evidence = self.record.get("recipe") or {}, self.record.get("evidence") or {}
        said = [str(recipe[k]) for k in ("source", "weights", "method") if k in recipe]
        kept = evidence.get("kept")
        return f"Artifact({', '.join([*said, *([f'kept {kept:.1%}'] if kept is not None else [])])})"

    def save(self, path: str | Path) -> None:
        """Write beside, then rename: a reader never meets half a file."""
        write_whole(path, self.to_bytes())

    def with_evidence(self, evidence: dict[str, Any]) -> "Artifact":
        """The same with its record completed; the record holds the size of the file that holds the record."""
        self.record["evidence"] = evidence | {"size_bytes": 0}
        for _ in range(3):
            self.record["evidence"]["size_bytes"] = len(self.to_bytes())
        return self

    def to_bytes(self) -> bytes:
        metadata.write(self.model, self.record)
        return metadata.to_bytes(self.model)
