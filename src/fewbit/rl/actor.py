"""What acts in a rollout: a quantized network with its exploration, as one ONNX file; and what changes of it when it learns."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from fewbit.engine.lower import lower
from fewbit.engine.program import Program
from fewbit.engine.reweigh import Codes, Reloader, into_graph, reweigh
from fewbit.errors import FewbitError
from fewbit.files import write_whole
from fewbit.graph import metadata
from fewbit.graph import read as graph
from fewbit.rl import explore
from fewbit.rl.explore import Exploration


class Base:
    """A graph and what is made of it once, whatever weights it will have."""

    def __init__(self, model: ir.Model):
        self.model = model

    @cached_property
    def program(self) -> Program:
        return lower(self.model)

    @cached_property
    def reloader(self) -> Reloader:
        return Reloader.of(self.program)


@dataclass(frozen=True)
class Actor:
    """base: the QDQ graph, whose outputs are the heads of its exploration (rl/explore). codes: weights in the place of its."""

    base: Base
    exploration: Exploration
    codes: Codes = field(default_factory=dict)

    @cached_property
    def program(self) -> Program:
        program = self.base.program
        if program.state or len(program.inputs) != 1:
            raise FewbitError("rollouts act with networks of one array of observations that remember nothing")
        return reweigh(program, self.codes) if self.codes else program

    def engine(self) -> Any:
        """The native engine, in about a millisecond where codes take the place of others."""
        return self.base.reloader.load(self.program)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one observation."""
        return next(iter(self.program.inputs.values()))

    @property
    def dtype(self) -> np.dtype:
        """Of observations."""
        return next(iter(self.program.input_dtypes.values()))

    def to_bytes(self) -> bytes:
        """The artifact: a standard QDQ ONNX file whose record says how it explores."""
        model = into_graph(self.base.model, self.base.program, self.codes) if self.codes else self.base.model
        metadata.write(model, metadata.read(model) | {"exploration": self.exploration.record()})
        return metadata.to_bytes(model)

    def save(self, path: str | Path) -> None:
        write_whole(path, self.to_bytes())


def read(source: str | Path | bytes) -> Actor:
    """An actor's file, or its bytes. Any other artifact acts without exploring."""
    model = graph.prepare(onnx.load_model_from_string(source)) if isinstance(source, bytes) else graph.read(source)
    record = metadata.read(model).get("exploration")
    return Actor(Base(model), Exploration("deterministic") if record is None else explore.read(record))
