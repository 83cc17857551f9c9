"""TensorRT's rules: symmetric int8 for activations and weights, float32 for the rest; one strongly typed file for 10 and 11.

What TensorRT has no integers for (uint8, zero points, 16 bits, int32 biases) leaves the graph: a uint8 that was a ReLU is a Relu
and int8 again, an asymmetric grid the symmetric one over the same range, a bias float32. Weights keep their codes, widened to 8
bits. Every quantizer states its type through its zero point, and the opset is 20, which the parser of every TensorRT 10 reads.

`load` needs an NVIDIA GPU; `serialize`, which it shares with TensorRT-RTX, does not there.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import onnx_ir as ir

from fewbit.engine.operands import format_of, plain, scale_of
from fewbit.engine.policy import Policy
from fewbit.engine.state import states
from fewbit.errors import FewbitError, MissingExtra
from fewbit.graph import metadata
from fewbit.graph.edit import add_constant, const, remove_unused
from fewbit.graph.strip import floats, reads_codes, strip

OPSET = 20  # what changed in 21 is what QuantizeLinear and DequantizeLinear may hold: 16 and 4 bits, which do not occur
LAYERS = {"Gemm", "MatMul", "Conv"}
MOST = 256  # the largest batch an engine is built for; the kernels are chosen for one observation
Feeds = dict[str, np.ndarray]
FOREIGN = {"DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "QLinearMatMul", "QLinearConv"}


def rewrite(model: ir.Model) -> ir.Model:
    """A copy by the rules above, with the record; what cannot be said in them is refused by name."""
    for node in model.graph:
        if node.op_type in FOREIGN:
            raise FewbitError(f"node {node.name}: TensorRT has no {node.op_type}; quantize with ranges that are known ahead")
    model = model.clone()
    for node in [n for n in model.graph if n.op_type == "DequantizeLinear" and n.inputs[0] in model.graph.inputs]:
        _cast(model.graph, node)
    model = strip(model, above=8)
    graph = model.graph
    for node in graph:
        node.name = node.name or node.outputs[0].name  # what the builder's log calls it by
    for node in [n for n in graph if n.op_type == "QuantizeLinear"]:
        _activation(graph, node)
    for node in [n for n in graph if n.op_type == "DequantizeLinear" and const(n.inputs[0]) is not None]:
        _constant(graph, node)
    remove_unused(graph)
    graph.opset_imports[""] = OPSET
    return model


def _cast(graph: ir.Graph, dequantize: ir.Node) -> None:
    """Pixels that are codes already are no codes of TensorRT's: float32((x - zero point) * scale) in float operations."""
    (scale, zero), out = scale_of(dequantize), dequantize.outputs[0]
    nodes = [ir.node("Cast", [dequantize.inputs[0]], {"to": ir.DataType.FLOAT}, name=f"{out.name}.cast")]
    for op, array in (("Sub", np.float32(zero)), ("Mul", np.asarray(scale, np.float32))):
        if op == "Mul" or zero:
            constant = add_constant(graph, f"{out.name}.{op.lower()}", np.asarray(array))
            nodes.append(ir.node(op, [nodes[-1].outputs[0], constant], name=f"{out.name}.{op.lower()}"))
    for node in nodes:
        node.outputs[0].name = f"{node.name}.out"
    graph.insert_before(dequantize, nodes)
    for user, index in list(out.uses()):
        user.replace_input_with(index, nodes[-1].outputs[0])


def _activation(graph: ir.Graph, quantize: ir.Node) -> None:
    """int8 with zero point 0 in place of the quantizer's own grid, over the same range."""
    (scale, zero), fmt, codes = scale_of(quantize), format_of(quantize), quantize.outputs[0]
    if scale.size != 1:
        raise FewbitError(f"node {quantize.name}: an activation with a scale per channel is not supported")
    readers = [n for n, _ in codes.uses()]
    if any(n.op_type != "DequantizeLinear" or scale_of(n) != (scale, zero) for n in readers):
        raise FewbitError(f"node {quantize.name}: its codes are read in other ways than by a DequantizeLinear of the same scale")
    if fmt.signed and not zero:
        return
    if zero == fmt.quant_min:
        _relu(graph, quantize)
    reach = max(zero - fmt.quant_min, fmt.quant_max - zero)
    s = add_constant(graph, f"{codes.name}.symmetric_scale", np.asarray(np.float64(scale) * reach / 127, np.float32))
    z = add_constant(graph, f"{codes.name}.zero", np.zeros((), np.int8))
    for node in (quantize, *readers):
        _set_grid(node, s, z)


