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
        ctx.save_for_backward(x)
        ctx.range = low, high
        return torch.round(x).clamp_(low, high)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        return _inside(gradients[0], ctx.saved_tensors[0], *ctx.range), None, None


class _Weights(torch.autograd.Function):
    """LSQ's codes of weight [out, in] by log_scale [out]: what autograd would do step by step, in fewer passes."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, log_scale: torch.Tensor, low: float, high: float) -> torch.Tensor:
        inverse = torch.exp(-log_scale)[:, None]
        x = weight * inverse
        ctx.save_for_backward(x, inverse)
        ctx.range = low, high
        return torch.round(x).clamp_(low, high)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        x, inverse = ctx.saved_tensors
        g = _inside(gradients[0], x, *ctx.range)
        return g * inverse, -(g * x).sum(1), None, None


class _Rescale(torch.autograd.Function):
    """S3 and S4 of steps x by one ratio, whose multiplier S3 gives."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, ratio: float, multiplier: float, low: float, high: float) -> torch.Tensor:
        y = x.double().mul_(multiplier)
        ctx.save_for_backward(y.float())
        ctx.ratio, ctx.range = ratio, (low, high)
        return y.round_().clamp_(low, high).float()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        return _inside(gradients[0], *ctx.saved_tensors, *ctx.range) * ctx.ratio, None, None, None, None


class _Multiply(torch.autograd.Function):
    """S5: the product of steps a and b, then S4."""

    @staticmethod
    def forward(
        ctx: Any, a: torch.Tensor, b: torch.Tensor, ratio: float, multiplier: float, low: float, high: float
    ) -> torch.Tensor:
        y = a.double().mul_(b).mul_(multiplier)
        ctx.save_for_backward(a, b, y.float())
        ctx.ratio, ctx.range = ratio, (low, high)
        return y.round_().clamp_(low, high).float()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        a, b, y = ctx.saved_tensors
        g = _inside(gradients[0], y, *ctx.range) * ctx.ratio
        return g * b, g * a, None, None, None, None


class _Add(torch.autograd.Function):
    """S5: a by the factor of a and b by that of b, on one shift."""

    @staticmethod
    def forward(
        ctx: Any, a: torch.Tensor, b: torch.Tensor, by: tuple[int, int], step: float, to: tuple[int, int]
    ) -> torch.Tensor:
        y = a.double().mul_(by[0]).add_(b, alpha=by[1]).mul_(step)
        ctx.save_for_backward(y.float())
        ctx.factors, ctx.range = (by[0] * step, by[1] * step), to
        return y.round_().clamp_(*to).float()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        g = _inside(gradients[0], *ctx.saved_tensors, *ctx.range)
        return g * ctx.factors[0], g * ctx.factors[1], None, None, None


@dataclass(frozen=True)
class Dense:
    """What a layer multiplies by, ready for as many products as its weights last: weight float32 [out, in] codes, the same in
    float64 where float32 would not be exact, bias float64 [out] codes, ratio [out] of the accumulator's scale to that of what
    leaves (to the float itself where that is no code), its multiplier."""

    weight: torch.Tensor
    wide: torch.Tensor | None
    bias: torch.Tensor
    ratio: torch.Tensor
    multiplier: torch.Tensor | None


class _Linear(torch.autograd.Function):
    """S2-S4 in one: what autograd would do step by step, with one copy of the accumulators. Gradients need no float64."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        ratio: torch.Tensor,
        wide: torch.Tensor | None,
        multiplier: torch.Tensor,
        to: tuple[int, int],
    ) -> torch.Tensor:
        y = _product(x, weight, wide).add_(bias).mul_(multiplier)
        ctx.save_for_backward(x, weight, ratio, y.float())
        ctx.range = to
        return y.round_().clamp_(*to).float()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        x, weight, ratio, y = ctx.saved_tensors
        g = _inside(gradients[0], y, *ctx.range)
        by_ratio = (g * y).flatten(0, -2).sum(0) / ratio
        g = g * ratio.float()
        flat = g.flatten(0, -2)
        by_x = g @ weight if ctx.needs_input_grad[0] else None
        return by_x, flat.T @ x.flatten(0, -2), flat.sum(0).double(), by_ratio, None, None, None


def _product(x: torch.Tensor, weight: torch.Tensor, wide: torch.Tensor | None) -> torch.Tensor:
    """float64, every sum exact."""
    return (x @ weight.T).double() if wide is None else x.double() @ wide.T


def _inside(gradient: torch.Tensor, y: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """The gradient where y rounds to a code of the range, 0 elsewhere. One pass: comparisons to bool take four times as long."""
    return torch.ops.aten.hardtanh_backward(gradient, y, low - 0.5, high + 0.5)


class _Lookup(torch.autograd.Function):
    """table[steps - lowest] forward, slope[steps - lowest] backward."""

    @staticmethod
    def forward(ctx: Any, steps: torch.Tensor, table: torch.Tensor, slope: torch.Tensor, lowest: int) -> torch.Tensor:
        index = steps.long() - lowest
        ctx.save_for_backward(index, slope)
        return table.index_select(0, index.flatten()).view(steps.shape)  # faster than table[index]

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        index, slope = ctx.saved_tensors
        return gradients[0] * slope.index_select(0, index.flatten()).view(index.shape), None, None, None


def fixed(ratio: torch.Tensor, bits: int) -> torch.Tensor:
    """S3: the float64 number m / 2^s for each ratio, m of `bits` bits; 0 where s > 62."""
    fraction, exponent = torch.frexp(ratio)
    m = torch.round(fraction * 2.0**bits)
    shift = bits - exponent - (m == 2.0**bits).to(exponent.dtype)
    return torch.where(shift > 62, 0.0, m * (ratio / fraction) * 2.0**-bits)


def round_to(x: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Rounded half to even and saturated, with the straight-through gradient."""
    return _Round.apply(x, low, high)


