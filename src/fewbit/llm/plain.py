"""Weights rounded to nearest in the checkpoint's own dtype: what llm-compressor writes without calibration, bit for bit.

Scales are the largest magnitude over the largest code, of a row, a group, a block of 128 x 128. NVFP4 (groups of 16, scales in
float8_e4m3fn under one factor for the tensor) and MXFP4 (groups of 32, scales that are powers of two; OCP MX 1.0) hold two codes
of float4_e2m1 in a byte, the first in the low half.
"""

import math

import torch
from torch import Tensor

FP8, FP8_MAX, FP4_MAX = torch.float8_e4m3fn, 448.0, 6.0
BLOCK = 128
STEPS = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)  # between the magnitudes 0 0.5 1 1.5 2 3 4 6
UPWARD = (False, True, False, True, False, True, False)  # ties go to the even code


def rounded(weight: Tensor, scale: Tensor, bits: int, zero: Tensor | None = None) -> Tensor:
    """int8 codes; scale (and zero) broadcast over weight."""
    steps = weight / scale
    steps = steps if zero is None else steps + zero.to(weight.dtype)
    return torch.clamp(steps, -(1 << (bits - 1)), (1 << (bits - 1)) - 1).round().to(torch.int8)


def per_row(weight: Tensor) -> dict[str, Tensor]:
    """int8 with a scale a row."""
    scale = _nonzero(weight.abs().amax(1, keepdim=True) / _half_range(weight, 8))
    return {"weight": rounded(weight, scale, 8), "weight_scale": scale}


def grouped(weight: Tensor, bits: int, size: int, symmetric: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """(int8 codes [out, in], scale [out, groups], int8 zero point or None)."""
    w = weight.reshape(len(weight), -1, size)
    if symmetric:
        scale = _nonzero(w.abs().amax(2) / _half_range(weight, bits))
        return rounded(w, scale[..., None], bits).reshape(weight.shape), scale, None
    low, high = w.amin(2).clamp(max=0), w.amax(2).clamp(min=0)
    scale = (high - low) / _number((1 << bits) - 1, weight)
    bottom = -(1 << (bits - 1))
    zero = torch.clamp(bottom - low / scale, bottom, -bottom - 1).nan_to_num(0).round().to(torch.int8)
    scale = _nonzero(scale)
    return rounded(w, scale[..., None], bits, zero[..., None]).reshape(weight.shape), scale, zero


def fp8_rows(weight: Tensor) -> dict[str, Tensor]:
    """float8_e4m3fn with a scale a row."""
    scale = _nonzero(weight.abs().amax(1, keepdim=True) / _number(FP8_MAX, weight))
    return {"weight": _fp8(weight / scale), "weight_scale": scale}


def fp8_blocks(weight: Tensor) -> dict[str, Tensor]:
    """float8_e4m3fn with a scale for each 128 x 128."""
    rows, columns = (-(-n // BLOCK) for n in weight.shape)
    padding = (0, columns * BLOCK - weight.shape[1], 0, rows * BLOCK - weight.shape[0])
    w = torch.nn.functional.pad(weight, padding).reshape(rows, BLOCK, columns, BLOCK)
    scale = _nonzero(w.abs().amax((1, 3)) / _number(FP8_MAX, weight))
    codes = _fp8(w / scale[:, None, :, None]).reshape(rows * BLOCK, columns * BLOCK)
    return {"weight": codes[: weight.shape[0], : weight.shape[1]].contiguous(), "weight_scale": scale}


def nvfp4(weight: Tensor, largest: Tensor) -> dict[str, Tensor]:
    """largest: the magnitude that the tensor's factor is chosen for, over all Linears that run as one (q, k, v; gate, up)."""
    whole = torch.nan_to_num(FP8_MAX * FP4_MAX / largest.clamp(min=torch.finfo(largest.dtype).tiny), nan=1.0, posinf=1.0)
    whole = whole.to(torch.float32).reshape(1)
    w = weight.reshape(len(weight), -1, 16)
    scale = (whole * (w.abs().amax(2) / _number(FP4_MAX, weight))).clamp(max=FP8_MAX).to(FP8).float()
    scale = torch.where(scale == 0, torch.full_like(scale, 0.125), scale)
    packed = _fp4((w / (scale / whole)[..., None]).reshape(weight.shape))
    return {"weight_packed": packed, "weight_scale": scale.to(FP8), "weight_global_scale": whole}


def mxfp4(weight: Tensor) -> dict[str, Tensor]:
    """The largest magnitude is rounded to a power of two, up from 1.75 times one on."""
    w = weight.reshape(len(weight), -1, 32)
    fraction, exponent = torch.frexp(w.abs().amax(2).float())  # in [0.5, 1)
    power = exponent - 1 + (fraction >= 0.875).int()
    stored = torch.where(fraction > 0, power + 127 - 2, 0).clamp(0, 254)
    scale = torch.exp2((stored - 127).float()).to(weight.dtype)
    return {"weight_packed": _fp4((w / scale[..., None]).reshape(weight.shape)), "weight_scale": stored.to(torch.uint8)}


def _number(value: float, like: Tensor) -> Tensor:
    return torch.tensor(value, dtype=like.dtype)


def _half_range(weight: Tensor, bits: int) -> Tensor:
    return _number((1 << bits) - 1, weight) / 2


def _nonzero(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, torch.full_like(scale, torch.finfo(scale.dtype).eps), scale)


def _fp8(steps: Tensor) -> Tensor:
    return torch.clamp(steps, -FP8_MAX, FP8_MAX).to(FP8)


def _fp4(steps: Tensor) -> Tensor:
    """uint8 [out, in / 2]."""
    size, code = steps.abs(), torch.zeros(steps.shape, dtype=torch.uint8)
    for step, upward in zip(STEPS, UPWARD, strict=True):
        code += (size >= step if upward else size > step).to(torch.uint8)
    code |= (steps < 0).to(torch.uint8) << 3
    pairs = code.reshape(len(code), -1, 2)
    return pairs[..., 0] | pairs[..., 1] << 4


def pack_int32(codes: Tensor, bits: int) -> Tensor:
    """int8 codes [rows, n] -> int32 [rows, ceil(n bits / 32)]: offset binary, one little-endian stream a row."""
    u = (codes.to(torch.int16) + (1 << (bits - 1))).to(torch.uint8)
    stream = (u[..., None] >> torch.arange(bits, dtype=torch.uint8)) & 1
    stream = stream.reshape(len(codes), -1)
    stream = torch.nn.functional.pad(stream, (0, math.ceil(stream.shape[1] / 32) * 32 - stream.shape[1]))
    octets = (stream.reshape(len(codes), -1, 8) << torch.arange(8, dtype=torch.uint8)).sum(2, dtype=torch.uint8)
    return octets.contiguous().view(torch.int32)
