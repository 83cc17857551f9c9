"""Other ways to run a policy, one line each in PEERS: name -> maker(Subject) -> {label: callable of a batch}. One thread each.

A Subject holds the artifact and the same network in float32 (graph/strip): each peer is given whichever it can use.
"""

import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from fewbit.engine import native
from fewbit.engine.float_ops import OPS
from fewbit.engine.lower import lower
from fewbit.engine.program import Float, Program
from fewbit.errors import FewbitError, MissingExtra

Runner = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Subject:
    """artifact and floats: the same network; observations [n, ...]; source: the Stable-Baselines3 file, if there is one."""

    artifact: ir.Model
    floats: ir.Model
    observations: np.ndarray
    source: str | None = None

    @property
    def name(self) -> str:
        return self.floats.graph.inputs[0].name or ""


def fewbit(s: Subject) -> dict[str, Runner]:
    return {"fewbit": native.load(lower(s.artifact)), "fewbit float32": native.load(lower(s.floats))}


def onnxruntime(s: Subject) -> dict[str, Runner]:
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = [s.observations[k : k + 16] for k in range(0, len(s.observations), 16)]

        def get_next(self) -> Any:
            return {s.name: self.left.pop()} if self.left else None

    found = {"onnxruntime float32": _session(_bytes(s.floats)), "onnxruntime artifact": _session(_bytes(s.artifact))}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source, made = str(Path(folder) / "float.onnx"), str(Path(folder) / "int8.onnx")
        onnx.save(ir.to_proto(s.floats), source)
        quant_pre_process(source, source)
        quantize_dynamic(source, made, weight_type=QuantType.QInt8)
        found["onnxruntime dynamic int8"] = _session(Path(made).read_bytes())
        quantize_static(source, made, Reader(), per_channel=True)
        found["onnxruntime static int8"] = _session(Path(made).read_bytes())
    return found


def _bytes(model: ir.Model) -> bytes:
    return ir.to_proto(model).SerializeToString()


def _session(content: bytes) -> Runner:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    name, out = session.get_inputs()[0].name, [session.get_outputs()[0].name]
    return lambda x: session.run(out, {name: x})[0]


SESSION_OPTIONS = "intra_op_num_threads=1, inter_op_num_threads=1, all else as ONNX Runtime sets it"


def openvino(s: Subject) -> dict[str, Runner]:
    try:
        import openvino as ov
    except ImportError:
        raise MissingExtra("openvino", "openvino") from None
    core = ov.Core()

    def compiled(model: ir.Model) -> Runner:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            path.write_bytes(_bytes(model))
            options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
            request = core.compile_model(core.read_model(path), "CPU", options).create_infer_request()
        return lambda x: request.infer([x], share_inputs=True)[0]

    return {"openvino float32": compiled(s.floats), "openvino artifact": compiled(s.artifact)}


def numpy(s: Subject) -> dict[str, Runner]:
    return {"numpy float32": _written_out(lower(s.floats), OPS | {"Gemm": lambda a, x, w, b=0: x @ w.T + b})}


def _written_out(program: Program, ops: dict[str, Callable]) -> Runner:
    """The float program as a list of calls whose constants are bound, as one would write it by hand."""
    slots = {name: k for k, name in enumerate(program.inputs)}
    calls = []
    for step in program.steps:
        if not isinstance(step, Float) or (step.op == "Gemm" and not step.attributes.get("transB")):
            raise FewbitError(f"{getattr(step, 'op', type(step).__name__)} is not written out for this peer")
        slots[step.out] = len(slots)
        places = [slots[i] if isinstance(i, str) else None for i in step.inputs]
        calls.append((ops[step.op], step.attributes, places, step.inputs))
    output = slots[program.outputs[0]]

    def run(x: np.ndarray) -> np.ndarray:
        values = [x]
        for op, attributes, places, constants in calls:
            values.append(op(attributes, *(values[p] if p is not None else c for p, c in zip(places, constants, strict=True))))
        return values[output]

    return run


def torch(s: Subject) -> dict[str, Runner]:
    try:
        import torch
    except ImportError:
        raise MissingExtra("torch", "torch") from None
    torch.set_num_threads(1)
    eager = _module(lower(s.floats)).eval()

    def runner(module: Any) -> Runner:
        def run(x: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                return module(torch.from_numpy(x)).numpy()

        return run

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dynamic = torch.ao.quantization.quantize_dynamic(eager, {torch.nn.Linear}, dtype=torch.qint8)
    return {
        "torch eager": runner(eager),
        "torch compile": runner(torch.compile(eager, dynamic=True)),
        "torch quantize_dynamic": runner(dynamic),
    }


def _module(program: Program) -> Any:
    """The float program as a torch module of Linear layers and functions."""
    import torch
    from torch import nn

    functions = {
        "Relu": torch.relu, "Tanh": torch.tanh, "Sigmoid": torch.sigmoid, "Neg": torch.neg, "Sub": torch.sub, "Add": torch.add,
        "Mul": torch.mul, "Div": torch.div, "Min": torch.minimum, "Max": torch.maximum, "Identity": lambda x: x,
    }  # fmt: skip

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList()
            self.calls: list[tuple[Any, list[Any], str]] = []
            for step in program.steps:
                if isinstance(step, Float) and step.op == "Gemm" and step.attributes.get("transB"):
                    x, w, b = step.inputs
                    layer = nn.Linear(w.shape[1], w.shape[0])
                    layer.load_state_dict({"weight": torch.tensor(w), "bias": torch.tensor(b)})
                    self.calls.append((len(self.layers), [x], step.out))
                    self.layers.append(layer)
                elif isinstance(step, Float) and step.op in functions:
                    inputs = [torch.tensor(i) if isinstance(i, np.ndarray) else i for i in step.inputs]
                    self.calls.append((functions[step.op], inputs, step.out))
                else:
                    raise FewbitError(f"{getattr(step, 'op', type(step).__name__)} is not written out for this peer")

        def forward(self, x: Any) -> Any:
            values = {next(iter(program.inputs)): x}
            for call, inputs, out in self.calls:
                given = [values[i] if isinstance(i, str) else i for i in inputs]
                values[out] = self.layers[call](*given) if isinstance(call, int) else call(*given)
            return values[program.outputs[0]]

    return Network()


def sb3(s: Subject) -> dict[str, Runner]:
    """What the policy's own library takes for an action; only where its file was given."""
    if s.source is None or not s.source.endswith(".zip"):
        raise FewbitError("give the policy's own file with --source")
    from fewbit.sources.sb3 import build

    policy = build(Path(s.source))
    return {"stable-baselines3 predict": lambda x: policy.predict(x, deterministic=True)[0]}


PEERS: dict[str, Callable[[Subject], dict[str, Runner]]] = {
    "fewbit": fewbit,
    "onnxruntime": onnxruntime,
    "openvino": openvino,
    "numpy": numpy,
    "torch": torch,
    "sb3": sb3,
}
