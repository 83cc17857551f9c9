"""Read an ONNX file that a stranger sent: checked, plain, opset 21, float32, free batch dimension; or one clear error.

Everything that can go wrong in a file is caught here, so no later module meets a malformed graph.
"""

import math
from pathlib import Path

import onnx
import onnx.shape_inference
import onnx_ir as ir

from fewbit.errors import FewbitError, first_line
from fewbit.graph import batch, external_data, opset, tensors
from fewbit.graph.inline import cast_plainly, inline, name_nodes
from fewbit.graph.opset import OPSET
from fewbit.graph.precision import to_float32

__all__ = ["OPSET", "data_files", "prepare", "read"]
MAX_ELEMENTS = 1 << 28  # of an array that no file holds but its text asks for: no network comes near


def read(path: str | Path) -> ir.Model:
    """The model in path, checked, converted to opset 21, its first dimension free."""
    path = Path(path)
    try:
        proto = _parsed(path)
        external_data.load(proto, path.parent)
        return prepare(proto)
    except FewbitError as e:
        raise FewbitError(f"{path}: {e}") from None


def whole(path: Path) -> onnx.ModelProto:
    """The file as it came, with the weights that lie beside it."""
    proto = _parsed(path)
    external_data.load(proto, path.parent)
    return proto


def data_files(path: Path) -> list[Path]:
    """The files beside an ONNX file that hold weights of it; [] where it is whole."""
    return external_data.load(_parsed(path), path.parent)


def _parsed(path: Path) -> onnx.ModelProto:
    if not path.exists():
        raise FewbitError("no such file")
    if path.is_dir():
        raise FewbitError("is a folder; give the .onnx file in it")
    if path.stat().st_size > tensors.MAX_BYTES:
        raise FewbitError("larger than 2 GiB, which no ONNX file without external data can be")
    data = path.read_bytes()
    if not data:
        raise FewbitError("is empty; export it again")
    if data.startswith(b"PK"):
        raise FewbitError("is a zip (Stable-Baselines3, TorchScript), no ONNX file; fewbit quantize makes one of it")
    try:
        return onnx.load_model_from_string(data)
    except Exception as e:
        raise FewbitError(f"not an ONNX file, or truncated ({type(e).__name__}); export it again") from None


def prepare(proto: onnx.ModelProto) -> ir.Model:
    """Check a model, write it plainly, bring it to opset 21 and float32, and free its batch dimension."""
    tensors.check(proto)
    opset.check(proto)
    try:
        onnx.checker.check_model(proto)
        proto = name_nodes(opset.convert(inline(proto)))
        if len(proto.graph.input) == 0 or len(proto.graph.output) == 0:
            raise FewbitError("the graph has no input or no output; export it again")
        _check_sizes(proto)
        return ir.from_proto(batch.free(cast_plainly(to_float32(proto))))
    except FewbitError:
        raise
    except Exception as e:
        raise FewbitError(f"the graph is not valid ({first_line(e)}); export it again") from None


def _check_sizes(proto: onnx.ModelProto) -> None:
    """Of whatever the graph takes, makes and gives, as far as the file tells: a few bytes can ask for any amount of memory."""
    for value in proto.graph.input:
        if any(d.HasField("dim_value") and d.dim_value < 1 for d in _dims(value)[1:]):
            raise FewbitError(f"input {value.name} has a dimension of nothing; export it again")
    graph = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
    for value in [*graph.input, *graph.value_info, *graph.output]:
        known = [d.dim_value for d in _dims(value) if d.dim_value > 0]
        if math.prod(known) > MAX_ELEMENTS:
            raise FewbitError(f"tensor {value.name} would hold {' x '.join(map(str, known))} numbers; export it again")


def _dims(value: onnx.ValueInfoProto) -> list[onnx.TensorShapeProto.Dimension]:
    return list(value.type.tensor_type.shape.dim)
