"""What a quantized layer computes, bit for bit, in NumPy: the native kernels of every instruction set give this.

Activations are quantized as they come, symmetrically to 8 bits, each group of columns of each token by itself: its scale is
the largest magnitude / 127, its codes round(x * (127 / largest magnitude)), half to even. A group with NaN or infinity gets the
scale NaN; one whose magnitudes all lie below 2^-80 is zero. Products are summed exactly, as integers, within a group; groups
are scaled and added in float32, in order, nothing fused.
"""

import numpy as np

from fewbit.llm.packed import PackedWeight, unpack, zero_points

SMALLEST = np.float32(2.0**-80)


def quantize_activations(x: np.ndarray, group_size: int) -> tuple[np.ndarray, np.ndarray]:
    """x float32 [tokens, in] -> (codes int8 [tokens, groups, group_size], scale float32 [tokens, groups])."""
    x = np.asarray(x, np.float32).reshape(len(x), -1, group_size)
    largest = np.abs(x).max(axis=2)
    finite = np.isfinite(largest)
    live = finite & (largest >= SMALLEST)
    divisor = np.where(live, largest, np.float32(1))
    scale = np.where(live, divisor / np.float32(127), np.where(finite, np.float32(0), np.float32(np.nan)))
    inverse = np.where(live, np.float32(127) / divisor, np.float32(0))
    steps = np.where(live[:, :, None], x, np.float32(0)) * inverse[:, :, None]
    return np.rint(steps).astype(np.int8), scale.astype(np.float32)


def linear(x: np.ndarray, weight: PackedWeight, bias: np.ndarray | None = None) -> np.ndarray:
    """x float32 [tokens, in] -> float32 [tokens, out]."""
    out, width = weight.shape
    codes, scale = quantize_activations(x, weight.group_size)
    u = unpack(weight).reshape(out, -1, weight.group_size).astype(np.int64) - zero_points(weight).astype(np.int64)[:, :, None]
    steps = weight.scale.astype(np.float32)
    total = np.zeros((len(codes), out), np.float32)
    for g in range(width // weight.group_size):
        exact = codes[:, g].astype(np.int64) @ u[:, g].T
        total = total + exact.astype(np.float32) * (steps[:, g][None, :] * scale[:, g][:, None])
    return total if bias is None else total + bias.astype(np.float32)