def _set_grid(node: ir.Node, scale: ir.Value, zero: ir.Value) -> None:
    node.resize_inputs(3)
    node.replace_input_with(1, scale)
    node.replace_input_with(2, zero)


def _relu(graph: ir.Graph, quantize: ir.Node) -> None:
    """Saturation at the lowest code was a ReLU (S4); a symmetric code does not stop there."""
    source = quantize.inputs[0]
    assert source is not None
    producer = source.producer()
    if producer is not None and producer.op_type == "Relu":
        return
    relu = ir.node("Relu", [source], name=f"{quantize.name}.relu")
    relu.outputs[0].name = f"{source.name}.relu"
    graph.insert_before(quantize, relu)
    quantize.replace_input_with(0, relu.outputs[0])


def _constant(graph: ir.Graph, dequantize: ir.Node) -> None:
    """A layer's weight stays codes, int8 with zero point 0; any other constant, a bias above all, becomes float32."""
    value = dequantize.outputs[0]
    uses = list(value.uses())
    weights = [(user, index) for user, index in uses if user.op_type in LAYERS and index == 1 and reads_codes(user)]
    if len(weights) < len(uses):
        as_float = add_constant(graph, f"{value.name}.float", floats(dequantize))
        for user, index in uses:
            if (user, index) not in weights:
                user.replace_input_with(index, as_float)
    stored, zero = const(dequantize.inputs[0]), scale_of(dequantize)[1]
    assert stored is not None
    if weights and (stored.dtype != np.int8 or zero):
        codes, scale = _symmetric(dequantize)
        z = add_constant(graph, f"{value.name}.zero", np.zeros(scale.shape, np.int8))
        dequantize.replace_input_with(0, add_constant(graph, f"{value.name}.int8", codes))
        _set_grid(dequantize, add_constant(graph, f"{value.name}.scale", scale), z)


def _symmetric(dequantize: ir.Node) -> tuple[np.ndarray, np.ndarray]:
    """(int8 codes, float32 scale): the same numbers; rounded anew only where a zero point took them out of int8."""
    stored, (scale, zero) = const(dequantize.inputs[0]), scale_of(dequantize)
    assert stored is not None
    codes = plain(stored).astype(np.int32) - zero
    furthest = int(np.abs(codes).max(initial=0))
    if codes.min(initial=0) >= -128 and codes.max(initial=0) <= 127:
        return codes.astype(np.int8), scale
    return np.rint(codes * (127 / furthest)).astype(np.int8), (scale * np.float32(furthest / 127)).astype(np.float32)


@cache
def log_of(trt: Any) -> Any:
    """Keeps what the builder says, (severity, line) since the last `serialize`; a process can have but one logger."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[tuple[Any, str]] = []

        def log(self, severity: Any, message: str) -> None:
            self.lines.append((severity, message))

    return Log()


def serialize(trt: Any, content: bytes) -> bytes:
    """The engine of an ONNX file's content. trt: the module of TensorRT or of TensorRT-RTX, whose builders are called alike."""
    log = log_of(trt)
    log.lines.clear()
    builder = trt.Builder(log)
    # 10 must be told, 11 knows nothing else and takes the flag too
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(content):
        raise FewbitError(f"TensorRT cannot read this graph: {_one_line(_complaint(parser))}")
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # so that the log lists the kernels
    config.add_optimization_profile(_profile(builder, network))
    made = builder.build_serialized_network(network, config)
    if made is None:
        errors = [line for severity, line in log.lines if severity == trt.ILogger.Severity.ERROR]
        raise FewbitError(f"TensorRT cannot build this graph: {_one_line(errors[0] if errors else 'no reason given')}")
    return bytes(made)


