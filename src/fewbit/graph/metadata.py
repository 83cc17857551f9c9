"""What ONNX does not say, kept in the model's metadata under one key: source, scheme, recipe, contract, evidence (JSON)."""

import json
from typing import Any

import onnx_ir as ir

KEY = "fewbit"


def read(model: ir.Model) -> dict[str, Any]:
    """The record, or {} where the file is not ours or its record cannot be read."""
    try:
        record = json.loads(model.metadata_props.get(KEY) or "{}")
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def write(model: ir.Model, record: dict[str, Any]) -> None:
    model.metadata_props[KEY] = json.dumps(record, sort_keys=True)


def to_bytes(model: ir.Model) -> bytes:
    """The model's file; the same model gives the same bytes."""
    return ir.to_proto(model).SerializeToString(deterministic=True)
