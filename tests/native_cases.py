"""Cases for the runner (native/runner.cpp): programs as bytes, their inputs and the reference's outputs, in one file."""

import struct
from dataclasses import replace
from pathlib import Path

import corpus
import numpy as np

from fewbit.engine import native, reference
from fewbit.engine.flat import TYPES
from fewbit.engine.flatten import flatten
from fewbit.engine.lower import lower
from fewbit.graph.read import prepare


def write(path: Path, networks: list) -> int:
    """The corpus and more (program, feeds), every register an output; how many cases."""
    both = [(lower(prepare(c.model)), c.feeds) for c in corpus.cases()] + networks
    content = [_case(program, feeds) for program, feeds in both]
    path.write_bytes(struct.pack("<q", len(content)) + b"".join(content))
    return len(content)


def _bytes(content: bytes) -> bytes:
    return struct.pack("<q", len(content)) + content


def _case(program, feeds: dict[str, np.ndarray]) -> bytes:
    wanted = reference.run(program, feeds)
    names = tuple(s.out for s in program.steps)
    flat = native.to_bytes(flatten(replace(program, outputs=names), native.BLOCK))
    arrays = [np.ascontiguousarray(feeds[k], program.input_dtypes[k]) for k in program.inputs]
    parts = [_bytes(flat), struct.pack("<qq", len(arrays[0]), len(arrays))]
    parts += [struct.pack("<q", TYPES.index(a.dtype)) + _bytes(a.tobytes()) for a in arrays]
    parts += [struct.pack("<q", len(names)), *(_bytes(np.ascontiguousarray(wanted[n]).tobytes()) for n in names)]
    return b"".join(parts)
