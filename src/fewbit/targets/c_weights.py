"""What a layer's codes need in C: the bits that hold them, the bounds of their sums, and their packing into bytes."""

from typing import Any

import numpy as np


def by_dsp(k: dict[str, Any]) -> bool:
    """Can a linear kernel use the products of two 16-bit pairs?"""
    return k["w"] in ("w2", "w4", "w8") and k["acc"] == "narrow" and k["x"] in ("u8", "i8", "i16")


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


def order_of(bits: int, kind: str) -> list[int]:
    """Which code of a word of 2 or 4 bits each place holds, lowest bits first.

    Place k and the one half a word above it are what one product of kernels/dsp.c reads: neighbours of 16-bit codes, and codes
    two apart of bytes, which are widened to pairs so.
    """
    lower = np.arange(16 // bits)
    first, apart = (2 * lower, 1) if kind == "i16" else (4 * (lower // 2) + lower % 2, 2)
    return [*first.tolist(), *(first + apart).tolist()]


def pack(weight: np.ndarray, bits: int, kind: str) -> np.ndarray:
    """[out, in] codes read beside codes of `kind`; narrow ones without their sign, in groups, a row filled up to whole bytes."""
    if bits >= 8:
        return weight.reshape(-1)
    per, order = 8 // bits, order_of(bits, kind)
    unsigned = weight.astype(np.int64) + (1 << (bits - 1))
    whole = weight.shape[1] // len(order) * len(order)
    groups = unsigned[:, :whole].reshape(len(weight), -1, len(order))[:, :, order].reshape(len(weight), -1)
    rows = np.concatenate([groups, unsigned[:, whole:]], 1)
    rows = np.pad(rows, ((0, 0), (0, -rows.shape[1] % per))).reshape(len(weight), -1, per)
    return np.bitwise_or.reduce(rows << (bits * np.arange(per)), axis=-1).astype(np.uint8).reshape(-1)
