"""An ONNX file as a source: read with every check, straightened; its state as declared, recorded or seen in its operators."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from fewbit.errors import FewbitError
from fewbit.graph import fold, fold_recurrent, metadata, read
from fewbit.sources import Declared, Source, digest, original


def load(path: Path, state: Declared | None = None) -> Source:
    """state: of a file that remembers without LSTM or GRU operators, or without a record of it: {input: (output, initial)}."""
    model = read.read(path)
    try:
        fold.fold(model)
        records = _records(model.graph, state) if state else metadata.state(model) or _seen(model.graph)
    except FewbitError as e:
        raise FewbitError(f"{path}: {e}") from None
    held = {s[k] for s in records for k in ("input", "output")}
    ends = {"observation": model.graph.inputs, "action": model.graph.outputs}
    contract: dict[str, Any] = {k: _shapes(v for v in values if v.name not in held) for k, values in ends.items()}
    if records:
        contract["recurrent_state"] = [s["input"] for s in records]
    parts = [path, *read.data_files(path)]
    proto = read.whole(path)
    sha, half = digest(*(p.read_bytes() for p in parts)), original.computes_in_half(proto)
    return Source(model, path.name, sha, contract, tuple(records), original.of_onnx(proto), half)


def _shapes(values: Any) -> dict[str, list[int | str]]:
    return {v.name: [d if isinstance(d, int) else str(d) for d in (v.shape or [])][1:] for v in values}


def _seen(graph: ir.Graph) -> list[dict[str, Any]]:
    return [{"input": i, "output": o} for i, o in fold_recurrent.remembered(graph).items()]


def _records(graph: ir.Graph, state: Declared) -> list[dict[str, Any]]:
    """The record's entries of what was declared; a state of several layers has become one of each (fold_recurrent)."""
    for node in graph:
        if node.op_type in fold_recurrent.GATES:
            fold_recurrent.refuse(node)
    inputs, outputs = ({v.name or "": v for v in ends} for ends in (graph.inputs, graph.outputs))
    found = []
    for name, (output, initial) in state.items():
        layered = f"{name}_0" in inputs and name not in inputs
        count = sum(f"{name}_{k}" in inputs for k in range(len(inputs))) if layered else 1
        for k in range(count):
            one, left = (f"{name}_{k}", f"{output}_{k}") if layered else (name, output)
            for word, which, ends in (("input", one, inputs), ("output", left, outputs)):
                if which not in ends:
                    raise FewbitError(f"--state {name}={output}: it has no {word} {which}; it has {', '.join(ends)}")
            start = None if initial is None else np.asarray(initial, np.float32)
            start = start[k] if start is not None and layered and len(start) == count else start
            found.append(_record(inputs[one], outputs[left], start, f"--state {name}={output}"))
    if len(found) == len(inputs):
        raise FewbitError(f"--state {', '.join(state)}: no input is left to observe with")
    return found


def _record(given: ir.Value, left: ir.Value, start: np.ndarray | None, what: str) -> dict[str, Any]:
    shapes = [tuple(d for d in (v.shape or [])[1:] if isinstance(d, int)) for v in (given, left)]
    known = left.shape is not None and all(isinstance(d, int) for d in left.shape[1:])
    if known and shapes[0] != shapes[1]:
        raise FewbitError(f"{what}: the input is {list(shapes[0])} behind the batch, the output {list(shapes[1])}")
    record: dict[str, Any] = {"input": given.name, "output": left.name}
    if start is None:
        return record
    if start.size != int(np.prod(shapes[0])) or not np.isfinite(start).all():
        raise FewbitError(f"{what}: its initial value must be {list(shapes[0])} finite numbers")
    return record | {"initial": start.reshape(-1).tolist()}
