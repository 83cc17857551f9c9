"""LiteRT (TensorFlow Lite): the artifact as a .tflite of 8-bit weights, 16-bit activations ("16x8"), written without TensorFlow.

Weight codes are the artifact's; every activation becomes int16 over the range that its 8 bits had, for LiteRT has no layer from
16 bits to 8. Functions other than tanh and sigmoid, and a last layer whose output has no range, run in float32 inside.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir

from fewbit.engine.operands import bias_of, format_of, is_quantized, scale_of, weight_of
from fewbit.errors import FewbitError, MissingExtra
from fewbit.files import write_whole
from fewbit.graph import metadata
from fewbit.graph.edit import const
from fewbit.graph.read import read
from fewbit.graph.strip import floats as read_codes

BINARY = {"Add": "ADD", "Sub": "SUB", "Mul": "MUL", "Div": "DIV", "Min": "MINIMUM", "Max": "MAXIMUM"}
UNARY = {"Relu": "RELU", "Elu": "ELU", "Tanh": "TANH", "Sigmoid": "LOGISTIC"}
OPTIONS = {"ADD": "Add", "SUB": "Sub", "MUL": "Mul", "DIV": "Div", "MINIMUM": "MaximumMinimum", "MAXIMUM": "MaximumMinimum",
           "FULLY_CONNECTED": "FullyConnected", "QUANTIZE": "Quantize", "DEQUANTIZE": "Dequantize",
           "ARG_MAX": "ArgMax"}  # fmt: skip
VERSIONS = {"FULLY_CONNECTED": 12, "TANH": 3, "LOGISTIC": 3, "DEQUANTIZE": 3, "ARG_MAX": 2}  # those that know 16 bits
SQUASHED = np.float32(2.0**-15)  # the scale that LiteRT's own 16-bit tanh and sigmoid have


@dataclass
class Graph:
    """A flatbuffer in the making: the schema's module, its tables, and the tensor that each ONNX value became."""

    schema: Any
    tensors: list[Any] = field(default_factory=list)
    buffers: list[Any] = field(default_factory=list)
    operators: list[Any] = field(default_factory=list)
    codes_of_operators: list[str] = field(default_factory=list)
    made: dict[str, int] = field(default_factory=dict)


def export(artifact: Path, out: Path) -> dict[str, Any]:
    """{"files", "size_bytes"}; out is the .tflite file's path."""
    content = convert(read(artifact))
    return {"files": [str(out)], "size_bytes": write_whole(out, content)}