def _profile(builder: Any, network: Any) -> Any:
    profile = builder.create_optimization_profile()
    for k in range(network.num_inputs):
        value = network.get_input(k)
        rest = tuple(value.shape)[1:]
        if any(d < 0 for d in rest):
            raise FewbitError(f"input {value.name}: its shape is not fixed behind the batch; export it with fixed sizes")
        profile.set_shape(value.name, (1, *rest), (1, *rest), (MOST, *rest))
    return profile


def _complaint(parser: Any) -> str:
    if not parser.num_errors:
        return "no reason given"
    e = parser.get_error(0)
    where = f"node {e.node_name()}: {e.node_operator()}: " if e.node_operator() else ""
    return f"{where}{getattr(e.code(), 'name', e.code())}: {e.desc()}"


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]  # the words are the builder's, and may be many


def load(model: ir.Model) -> Policy:
    """The engine of a rewritten model on the first GPU. Batches above MOST run in pieces."""
    trt, cuda = _modules()
    error, count = cuda.cudaGetDeviceCount()
    if int(error) or not count:
        raise FewbitError("TensorRT runs on an NVIDIA GPU, and this machine shows none; export with --to onnx and build there")
    runtime = trt.Runtime(log_of(trt))
    engine = runtime.deserialize_cuda_engine(serialize(trt, metadata.to_bytes(model)))
    if engine is None:
        raise FewbitError("TensorRT does not load the engine that it built; is the driver as new as the wheel asks?")
    names = [engine.get_tensor_name(k) for k in range(engine.num_io_tensors)]
    tensors = {n: (tuple(engine.get_tensor_shape(n))[1:], np.dtype(trt.nptype(engine.get_tensor_dtype(n)))) for n in names}
    inputs = [n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
    outputs, shapes = [v.name or "" for v in model.graph.outputs], {n: tensors[n][0] for n in inputs}
    run = _runner(cuda, engine.create_execution_context(), tensors, inputs, outputs)
    return Policy(run, shapes, "tensorrt", states(model, shapes), outputs)


def _runner(
    cuda: Any, context: Any, tensors: dict[str, Any], inputs: list[str], outputs: list[str]
) -> Callable[[Feeds], list[np.ndarray]]:
    """tensors: name -> (shape behind the batch, dtype). GPU memory for the largest batch is taken once."""
    memory = {n: _done(cuda.cudaMalloc(MOST * kind.itemsize * int(np.prod(shape)))) for n, (shape, kind) in tensors.items()}
    stream = _done(cuda.cudaStreamCreate())
    for name, address in memory.items():
        context.set_tensor_address(name, int(address))
    there, back = cuda.cudaMemcpyKind.cudaMemcpyHostToDevice, cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost

    def run(feeds: Feeds) -> list[np.ndarray]:
        n = len(feeds[inputs[0]])
        if n > MOST:
            pieces = [run({k: v[i : i + MOST] for k, v in feeds.items()}) for i in range(0, n, MOST)]
            return [np.concatenate(p) for p in zip(*pieces, strict=True)]
        given = {k: np.ascontiguousarray(feeds[k], tensors[k][1]) for k in inputs}
        for k, x in given.items():
            context.set_input_shape(k, x.shape)
            _done(cuda.cudaMemcpyAsync(memory[k], x.ctypes.data, x.nbytes, there, stream))
        if not context.execute_async_v3(int(stream)):
            raise FewbitError("TensorRT could not run this engine; its own log says why")
        made = [np.empty((n, *tensors[k][0]), tensors[k][1]) for k in outputs]
        for k, y in zip(outputs, made, strict=True):
            _done(cuda.cudaMemcpyAsync(y.ctypes.data, memory[k], y.nbytes, back, stream))
        _done(cuda.cudaStreamSynchronize(stream))
        return made

    return run


def _modules() -> tuple[Any, Any]:
    try:
        import tensorrt
        from cuda.bindings import runtime
    except ImportError as e:
        raise MissingExtra((e.name or "tensorrt").split(".")[0], "tensorrt") from None
    return tensorrt, runtime


def _done(result: tuple[Any, ...]) -> Any:
    """What a CUDA call returned beside its error code, or the error."""
    error, *rest = result
    if int(error):
        raise FewbitError(f"CUDA says {getattr(error, 'name', error)}")
    return rest[0] if rest else None
