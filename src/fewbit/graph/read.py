"""Read an ONNX file that a stranger sent: checked, opset 21, free batch dimension; or one clear error.

Everything that can go wrong in a file is caught here, so no later module meets a malformed graph.
"""

import math
from pathlib import Path

import numpy as np
import onnx
import onnx.shape_inference
import onnx_ir as ir
from onnx import numpy_helper, version_converter

from fewbit.errors import FewbitError, first_line

OPSET = 21
MAX_BYTES = 2 << 30  # protobuf's own limit
MAX_ELEMENTS = 1 << 28  # of an array that no file holds but its text asks for: no network comes near


def read(path: str | Path) -> ir.Model:
    """The model in path, checked, converted to opset 21, its first dimension free."""
    path = Path(path)
    if not path.exists():
        raise FewbitError(f"{path}: no such file")
    if path.is_dir():
        raise FewbitError(f"{path}: is a folder; give the .onnx file in it")
    if path.stat().st_size > MAX_BYTES:
        raise FewbitError(f"{path}: larger than 2 GiB, which no ONNX file without external data can be")
    data = path.read_bytes()
    if not data:
        raise FewbitError(f"{path}: is empty; export it again")
    if data.startswith(b"PK"):
        raise FewbitError(f"{path}: is a zip (Stable-Baselines3, TorchScript), no ONNX file; fewbit quantize makes one of it")
    try:
        proto = onnx.load_model_from_string(data)
    except Exception as e:
        raise FewbitError(f"{path}: not an ONNX file, or truncated ({type(e).__name__}); export it again") from None
    try:
        return prepare(proto)
    except FewbitError as e:
        raise FewbitError(f"{path}: {e}") from None


def prepare(proto: onnx.ModelProto) -> ir.Model:
    """Check a model, bring it to opset 21 and free its batch dimension."""
    for tensor in proto.graph.initializer:
        _check_tensor(tensor)
    try:
        onnx.checker.check_model(proto)
        version = next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), 0)
        if version != OPSET:
            proto = version_converter.convert_version(proto, OPSET)
        if len(proto.graph.input) == 0 or len(proto.graph.output) == 0:
            raise FewbitError("the graph has no input or no output; export it again")
        _check_sizes(proto)
        _free_batch(proto)
        return ir.from_proto(proto)
    except FewbitError:
        raise
    except Exception as e:
        raise FewbitError(f"the graph is not valid ({first_line(e)}); export it again") from None


def _check_tensor(t: onnx.TensorProto) -> None:
    if t.data_location == onnx.TensorProto.EXTERNAL:
        raise FewbitError(f"initializer {t.name} lies in another file; save the model as one file")
    if any(d < 0 for d in t.dims):
        raise FewbitError(f"initializer {t.name} declares a negative dimension; export it again")
    count = 1
    for d in t.dims:
        count *= d
    if t.raw_data and count > 8 * len(t.raw_data):
        raise FewbitError(
            f"initializer {t.name} declares {count} elements, the file holds {len(t.raw_data)} bytes; export it again"
        )
    if count > MAX_BYTES:
        raise FewbitError(f"initializer {t.name} declares {count} elements; export it again")
    try:
        array = numpy_helper.to_array(t)
    except Exception:
        raise FewbitError(f"initializer {t.name} does not hold the elements it declares; export it again") from None
    if array.dtype.kind == "f" and not np.isfinite(array).all() and not np.isinf(array).all():
        raise FewbitError(f"initializer {t.name} holds NaN or infinity; the network was not trained to the end")


def _check_sizes(proto: onnx.ModelProto) -> None:
    """Of whatever the graph takes, makes and gives, as far as the file tells: a few bytes can ask for any amount of memory."""
    initializers = {t.name for t in proto.graph.initializer}
    for value in proto.graph.input:
        if value.name not in initializers and any(d.HasField("dim_value") and d.dim_value < 1 for d in _dims(value)[1:]):
            raise FewbitError(f"input {value.name} has a dimension of nothing; export it again")
    graph = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
    for value in [*graph.input, *graph.value_info, *graph.output]:
        known = [d.dim_value for d in _dims(value) if d.dim_value > 0]
        if math.prod(known) > MAX_ELEMENTS:
            raise FewbitError(f"tensor {value.name} would hold {' x '.join(map(str, known))} numbers; export it again")


def _dims(value: onnx.ValueInfoProto) -> list[onnx.TensorShapeProto.Dimension]:
    return list(value.type.tensor_type.shape.dim)


def _free_batch(proto: onnx.ModelProto) -> None:
    initializers = {t.name for t in proto.graph.initializer}
    del proto.graph.value_info[:]
    for value in [v for v in proto.graph.input if v.name not in initializers] + list(proto.graph.output):
        shape = value.type.tensor_type.shape
        if len(shape.dim) == 1 and shape.dim[0].dim_value > 1 and value.name in {v.name for v in proto.graph.input}:
            n = shape.dim[0].dim_value
            raise FewbitError(f"input {value.name} has shape [{n}], without a batch; export it with [1, {n}]")
        if len(shape.dim):
            shape.dim[0].dim_param = "batch"
