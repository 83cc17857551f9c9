"""What an artifact is to whoever runs it: the executor that takes it, whether its integers are exact, the bytes of its codes."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from fewbit.engine import native
from fewbit.engine.lower import lower
from fewbit.engine.program import Program, code_width, packed_bytes
from fewbit.errors import FewbitError, Unsupported
from fewbit.graph.edit import const


@dataclass(frozen=True)
class Description:
    """executor: "native NAME" or "onnxruntime"; reason: why not the engine, "" where it is the engine; program: None where the
    integer semantics have no clause for the graph; exact: every executor of ours that takes it gives the same bits;
    packed_bytes: weights at the width that their codes need, biases, tables and float constants, without the file around."""

    executor: str
    reason: str
    program: Program | None
    exact: bool
    packed_bytes: int


def describe(model: ir.Model) -> Description:
    """Of an artifact or a float graph; FewbitError where the file is damaged."""
    try:
        program = lower(model)
    except Unsupported as e:
        return Description("onnxruntime", str(e), None, False, _constant_bytes(model.graph))
    try:
        executor, reason = f"native {native.load(program).instruction_set}", ""
    except FewbitError as e:
        executor, reason = "onnxruntime", str(e)
    return Description(executor, reason, program, program.exact, packed_bytes(program))


def _constant_bytes(graph: ir.Graph) -> int:
    """Of codes at the width that they need and of float constants; scales and zero points of activations are left out."""
    total = 0
    for node in graph:
        quantization = node.op_type in ("QuantizeLinear", "DequantizeLinear")
        for value in node.inputs[:1] if quantization else node.inputs:
            array = const(value)
            if array is not None:
                total += -(-array.size * code_width(array.astype(np.int32)) // 8) if quantization else array.nbytes
    return total