def weight_codes(weight: torch.Tensor, log_scale: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """float32 [out, in], integers: weight times exp(-log_scale [out]), rounded and saturated; LSQ's gradients."""
    return _Weights.apply(weight, log_scale, low, high)


def dense(weight: torch.Tensor, bias: torch.Tensor, scale: torch.Tensor, limit: int, read: Reading, out: Reading | None) -> Dense:
    """weight float32 [out, in] codes, at most limit away from 0; bias float64 [out] codes; scale float32 [out]; read: of what it
    multiplies; out: of what leaves it, None for floats."""
    largest = weight.shape[1] * limit * read.reach
    wide, rows = None if largest < EXACT32 else weight.detach().double(), scale.double() * read.scale
    if out is None:
        return Dense(weight, wide, bias, rows, None)
    bits = 22
    if largest + (1 << 30) >= NARROW:
        bound = (weight.detach().double().abs().sum(1) * read.reach + bias.detach().abs()).max()
        bits = min(22, 53 - int(bound.item()).bit_length())
    ratio = rows / out.scale
    return Dense(weight, wide, bias, ratio, fixed(ratio.detach(), bits))


def linear(x: torch.Tensor, by: Dense, out: Reading | None) -> torch.Tensor:
    """S2-S4, or S7 where out is None: steps x [..., in] -> float32 [..., out], steps of `out` or floats."""
    if out is None:
        steps, weight = (x, by.weight) if by.wide is None else (x.double(), by.weight.double())
        return ((steps @ weight.T).double() + by.bias).float() * by.ratio.float()
    return _Linear.apply(x, by.weight, by.bias, by.ratio, by.wide, by.multiplier, (out.low, out.high))


def rescale(x: torch.Tensor, ratio: float, out: Reading) -> torch.Tensor:
    """S3 and S4 of steps x by one ratio."""
    return _Rescale.apply(x, ratio, _multiplier(ratio, ADD_BOUND, 22), out.low, out.high)


def add(a: Codes, b: Codes, out: Reading, m_a: int, m_b: int, shift: int) -> torch.Tensor:
    """S5: one sum on one shift. The multipliers are the program's."""
    return _Add.apply(a.steps, b.steps, (m_a, m_b), 2.0**-shift, (out.low, out.high))


def multiply(a: Codes, b: Codes, out: Reading) -> torch.Tensor:
    """S5: the product of the codes, one multiplier."""
    ratio = a.reading.scale * b.reading.scale / out.scale
    return _Multiply.apply(a.steps, b.steps, ratio, _multiplier(ratio, PRODUCT_BOUND, PRODUCT_BITS), out.low, out.high)


@lru_cache(maxsize=1024)
def _multiplier(ratio: float, bound: int, bits: int) -> float:
    """S3, of a ratio that stays."""
    precision = min(bits, 53 - max(bound.bit_length(), 1))
    return float(fixed(torch.tensor(ratio, dtype=torch.float64), precision))


def lookup(steps: torch.Tensor, table: torch.Tensor, slope: torch.Tensor, lowest: int) -> torch.Tensor:
    """float32 [...]: a function of one code, by its table [codes] from the lowest on; slope [codes] is its derivative."""
    return _Lookup.apply(steps, table, slope, lowest)
