"""The integer arithmetic as differentiable torch operations: the same codes as engine/reference, straight-through gradients.

A register of codes is a float32 tensor of steps (codes less their zero point) with its Reading. Sums of products are formed in
float32 where every partial sum stays below 2^24, in float64 otherwise, so every code is exact (docs/semantics.md, S2-S6).

Gradients: rounding passes them, saturation stops them (Jacob et al. 2018). A scale's is that of LSQ (Esser et al. 2020,
equation 3): it comes out of dividing by the scale before the rounding and multiplying by it behind.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from fewbit.errors import MissingExtra
from fewbit.numerics.formats import IntFormat
from fewbit.numerics.semantics import ADD_BOUND, PRODUCT_BITS, PRODUCT_BOUND

try:
    import torch
except ImportError:
    raise MissingExtra("torch", "torch") from None

EXACT32 = 1 << 24  # integers below it are exact in float32
NARROW = 1 << 31  # S3: below it a multiplier has 22 bits


@dataclass(frozen=True)
class Reading:
    """What one step of codes is worth, the code of zero, the format."""

    scale: float
    zero_point: int
    format: IntFormat

    @property
    def low(self) -> int:
        return self.format.quant_min - self.zero_point

    @property
    def high(self) -> int:
        return self.format.quant_max - self.zero_point

    @property
    def reach(self) -> int:
        return max(self.high, -self.low)


@dataclass(frozen=True)
class Codes:
    """steps float32 [n, ...], integers."""

    steps: torch.Tensor
    reading: Reading

    def floats(self) -> torch.Tensor:
        """float32, as DequantizeLinear gives them."""
        return self.steps * torch.tensor(self.reading.scale, dtype=torch.float32)


class _Round(torch.autograd.Function):
    """Half to even, then saturate; the gradient is 1 inside."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, low: float, high: float) -> torch.Tensor:
        y = torch.round(x)
        saturated = y.clamp(low, high)
        ctx.save_for_backward(y == saturated)
        return saturated

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        return gradients[0] * ctx.saved_tensors[0], None, None


class _Requantize(torch.autograd.Function):
    """S3 and S4 of float64 accumulators by one ratio, multiplier as S3 has it; float32 steps."""

    @staticmethod
    def forward(ctx: Any, acc: torch.Tensor, ratio: float, multiplier: float, low: float, high: float) -> torch.Tensor:
        y = (acc * multiplier).round_()
        saturated = y.clamp(low, high)
        ctx.ratio = ratio
        ctx.save_for_backward(y == saturated)
        return saturated.float()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        (inside,) = ctx.saved_tensors
        return (gradients[0] * inside).mul_(ctx.ratio).double(), None, None, None, None


class _Linear(torch.autograd.Function):
    """S2-S4 in one: what autograd would do step by step, with one copy of the accumulators."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, ratio: torch.Tensor, bits: int, to: tuple[int, int]
    ) -> torch.Tensor:
        acc = (x @ weight.T).double().add_(bias)
        y = (acc * fixed(ratio, bits)).round_()
        saturated = y.clamp(*to)
        ctx.save_for_backward(x, weight, ratio, acc.float(), y == saturated)
        return saturated.float()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        x, weight, ratio, acc, inside = ctx.saved_tensors
        g = gradients[0] * inside
        by_ratio = (g * acc).flatten(0, -2).sum(0).double()
        g = (g * ratio.float()).to(x.dtype)
        flat = g.flatten(0, -2)
        by_x = g @ weight if ctx.needs_input_grad[0] else None
        return by_x, flat.T @ x.flatten(0, -2), flat.sum(0).double(), by_ratio, None, None


class _Lookup(torch.autograd.Function):
    """table[steps - lowest] forward, slope[steps - lowest] backward."""

    @staticmethod
    def forward(ctx: Any, steps: torch.Tensor, table: torch.Tensor, slope: torch.Tensor, lowest: int) -> torch.Tensor:
        index = (steps.long() - lowest).flatten()
        ctx.save_for_backward(index, slope)
        return table.index_select(0, index).view(steps.shape)  # faster than table[index]

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        index, slope = ctx.saved_tensors
        return gradients[0] * slope.index_select(0, index).view(gradients[0].shape), None, None, None


def fixed(ratio: torch.Tensor, bits: int) -> torch.Tensor:
    """S3: the float64 number m / 2^s for each ratio, m of `bits` bits; 0 where s > 62."""
    fraction, exponent = torch.frexp(ratio)
    m = torch.round(fraction * 2.0**bits)
    shift = bits - exponent - (m == 2.0**bits).to(exponent.dtype)
    return torch.where(shift > 62, 0.0, m * (ratio / fraction) * 2.0**-bits)


@lru_cache(maxsize=1024)
def _constant(ratio: float, bits: int) -> float:
    return float(fixed(torch.tensor(ratio, dtype=torch.float64), bits))


def round_to(x: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Rounded half to even and saturated, with the straight-through gradient."""
    return _Round.apply(x, low, high)


def linear(
    x: Codes, weight: torch.Tensor, bias: torch.Tensor, scale: torch.Tensor, limit: int, out: Reading | None
) -> torch.Tensor:
    """S2-S4, or S7 where out is None: float32 [..., out], steps of `out` or floats.

    weight float32 [out, in] codes, at most limit away from 0; bias float64 [out] codes; scale float32 [out].
    """
    largest = weight.shape[1] * limit * x.reading.reach
    steps, w = (x.steps, weight) if largest < EXACT32 else (x.steps.double(), weight.double())
    rows = scale.double() * x.reading.scale
    if out is None:
        return ((steps @ w.T).double() + bias).float() * rows.float()
    bits = 22
    if largest + (1 << 30) >= NARROW:
        bound = (weight.detach().double().abs().sum(1) * x.reading.reach + bias.detach().abs()).max()
        bits = min(22, 53 - int(bound.item()).bit_length())
    return _Linear.apply(steps, w, bias, rows / out.scale, bits, (out.low, out.high))


def rescale(x: torch.Tensor, ratio: float, out: Reading, bound: int = ADD_BOUND, bits: int = 22) -> torch.Tensor:
    """S3 and S4 of integers x by one ratio."""
    precision = min(bits, 53 - max(bound.bit_length(), 1))
    return _Requantize.apply(x.double(), ratio, _constant(ratio, precision), out.low, out.high)


def add(a: Codes, b: Codes, out: Reading, m_a: int, m_b: int, shift: int) -> torch.Tensor:
    """S5: one sum on one shift. The multipliers are the program's."""
    total = a.steps.double() * m_a + b.steps.double() * m_b
    return _Round.apply(total * 2.0**-shift, out.low, out.high).float()


def multiply(a: Codes, b: Codes, out: Reading) -> torch.Tensor:
    """S5: the product of the codes, one multiplier."""
    ratio = a.reading.scale * b.reading.scale / out.scale
    return rescale(a.steps.double() * b.steps.double(), ratio, out, PRODUCT_BOUND, PRODUCT_BITS)


def lookup(steps: torch.Tensor, table: torch.Tensor, slope: torch.Tensor, lowest: int) -> torch.Tensor:
    """float32 [...]: a function of one code, by its table [codes] from the lowest on; slope [codes] is its derivative."""
    return _Lookup.apply(steps, table, slope, lowest)
