"""Codes of 4, 3 and 2 bits packed into bytes, in the orders that files use.

"low_first": the first code lies in the lowest bits of the first byte: ONNX INT4 and INT2 (onnx.proto, TensorProto.raw_data),
and 3 bits as one little-endian stream, 8 codes in 3 bytes. "high_first": the first code lies in the highest bits.
"""

import math
from typing import Literal

import numpy as np

from fewbit.errors import FewbitError

BITS = (2, 3, 4)
ORDERS = ("low_first", "high_first")


def pack(codes: np.ndarray, bits: int, order: str = "low_first") -> np.ndarray:
    """Codes of any shape, signed (two's complement) or not -> uint8 [ceil(n bits / 8)], zeros behind the last code."""
    _check(bits, order)
    flat = np.asarray(codes).reshape(-1).astype(np.int64)
    bad = (flat < -(1 << (bits - 1))) | (flat >= 1 << bits)
    if bad.any() or (flat.min(initial=0) < 0 and flat.max(initial=0) >= 1 << (bits - 1)):
        index = int(np.argmax(bad)) if bad.any() else int(np.argmax(flat))
        raise FewbitError(f"code {flat[index]} at {index} does not fit {bits} bits beside the others")
    one: Literal["little", "big"] = "little" if order == "low_first" else "big"
    rows = np.unpackbits((flat & ((1 << bits) - 1)).astype(np.uint8)[:, None], axis=1, bitorder=one)
    kept = rows[:, :bits] if order == "low_first" else rows[:, 8 - bits :]
    return np.packbits(kept.reshape(-1), bitorder=one)


def unpack(packed: np.ndarray, bits: int, shape: tuple[int, ...], signed: bool = True, order: str = "low_first") -> np.ndarray:
    """uint8 -> int8 (signed) or uint8 codes of that shape."""
    _check(bits, order)
    count, packed = math.prod(shape), np.asarray(packed, np.uint8).reshape(-1)
    if len(packed) != -(-count * bits // 8):
        raise FewbitError(f"{count} codes of {bits} bits take {-(-count * bits // 8)} bytes, found {len(packed)}")
    one: Literal["little", "big"] = "little" if order == "low_first" else "big"
    rows = np.unpackbits(packed, count=count * bits, bitorder=one).reshape(count, bits)
    weights = 1 << np.arange(bits)
    codes = rows.astype(np.int64) @ (weights if order == "low_first" else weights[::-1])
    if signed:
        codes -= (codes >> (bits - 1)) << bits
    return codes.astype(np.int8 if signed else np.uint8).reshape(shape)


def _check(bits: int, order: str) -> None:
    if bits not in BITS or order not in ORDERS:
        raise FewbitError(f"packing of {bits} bits {order} is unknown; bits are {BITS}, orders {', '.join(ORDERS)}")
