"""What the nodes of a QDQ graph say: scales, zero points, formats, constant weights and biases. Reads, emits nothing."""

import numpy as np
import onnx_ir as ir

from fewbit.engine.float_ops import MOVES
from fewbit.errors import FewbitError, Unsupported
from fewbit.graph.edit import const, label
from fewbit.graph.strip import floats
from fewbit.numerics.formats import INTEGERS, IntFormat

_FORMAT_OF = {
    np.dtype(f.dtype): f for f in (INTEGERS["int8"], INTEGERS["uint8"], INTEGERS["int16"], INTEGERS["uint16"], INTEGERS["int32"])
}


def plain(codes: np.ndarray) -> np.ndarray:
    """4- and 2-bit codes, which NumPy cannot add, as 8-bit ones."""
    return codes if codes.dtype.kind in "iu" else codes.astype(np.uint8 if "u" in codes.dtype.name else np.int8)


def constant_of(value: ir.Value) -> np.ndarray | None:
    """A constant, or the float reading of constant codes that have a scale per channel; None for all else."""
    node = value.producer()
    return const(value) if node is None or const(value) is not None or not is_constant(value) else floats(node)


def is_constant(value: ir.Value) -> bool:
    """Has it such a constant?"""
    node = value.producer()
    if node is None or node.op_type != "DequantizeLinear" or const(node.inputs[0]) is None:
        return const(value) is not None
    return scale_of(node)[0].size > 1


def codes_before(value: ir.Value) -> list[ir.Value]:
    """The codes, themselves computed, that those of a QuantizeLinear are made from: the nearest ones on every way back."""
    node = value.producer()
    found, seen = [], {value}
    waiting = [node.inputs[0]] if node is not None and node.op_type == "QuantizeLinear" else []
    while waiting:
        one = waiting.pop()
        node = one.producer() if one is not None else None
        if one is None or one in seen or node is None:
            continue
        seen.add(one)
        codes = node.inputs[0] if node.op_type == "DequantizeLinear" else None
        if node.op_type != "DequantizeLinear":
            waiting += reversed(node.inputs)
        elif codes is not None and codes.producer() is not None:
            found.append(codes)
    return found


def scale_of(node: ir.Node) -> tuple[np.ndarray, int]:
    """(scale float32, shape () where there is one; one zero point) of a QuantizeLinear or DequantizeLinear."""
    scale = const(node.inputs[1])
    zero = const(node.inputs[2]) if len(node.inputs) > 2 else np.zeros((), np.int8)
    if scale is None or zero is None or scale.dtype != np.float32:
        raise FewbitError(f"node {label(node)}: its scale and zero point must be constants, the scale float32")
    if not (np.isfinite(scale) & (scale > 0)).all():
        raise FewbitError(f"node {label(node)}: a scale is zero, negative or not finite; the file is damaged")
    if zero.size > 1 and np.ptp(zero.astype(np.int64)):
        raise Unsupported(f"node {label(node)}: zero points that differ by channel are not run by this engine")
    return scale.reshape(()) if scale.size == 1 else scale, int(zero.reshape(-1)[0])


def format_of(node: ir.Node) -> IntFormat:
    zero = const(node.inputs[2]) if len(node.inputs) > 2 else None
    if zero is None and node.op_type == "DequantizeLinear" and (codes := const(node.inputs[0])) is not None:
        zero = codes  # the format of constant codes is their own
    elif zero is None and node.op_type == "DequantizeLinear" and node.inputs[0] is not None:
        producer = node.inputs[0].producer()
        return format_of(producer) if producer is not None else INTEGERS["uint8"]
    fmt = _FORMAT_OF.get(zero.dtype) if zero is not None else INTEGERS["uint8"]
    if fmt is None:
        dtype = "?" if zero is None else zero.dtype
        raise Unsupported(f"node {label(node)}: quantization to {dtype} is not run by the engine")
    return fmt


def is_integral(value: ir.Value) -> bool:
    """Is it the float reading of codes: a DequantizeLinear's output, or that moved about?"""
    node = value.producer()
    while node is not None and node.op_type in MOVES and node.inputs and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node is not None and node.op_type == "DequantizeLinear" and scale_of(node)[0].size == 1 and format_of(node).bits <= 16


def is_quantized(node: ir.Node) -> bool:
    """A Gemm, MatMul or Conv whose input is codes and whose weight and bias are constant codes."""
    if node.op_type not in ("Gemm", "MatMul", "Conv") or len(node.inputs) < 2:
        return False
    x, *constants = node.inputs
    makers = [i.producer() if i is not None else None for i in constants]
    return (
        x is not None
        and is_integral(x)
        and all(m is not None and m.op_type == "DequantizeLinear" for m in makers)
        and all(const(m.inputs[0]) is not None for m in makers if m is not None)
    )


def weight_of(gemm: ir.Node) -> tuple[np.ndarray, np.ndarray, int]:
    """Codes [out, in] (of a Conv [out, C, *kernel]), float32 scale [out] or [1], zero point."""
    w = gemm.inputs[1].producer() if gemm.inputs[1] is not None else None
    assert w is not None
    (scale, zero), weight = scale_of(w), const(w.inputs[0])
    assert weight is not None
    turned = bool(gemm.attributes["transB"].value) if "transB" in gemm.attributes else gemm.op_type == "Conv"
    axis = int(w.attributes["axis"].value) if "axis" in w.attributes else 1
    if (weight.ndim != 2 and gemm.op_type != "Conv") or (scale.size > 1 and axis % 2 != (0 if turned else 1)):
        raise Unsupported(f"node {label(gemm)}: a weight {weight.shape} with scales along axis {axis} is not run by the engine")
    weight = plain(weight if turned else weight.T)
    if scale.size not in (1, len(weight)) or weight.dtype.itemsize > 2 or (weight.dtype.itemsize == 2 and zero):
        raise FewbitError(f"node {label(gemm)}: weight {weight.dtype} {weight.shape} and scale {scale.shape} do not fit together")
    return np.ascontiguousarray(weight), scale.reshape(-1), zero


def bias_of(gemm: ir.Node, rows: np.ndarray) -> np.ndarray:
    """int32 codes [out] on the accumulator's scales; zero where there is none."""
    if len(gemm.inputs) < 3 or gemm.inputs[2] is None:
        return np.zeros(len(rows), np.int32)
    b = gemm.inputs[2].producer()
    assert b is not None
    (scale, zero), bias = scale_of(b), const(b.inputs[0])
    assert bias is not None
    fits = (
        np.allclose(np.broadcast_to(scale.reshape(-1), len(rows)), rows, rtol=1e-6, atol=0)
        if scale.size in (1, len(rows))
        else False
    )
    if bias.shape != (len(rows),) or zero or not fits:
        raise Unsupported(f"node {label(gemm)}: its bias {bias.shape} is not on the scale of the accumulator (S2)")
    return bias
