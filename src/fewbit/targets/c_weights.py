"""What a layer's codes need in C: the bits that hold them, the bounds of their sums, and their packing into bytes."""

from typing import Any

import numpy as np


def by_dsp(k: dict[str, Any]) -> bool:
    """Can a linear kernel use the products of two 16-bit pairs?"""
    return k["w"] in ("w4", "w8") and k["acc"] == "narrow" and k["x"] in ("u8", "i8", "i16")


def bits_of(weight: np.ndarray) -> int:
    """2, 4, 8 or 16: the narrowest that holds these codes."""
    return next(b for b in (2, 4, 8, 16) if weight.min() >= -(1 << (b - 1)) and weight.max() < 1 << (b - 1))


def bound(weight: np.ndarray, bias: np.ndarray, zero: int, limits: tuple[int, int]) -> int:
    """S2: the largest sum."""
    return int((np.abs(weight.astype(np.int64)).sum(1) * max(limits[1] - zero, zero - limits[0]) + np.abs(bias)).max())


def reached(weight: np.ndarray, bits: int, bias: np.ndarray, limits: tuple[int, int]) -> int:
    """The largest that any partial sum of the kernel can be: of codes with their zero point, of weights without their sign."""
    offset = 1 << (bits - 1) if bits < 8 else 0
    codes, most = weight.astype(np.int64) + offset, max(limits[1], -limits[0])
    return int((np.abs(codes).sum(1) * most + offset * weight.shape[1] * most + np.abs(bias)).max())


def packed_type(bits: int) -> str:
    return {2: "uint8_t", 4: "uint8_t", 8: "int8_t", 16: "int16_t"}[bits]


def pack(weight: np.ndarray, bits: int) -> np.ndarray:
    """[out, in] codes, narrow ones without their sign, a row filled up to whole bytes, the first in a byte's lowest bits."""
    if bits >= 8:
        return weight.reshape(-1)
    per = 8 // bits
    unsigned = weight.astype(np.int64) + (1 << (bits - 1))
    padded = np.pad(unsigned, ((0, 0), (0, -weight.shape[1] % per)))
    groups = padded.reshape(len(weight), -1, per)
    return np.bitwise_or.reduce(groups << (bits * np.arange(per)), axis=-1).astype(np.uint8).reshape(-1)
