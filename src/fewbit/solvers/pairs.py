"""Weights whose 8-bit products fit 16 bits two by two: what x86 without VNNI asks of an int8 kernel (vpmaddubsw saturates there).

255 times the positive weights of a pair of neighbouring inputs, and of its negative ones, must stay within 32767: their sums
within 128. The solver's codes are kept where they do; a row that does not has its scale raised and is solved again.
"""

from collections.abc import Callable

import numpy as np

from fewbit.errors import FewbitError

MOST = 32767 // 255  # what the weights of a pair may add up to
STEP = 1.005  # a raise of the scale beyond what the excess asks for: rounding may add a code
TRIES = 64

Solve = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (rows of weight, their scale) -> codes


def largest(codes: np.ndarray, channels_last: bool = False) -> np.ndarray:
    """[out] of codes [out, in] or [out, channels, *kernel]: the largest sum of the same sign over neighbouring inputs.

    channels_last: neighbours are channels of one place, as runtimes lay patches out.
    """
    rows = (np.moveaxis(codes, 1, -1) if channels_last else codes).reshape(len(codes), -1).astype(np.int32)
    rows = np.pad(rows, ((0, 0), (0, max(0, 2 - rows.shape[1]))))
    up, down = np.maximum(rows, 0), np.maximum(-rows, 0)
    return np.maximum((up[:, 1:] + up[:, :-1]).max(1), (down[:, 1:] + down[:, :-1]).max(1))


def within(codes: np.ndarray, scale: np.ndarray, weight: np.ndarray, solve: Solve) -> tuple[np.ndarray, np.ndarray]:
    """(codes, scale) with every pair within MOST. codes, weight: [out, in] or [out, channels, *kernel]; scale [out]."""
    codes, scale, many = codes.copy(), scale.copy(), codes.ndim > 2
    flat = weight.reshape(len(weight), -1)
    for _ in range(TRIES):
        over = largest(codes, many)
        rows = np.flatnonzero(over > MOST)
        if not len(rows):
            return codes, scale
        scale[rows] *= (over[rows] / MOST * STEP).astype(np.float32)
        codes[rows] = solve(flat[rows], scale[rows]).reshape(codes[rows].shape)
    raise FewbitError("weights cannot be kept within 16 bits two by two; choose int6 weights")
