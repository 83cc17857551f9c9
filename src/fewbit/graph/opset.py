"""Bring an ONNX model of opset 7 or newer to opset 21, or say which operator keeps it from there."""

import re
from typing import Any

import onnx
import onnx.defs
from onnx import inliner, version_converter

from fewbit.errors import FewbitError

OPSET = 21
IR_VERSION = 10  # the first that opset 21 may stand in
OLDEST = 7  # BatchNormalization, broadcasting and dropout had other meanings before


def check(proto: onnx.ModelProto) -> None:
    """Refuse a model that is older or newer than what can be brought to opset 21, before anything else is said of it."""
    version, newest = _version(proto), onnx.defs.onnx_opset_version()
    if version < OLDEST:
        raise FewbitError(f"it is of opset {version}; export it again with opset_version=17")
    if version > newest:
        raise FewbitError(
            f"it is of opset {version}, newer than this onnx's {newest}; export it again with opset_version={OPSET}"
        )
    if proto.ir_version > onnx.IR_VERSION:
        raise FewbitError(
            f"it is of IR version {proto.ir_version}, newer than this onnx's {onnx.IR_VERSION}; "
            f"update onnx, or export it again with opset_version={OPSET}"
        )


def _version(proto: onnx.ModelProto) -> int:
    return next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), OPSET)


def convert(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same network in opset 21 and IR 10.

    Raises:
        FewbitError: an operator that opset 21 cannot say.
    """
    version = _version(proto)
    proto.ir_version = IR_VERSION  # first: in IR 3 the converter looks for every initializer among the inputs
    if version != OPSET:
        proto = _convert(_expanded(proto, version) if version > OPSET else proto, version)
        proto.ir_version = IR_VERSION
    return proto


def _convert(proto: onnx.ModelProto, version: int) -> onnx.ModelProto:
    try:
        return version_converter.convert_version(proto, OPSET)
    except Exception as e:
        named = re.search(r"(?:Adapter .* for|Previous Version of|adapter for) (\w+)", str(e))
        what = f"operator {named[1]} of opset {version}" if named else f"a network of opset {version} such as this"
        raise FewbitError(f"{what} cannot be brought to opset {OPSET}; export it again with opset_version={OPSET}") from None


def _expanded(proto: onnx.ModelProto, version: int) -> onnx.ModelProto:
    """Operators that are younger than opset 21 written as what they are defined to be; refused where they are not."""
    younger = {n.op_type for n in proto.graph.node if n.domain in ("", "ai.onnx") and not onnx.defs.has(n.op_type, OPSET)}
    for name in sorted(younger):
        schema: Any = onnx.defs.get_schema(name, version, "")
        if not (schema.has_function or schema.has_context_dependent_function):
            raise FewbitError(f"operator {name} is not in opset {OPSET}; export it again with opset_version={OPSET}")
    if not younger:
        return proto
    typed = onnx.ModelProto()
    typed.CopyFrom(proto)
    shapes = [onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in proto.graph.initializer]
    typed.graph.value_info.extend(shapes)  # the definition depends on the types of what the operator reads
    return inliner.inline_selected_functions(typed, [("", name) for name in sorted(younger)], inline_schema_functions=True)
