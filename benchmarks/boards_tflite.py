"""A float ONNX network as an int8 or 16x8 .tflite, run by TensorFlow Lite Micro's own interpreter; boards_peers.py calls it.

    python boards_tflite.py write float.onnx observations.npy int8|16x8|layer model.tflite    # prints JSON; arena on stderr
    python boards_tflite.py invoke model.tflite observations.npy TIMES                       # for valgrind

Runs in the peers' environment. The model is as TensorFlow's converter writes it: a float input, QUANTIZE, FULLY_CONNECTED with
one scale an output and ReLU fused, DEQUANTIZE; ranges are the least and greatest value on the observations. layer: int8 with one
scale a layer.
"""

import json
import sys
from pathlib import Path

import flatbuffers
import numpy as np
import onnx
from onnx import numpy_helper
from tflite_micro import runtime
from tflite_micro.tensorflow.lite.micro.python import schema_py_generated as schema

FULLY_CONNECTED, QUANTIZE, DEQUANTIZE = 9, 114, 6
FLOAT32, INT32, INT64, INT16, INT8 = 0, 2, 4, 7, 9


def layers(path: str) -> list[tuple[np.ndarray, np.ndarray]]:
    constants = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    return [(constants[f"w{k}"], constants[f"b{k}"]) for k in range(len(constants) // 2)]


def floats(net: list, x: np.ndarray) -> list[np.ndarray]:
    """The input, and what every layer gives."""
    found = [x]
    for k, (w, b) in enumerate(net):
        y = found[-1] @ w.T + b
        found.append(np.maximum(y, 0) if k < len(net) - 1 else y)
    return found


def affine(values: np.ndarray, bits: int) -> tuple[float, int]:
    """(scale, zero point): asymmetric at 8 bits, symmetric at 16, as TensorFlow Lite's specification asks."""
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    if bits == 16:
        return max(-low, high) / 32767, 0
    scale = (high - low) / 255
    return scale, int(np.clip(np.round(-128 - low / scale), -128, 127))


class Writer:
    """Tensors and buffers of one graph."""

    def __init__(self) -> None:
        self.tensors, self.buffers = [], [schema.BufferT()]

    def tensor(self, shape: tuple, kind: int, scales: object = None, zero: int = 0, data: np.ndarray | None = None) -> int:
        t, q = schema.TensorT(), schema.QuantizationParametersT()
        t.shape, t.type, t.name = list(shape), kind, ""
        if scales is not None:
            q.scale = np.atleast_1d(np.float32(scales))
            q.zeroPoint = np.full(q.scale.shape, zero, np.int64)
            t.quantization = q
        b = schema.BufferT()
        if data is not None:
            b.data = np.frombuffer(data.tobytes(), np.uint8)
            self.buffers.append(b)
            t.buffer = len(self.buffers) - 1
        self.tensors.append(t)
        return len(self.tensors) - 1


def operator(code: int, inputs: list[int], output: int, relu: bool = False) -> schema.OperatorT:
    op = schema.OperatorT()
    op.opcodeIndex, op.inputs, op.outputs = code, inputs, [output]
    if code == 1:
        op.builtinOptionsType, op.builtinOptions = schema.BuiltinOptions.FullyConnectedOptions, schema.FullyConnectedOptionsT()
        op.builtinOptions.fusedActivationFunction = int(relu)
    return op


def write(net: list, observations: np.ndarray, what: str) -> tuple[bytes, list[dict]]:
    bits = 16 if what == "16x8" else 8
    made, kind, ops, plain = Writer(), INT8 if bits == 8 else INT16, [], []
    ranges = [affine(v, bits) for v in floats(net, observations)]
    ends = [made.tensor((1, net[0][0].shape[1]), FLOAT32)]
    at = made.tensor((1, net[0][0].shape[1]), kind, *ranges[0])
    ops.append(operator(0, ends[:], at))
    for k, (w, b) in enumerate(net):
        scales = np.abs(w).max(1) / 127
        scales = scales.max(keepdims=True) if what == "layer" else scales
        codes = np.clip(np.round(w / scales[:, None]), -127, 127).astype(np.int8)
        biases = np.round(b / (scales * ranges[k][0])).astype(np.int32 if bits == 8 else np.int64)
        weight = made.tensor(w.shape, INT8, scales, 0, codes)
        bias = made.tensor(b.shape, INT32 if bits == 8 else INT64, scales * ranges[k][0], 0, biases)
        y = made.tensor((1, len(b)), kind, *ranges[k + 1])
        relu = k < len(net) - 1
        ops.append(operator(1, [at, weight, bias], y, relu))
        plain.append({"weight": codes.tobytes(), "bias": biases.tobytes(), "in": w.shape[1], "out": w.shape[0], "relu": relu,
                      "real": (scales * ranges[k][0] / ranges[k + 1][0]).tolist()})  # fmt: skip
        at = y
    ends.append(made.tensor((1, len(net[-1][1])), FLOAT32))
    ops.append(operator(2, [at], ends[1]))
    content = packed(made, ops, ends)
    for layer in plain:
        layer["weight"], layer["bias"] = content.index(layer["weight"]), content.index(layer["bias"])
    return content, [{"scale": s, "zero": z} | layer for (s, z), layer in zip(ranges, plain + [{}], strict=True)]


def packed(made: Writer, ops: list, ends: list[int]) -> bytes:
    model, graph = schema.ModelT(), schema.SubGraphT()
    graph.tensors, graph.operators, graph.inputs, graph.outputs = made.tensors, ops, ends[:1], ends[1:]
    for code in (QUANTIZE, FULLY_CONNECTED, DEQUANTIZE):
        c = schema.OperatorCodeT()
        c.builtinCode = c.deprecatedBuiltinCode = code
        model.operatorCodes = (model.operatorCodes or []) + [c]
    model.version, model.subgraphs, model.buffers = 3, [graph], made.buffers
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def main() -> None:
    if sys.argv[1] == "invoke":
        model, observations, times = sys.argv[2], np.load(sys.argv[3]), int(sys.argv[4])
        interpreter = runtime.Interpreter.from_file(model)
        interpreter.set_input(observations[:1], 0)
        for _ in range(times):
            interpreter.invoke()
        return
    source, observations, what, out = sys.argv[2], np.load(sys.argv[3]), sys.argv[4], Path(sys.argv[5])
    net = layers(source)
    content, plain = write(net, observations, what)
    out.write_bytes(content)
    interpreter, errors, first = runtime.Interpreter.from_bytes(content), [], []
    for x, y in zip(observations[:100], floats(net, observations[:100])[-1], strict=True):
        interpreter.set_input(x[None], 0)
        interpreter.invoke()
        first.append(interpreter.get_output(0)[0])
        errors.append(first[-1] - y)
    interpreter.print_allocations()
    spread = float(np.sqrt(np.mean(np.square(errors))) / np.ptp(floats(net, observations)[-1]))
    print(json.dumps({"rmse": spread, "layers": plain, "first": first[0].tolist()}))


if __name__ == "__main__":
    main()