def convert(model: ir.Model) -> bytes:
    """The bytes of the .tflite; its inputs and outputs, float32 of batch 1, keep their names, the record lies in its metadata."""
    try:
        import flatbuffers
        from ai_edge_litert import schema_py_generated as schema
    except ImportError:
        raise MissingExtra("ai-edge-litert", "litert") from None
    g = Graph(schema)
    _buffer(g, b"")  # by rule the first is empty
    inputs = [v for v in model.graph.inputs if v.name not in model.graph.initializers]
    for value in inputs:
        g.made[value.name or ""] = _tensor(g, value.name or "", [1, *_shape(value)[1:]], "FLOAT32")
    outputs = [_floats(g, value) for value in model.graph.outputs]
    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(_model(g, model, [g.made[v.name or ""] for v in inputs], outputs).Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _model(g: Graph, model: ir.Model, inputs: list[int], outputs: list[int]) -> Any:
    s, record = g.schema, json.dumps(metadata.read(model) | {"target": "litert"}, sort_keys=True)
    graph = s.SubGraphT(
        tensors=g.tensors, inputs=inputs, outputs=outputs, operators=g.operators, name=model.graph.name or "policy"
    )
    signature = s.SignatureDefT(signatureKey="serving_default", subgraphIndex=0)
    signature.inputs = [s.TensorMapT(name=g.tensors[k].name, tensorIndex=k) for k in inputs]
    signature.outputs = [s.TensorMapT(name=v.name, tensorIndex=k) for v, k in zip(model.graph.outputs, outputs, strict=True)]
    kept = s.MetadataT(name=metadata.KEY, buffer=_buffer(g, record.encode()))
    kinds = [(name, getattr(s.BuiltinOperator, name)) for name in g.codes_of_operators]
    codes = [
        s.OperatorCodeT(deprecatedBuiltinCode=min(k, 127), builtinCode=k, version=VERSIONS.get(name, 1)) for name, k in kinds
    ]
    return s.ModelT(
        version=3, operatorCodes=codes, subgraphs=[graph], buffers=g.buffers, metadata=[kept], signatureDefs=[signature]
    )


def _shape(value: ir.Value) -> list[int]:
    return [d if isinstance(d, int) else 1 for d in (value.shape or [])]


def _buffer(g: Graph, data: bytes) -> int:
    """A constant's bytes on a boundary of 16, which the schema asks for and its Python code forgets; a core may fault without."""

    def pack(builder: Any) -> Any:
        builder.Prep(16, len(data))
        vector = builder.CreateByteVector(data) if data else None
        g.schema.BufferStart(builder)
        if vector is not None:
            g.schema.BufferAddData(builder, vector)
        return g.schema.BufferEnd(builder)

    g.buffers.append(SimpleNamespace(Pack=pack))
    return len(g.buffers) - 1


def _tensor(g: Graph, name: str, shape: Any, kind: str, scale: Any = None, data: np.ndarray | None = None) -> int:
    """A tensor's index. scale: one for all, or one a row; every zero point is 0."""
    s = g.schema
    tensor = s.TensorT(name=name, shape=[int(d) for d in shape], type=getattr(s.TensorType, kind))
    tensor.shapeSignature = None if data is not None else [-1, *tensor.shape[1:]]
    tensor.buffer = 0 if data is None else _buffer(g, np.ascontiguousarray(data).tobytes())
    if scale is not None:
        scales = np.asarray(scale, np.float32).reshape(-1)
        tensor.quantization = s.QuantizationParametersT(scale=scales, zeroPoint=np.zeros(len(scales), np.int64))
    g.tensors.append(tensor)
    return len(g.tensors) - 1


def _constant(g: Graph, name: str, array: np.ndarray, scale: Any = None) -> int:
    return _tensor(g, name, array.shape, array.dtype.name.upper(), scale, array)


def _emit(g: Graph, op: str, inputs: list[int], out: int, **options: Any) -> int:
    if op not in g.codes_of_operators:
        g.codes_of_operators.append(op)
    made = g.schema.OperatorT(opcodeIndex=g.codes_of_operators.index(op), inputs=inputs, outputs=[out])
    if op in OPTIONS:
        made.builtinOptionsType = getattr(g.schema.BuiltinOptions, f"{OPTIONS[op]}Options")
        made.builtinOptions = getattr(g.schema, f"{OPTIONS[op]}OptionsT")(**options)
    g.operators.append(made)
    return out


def _like(g: Graph, name: str, source: int, kind: str, scale: Any = None) -> int:
    return _tensor(g, name, g.tensors[source].shape, kind, scale)


def _floats(g: Graph, value: ir.Value | None) -> int:
    """The float32 tensor of a value, made when it is first asked for."""
    assert value is not None
    name, node, constant = value.name or "", value.producer(), const(value)
    if name not in g.made:
        if constant is not None:
            g.made[name] = _constant(g, name, constant)
        elif node is None:
            raise FewbitError(f"value {name} is made by nothing; the file is damaged")
        elif node.op_type == "DequantizeLinear":
            codes = _codes(g, node.inputs[0])
            g.made[name] = _emit(g, "DEQUANTIZE", [codes], _like(g, name, codes, "FLOAT32"))
        else:
            g.made[name] = _float_node(g, node, name)
    return g.made[name]


def _float_node(g: Graph, node: ir.Node, name: str) -> int:
    if node.op_type == "Gemm":
        return _float_gemm(g, node, name)
    x, attributes = _floats(g, node.inputs[0]), {k: a.value for k, a in node.attributes.items()}
    if node.op_type == "Identity" or (node.op_type == "Reshape" and _keeps_shape(g, x, node)):
        return x
    if node.op_type == "ArgMax":
        return _argmax(g, x, node, attributes)
    if node.op_type == "Clip":
        for k, op in ((1, "MAXIMUM"), (2, "MINIMUM")):
            if len(node.inputs) > k and node.inputs[k] is not None:
                x = _emit(g, op, [x, _floats(g, node.inputs[k])], _like(g, f"{name}.{k}", x, "FLOAT32"))
        return x
    ops = BINARY | UNARY
    if node.op_type not in ops or len(node.inputs) != (2 if node.op_type in BINARY else 1) or attributes.get("alpha", 1.0) != 1.0:
        raise FewbitError(f"node {node.name}: {node.op_type} is not written for LiteRT")
    inputs = [_floats(g, i) for i in node.inputs]
    widest = next((k for k in inputs if g.tensors[k].buffer == 0), x)  # not the constant
    return _emit(g, ops[node.op_type], inputs, _like(g, name, widest, "FLOAT32"))


def _keeps_shape(g: Graph, x: int, node: ir.Node) -> bool:
    """Does a Reshape leave a batch of any size as it is?"""
    shape, now = const(node.inputs[1]), g.tensors[x].shape
    return shape is not None and len(shape) == len(now) and all(n in (-1, 0, d) for n, d in zip(shape[1:], now[1:], strict=True))


def _argmax(g: Graph, x: int, node: ir.Node, attributes: dict[str, Any]) -> int:
    name, rank = node.outputs[0].name or "", len(g.tensors[x].shape)
    if attributes.get("axis", 0) not in (-1, rank - 1) or attributes.get("keepdims", 1):
        raise FewbitError(f"node {node.name}: ArgMax is written for LiteRT along the last axis alone, without keepdims")
    axis = _constant(g, f"{name}.axis", np.asarray(rank - 1, np.int32))
    out = _tensor(g, name, g.tensors[x].shape[:-1], "INT32")  # TensorFlow Lite Micro has no other
    return _emit(g, "ARG_MAX", [x, axis], out, outputType=g.schema.TensorType.INT32)


def _float_gemm(g: Graph, node: ir.Node, name: str) -> int:
    """A layer whose output or input has no codes: the same weights as floats."""
    if "transB" not in node.attributes or node.attributes["transB"].value != 1 or len(node.inputs) != 3:
        raise FewbitError(f"node {node.name}: LiteRT takes layers with weight [out, in] and a bias")
    arrays = []
    for value in node.inputs[1:]:
        producer = value.producer() if value is not None else None
        arrays.append(const(value) if producer is None else read_codes(producer))
    weight, bias = (np.asarray(a, np.float32) for a in arrays)
    out = _tensor(g, name, [1, len(weight)], "FLOAT32")
    inputs = [_floats(g, node.inputs[0]), _constant(g, f"{name}.weight", weight), _constant(g, f"{name}.bias", bias)]
    return _emit(g, "FULLY_CONNECTED", inputs, out)


def _codes(g: Graph, value: ir.Value | None) -> int:
    """The int16 tensor of what a QuantizeLinear makes, over the range of its own codes."""
    quantize = None if value is None else value.producer()
    if value is None or quantize is None or quantize.op_type != "QuantizeLinear":
        raise FewbitError("LiteRT: codes that no QuantizeLinear made are not supported")
    name = value.name or ""
    if name not in g.made:
        g.made[name] = _quantized(g, quantize, name)
    return g.made[name]


def _quantized(g: Graph, quantize: ir.Node, name: str) -> int:
    (scale, zero), fmt, source = scale_of(quantize), format_of(quantize), quantize.inputs[0]
    reach = max(zero - fmt.quant_min, fmt.quant_max - zero)
    wide = np.float32(float(scale) * (1.0 if fmt.bits == 16 and not zero else reach / 32767))
    producer = source.producer() if source is not None else None
    relu = zero == fmt.quant_min  # S4: its saturation
    while producer is not None and producer.op_type == "Relu" and relu and producer.inputs[0] is not None:
        source, producer = producer.inputs[0], producer.inputs[0].producer()
    if producer is not None and is_quantized(producer):
        return _layer(g, producer, name, wide, relu)
    if producer is not None and producer.op_type in ("Tanh", "Sigmoid") and producer.inputs[0] is not None:
        before = producer.inputs[0].producer()
        if before is not None and before.op_type == "DequantizeLinear":
            codes = _codes(g, before.inputs[0])
            return _emit(g, UNARY[producer.op_type], [codes], _like(g, name, codes, "INT16", SQUASHED))
    made = _floats(g, source)
    if relu:
        made = _emit(g, "RELU", [made], _like(g, f"{name}.relu", made, "FLOAT32"))
    return _emit(g, "QUANTIZE", [made], _like(g, name, made, "INT16", wide))


def _layer(g: Graph, gemm: ir.Node, name: str, scale: np.float32, relu: bool) -> int:
    """S2 to S4 as LiteRT has them: int16 codes, int8 weights with a scale a row, int64 bias."""
    x = gemm.inputs[0].producer() if gemm.inputs[0] is not None else None
    if gemm.op_type != "Gemm" or x is None or x.op_type != "DequantizeLinear":
        raise FewbitError(f"node {gemm.name}: a quantized {gemm.op_type} behind {x and x.op_type} is not written for LiteRT")
    codes, (weight, sw, zero) = _codes(g, x.inputs[0]), weight_of(gemm)
    if weight.dtype != np.int8 or zero:
        raise FewbitError(f"node {gemm.name}: LiteRT takes int8 weights with zero point 0")
    rows = np.broadcast_to(sw, len(weight)).astype(np.float64)
    of_artifact, of_litert = rows * float(scale_of(x)[0]), rows * float(g.tensors[codes].quantization.scale[0])
    bias = np.rint(bias_of(gemm, of_artifact) * of_artifact / of_litert).astype(np.int64)
    inputs = [codes, _constant(g, f"{name}.weight", weight, rows), _constant(g, f"{name}.bias", bias, of_litert)]
    kinds, out = g.schema.ActivationFunctionType, _tensor(g, name, [1, len(weight)], "INT16", scale)
    return _emit(g, "FULLY_CONNECTED", inputs, out, fusedActivationFunction=kinds.RELU if relu else kinds.NONE)
