"""A layer's weight and bias as codes: solved for, written as constants behind a DequantizeLinear each."""

import ml_dtypes
import numpy as np
import onnx_ir as ir

from fewbit import solvers
from fewbit.errors import FewbitError
from fewbit.graph.edit import add_constant, const, label, new_node
from fewbit.graph.layers import origin
from fewbit.numerics import affine, semantics
from fewbit.numerics.formats import IntFormat
from fewbit.solvers import clip, pairs, rtn
from fewbit.solvers.statistics import Statistics


def write_weight(
    graph: ir.Graph,
    gemm: ir.Node,
    scale_input: np.float32,
    fmt: IntFormat,
    method: str,
    limited: bool,
    statistics: Statistics | None,
) -> None:
    """Give a layer codes for its weight and bias. limited: two products add up within 16 bits (solvers/pairs)."""
    weight, bias = const(gemm.inputs[1]), const(gemm.inputs[2]) if len(gemm.inputs) > 2 else None
    if weight is not None and (len(gemm.inputs) < 3 or gemm.inputs[2] is None):
        bias = np.zeros(len(weight), np.float32)
        gemm.resize_inputs(3)
    if weight is None or bias is None:
        raise FewbitError(f"node {label(gemm)}: a weight that is computed at run time cannot be quantized")
    stem = (gemm.inputs[1].name or gemm.name) if gemm.inputs[1] is not None else gemm.name
    affine.check_finite(weight, f"weight {stem}")
    found, scale = _solved(weight, bias, scale_input, fmt, method, limited, statistics)
    if solvers.method(method).bias and statistics is not None:
        lost = (weight - found * scale.astype(np.float64).reshape(-1, *[1] * (weight.ndim - 1))).reshape(len(weight), -1)
        bias = (bias + lost @ statistics.mean).astype(np.float32)
    codes = semantics.bias_codes(bias, scale_input, scale)
    stored = found.astype(ml_dtypes.int4) if fmt.bits <= 4 else found  # ONNX packs two INT4 in a byte
    for index, array, s in ((1, stored, scale), (2, codes, (scale_input * scale).astype(np.float32))):
        kind = "weight" if index == 1 else "bias"
        held = [add_constant(graph, f"{stem}.{kind}_codes", array), add_constant(graph, f"{stem}.{kind}_scale", s)]
        names = (f"{stem}.{kind}_dequantize", f"{stem}.{kind}_dequantized")
        d = new_node(graph, "DequantizeLinear", held, names[0], {"axis": 0}, out=names[1])
        graph.insert_before(gemm, d)
        gemm.replace_input_with(index, d.outputs[0])


def _solved(
    weight: np.ndarray,
    bias: np.ndarray,
    scale_input: np.float32,
    fmt: IntFormat,
    method: str,
    limited: bool,
    statistics: Statistics | None,
) -> tuple[np.ndarray, np.ndarray]:
    """(codes of weight's shape, float32 scale [out]). limited: solvers/pairs."""
    chosen, rows = solvers.method(method), weight.reshape(len(weight), -1)
    clipped = chosen.clip and statistics is not None
    scale = clip.channel_scale(rows, fmt, statistics) if clipped and statistics else rtn.channel_scale(rows, fmt)
    scale = semantics.raised_scale(bias, scale_input, scale)

    def solve(w: np.ndarray, s: np.ndarray) -> np.ndarray:
        return solvers.solve(chosen.solver, w, s, fmt, statistics)

    codes = solve(rows, scale).reshape(weight.shape)
    return pairs.within(codes, scale, weight, solve) if limited else (codes, scale)


def reads_bytes(gemm: ir.Node) -> bool:
    """Are the codes of its input 8 bits?"""
    made = origin(gemm.inputs[0]).producer() if gemm.inputs[0] is not None else None
    zero = const(made.inputs[2]) if made is not None and made.op_type == "DequantizeLinear" else None
    return zero is not None and zero.dtype.itemsize == 1
