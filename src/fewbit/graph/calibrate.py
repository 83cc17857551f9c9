"""Run the float graph on observations and keep the range of every tensor asked for. Streams; memory is one batch."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

BATCH = 1024


def session(proto: onnx.ModelProto, optimise: bool = True) -> ort.InferenceSession:
    """A one-thread ONNX Runtime session that prints nothing."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def with_outputs(model: ir.Model, names: list[str]) -> onnx.ModelProto:
    """A copy of the model that also returns the named tensors."""
    proto = ir.to_proto(model)
    present = {o.name for o in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=n) for n in dict.fromkeys(names) if n not in present)
    return proto


def ranges(model: ir.Model, feeds: dict[str, np.ndarray], names: list[str]) -> dict[str, tuple[float, float]]:
    """(min, max) of each named tensor over all observations; feeds maps input names to [n, ...] arrays."""
    runner = session(with_outputs(model, names))
    found: dict[str, tuple[float, float]] = {}
    count = len(next(iter(feeds.values())))
    for start in range(0, count, BATCH):
        batch = {k: v[start : start + BATCH] for k, v in feeds.items()}
        for name, value in zip(names, runner.run(names, batch), strict=True):
            low, high = found.get(name, (np.inf, -np.inf))
            found[name] = (min(low, float(value.min())), max(high, float(value.max())))
    return found
