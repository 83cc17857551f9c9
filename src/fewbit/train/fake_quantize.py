"""The arithmetic of numerics/affine for torch tensors, bit for bit, and fake_quantize with a straight-through gradient.

The gradient is that of Jacob et al. 2018: 1 where the value lies inside the range, 0 where it saturates.
"""

from typing import Any

from fewbit.errors import MissingExtra
from fewbit.numerics.affine import Parameters
from fewbit.numerics.formats import IntFormat

try:
    import torch
except ImportError:
    raise MissingExtra("torch", "torch") from None

_DTYPES = {(8, True): torch.int8, (8, False): torch.uint8, (16, True): torch.int16, (16, False): torch.int32}


def tensors(p: Parameters, device: Any = None) -> tuple[torch.Tensor, torch.Tensor]:
    """(scale float32, zero_point int32) of NumPy Parameters."""
    return torch.as_tensor(p.scale, device=device), torch.as_tensor(p.zero_point, device=device)


def spread(values: torch.Tensor, shape: torch.Size, axis: int | None, group_size: int | None) -> torch.Tensor:
    """As affine.spread: make a scale or zero_point broadcast against a tensor of `shape`."""
    if axis is None or values.ndim == 0:
        return values
    axis %= len(shape)
    if group_size is not None:
        return values.repeat_interleave(group_size, axis).narrow(axis, 0, shape[axis])
    return values.reshape([-1 if k == axis else 1 for k in range(len(shape))])


def _codes(x: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, fmt: IntFormat) -> torch.Tensor:
    """float64 codes before they saturate."""
    steps = torch.round(x.to(torch.float32) / scale).to(torch.float64)
    return torch.where(torch.isnan(steps), 0.0, steps) + zero


def quantize(
    x: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
    fmt: IntFormat,
    axis: int | None = None,
    group_size: int | None = None,
) -> torch.Tensor:
    """float tensor -> integer codes (int8, uint8, int16 or int32), as affine.quantize."""
    scale, zero = spread(scale, x.shape, axis, group_size), spread(zero_point, x.shape, axis, group_size)
    dtype = _DTYPES.get((8 if fmt.bits <= 8 else 16 if fmt.bits <= 16 else 32, fmt.signed), torch.int32)
    return _codes(x, scale, zero, fmt).clamp(fmt.quant_min, fmt.quant_max).to(dtype)


def dequantize(
    q: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, axis: int | None = None, group_size: int | None = None
) -> torch.Tensor:
    """Codes -> float32, as affine.dequantize."""
    zero = spread(zero_point, q.shape, axis, group_size).to(torch.int32)
    return (q.to(torch.int32) - zero).to(torch.float32) * spread(scale, q.shape, axis, group_size)


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, fmt: IntFormat) -> torch.Tensor:
        codes = _codes(x, scale, zero, fmt)
        ctx.save_for_backward((codes >= fmt.quant_min) & (codes <= fmt.quant_max))
        return (codes.clamp(fmt.quant_min, fmt.quant_max) - zero).to(torch.float32) * scale

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        (inside,) = ctx.saved_tensors
        return gradients[0] * inside, None, None, None


def fake_quantize(
    x: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
    fmt: IntFormat,
    axis: int | None = None,
    group_size: int | None = None,
) -> torch.Tensor:
    """dequantize(quantize(x)) as one float32 operation with the straight-through gradient."""
    scale, zero = spread(scale, x.shape, axis, group_size), spread(zero_point, x.shape, axis, group_size)
    return _FakeQuantize.apply(x, scale, zero, fmt)
