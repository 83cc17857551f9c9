"""What ONNX does not say, kept in the model's metadata under one key: source, scheme, recipe, contract, evidence (JSON)."""

import json
from typing import Any

import onnx_ir as ir

from fewbit.errors import FewbitError

KEY = "fewbit"
MASKS = "action_masks"  # the input of a policy that is told what is allowed: float32 [n, choices], 1 allowed, 0 not


def read(model: ir.Model) -> dict[str, Any]:
    """The record, or {} where the file is not ours or its record cannot be read."""
    try:
        record = json.loads(model.metadata_props.get(KEY) or "{}")
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def state(model: ir.Model) -> list[dict[str, Any]]:
    """What the record says is remembered, [{"input", "output", "initial"}]; refused where it is damaged."""
    entries = read(model).get("state") or []
    inputs, outputs = ([v.name for v in ends] for ends in (model.graph.inputs, model.graph.outputs))
    for k, entry in enumerate(entries if isinstance(entries, list) else [entries]):
        whole = isinstance(entries, list) and isinstance(entry, dict)
        pair = (entry.get("input"), entry.get("output")) if whole else (None, None)
        others = [e for e in entries[:k] if pair[0] == e["input"] or pair[1] == e["output"]] if whole else []
        if pair[0] not in inputs or pair[1] not in outputs or others or len(entries) >= len(inputs):
            raise FewbitError(f"its record of the state is damaged ({str(entry)[:80]}); quantize the source again")
    return entries


def write(model: ir.Model, record: dict[str, Any]) -> None:
    model.metadata_props[KEY] = json.dumps(record, sort_keys=True)


def to_bytes(model: ir.Model) -> bytes:
    """The model's file; the same model gives the same bytes."""
    return ir.to_proto(model).SerializeToString(deterministic=True)
