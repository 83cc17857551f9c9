"""Number formats as records: what each can hold follows from its bits; nothing about it is typed in.

Sources: IEEE 754-2019 (float32, float16), OCP 8-bit Floating Point Specification 1.0 (e4m3fn, e5m2), OCP Microscaling
Formats 1.0 (float6, float4, e8m0, block formats), Dettmers et al. 2023 appendix E (NF4).
"""

from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import ml_dtypes
import numpy as np

from fewbit.errors import FewbitError


@dataclass(frozen=True)
class IntFormat:
    """A range of integers, and the NumPy dtype that holds it. narrow: no code without its negative (ternary)."""

    name: str
    bits: int
    signed: bool
    narrow: bool = False

    @property
    def quant_min(self) -> int:
        return -self.quant_max - (not self.narrow) if self.signed else 0

    @property
    def quant_max(self) -> int:
        return (1 << (self.bits - self.signed)) - 1

    @property
    def dtype(self) -> np.dtype:
        width = 8 if self.bits <= 8 else 16 if self.bits <= 16 else 32
        return np.dtype(f"{'int' if self.signed else 'uint'}{width}")

    @property
    def levels(self) -> int:
        return self.quant_max - self.quant_min + 1

    @property
    def max(self) -> float:
        return float(self.quant_max)

    @property
    def min(self) -> float:
        return float(self.quant_min)

    def round(self, x: np.ndarray) -> np.ndarray:
        """Nearest integer, ties to even, saturated; float64."""
        return np.clip(np.rint(x), self.quant_min, self.quant_max)


@dataclass(frozen=True)
class FloatFormat:
    """Sign, exponent, mantissa. specials: "ieee" (the top exponent is infinity and NaN), "nan" (all ones is), "none"."""

    name: str
    exponent_bits: int
    mantissa_bits: int
    specials: str
    storage: Any
    signed: bool = True

    @property
    def bits(self) -> int:
        return self.signed + self.exponent_bits + self.mantissa_bits

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.storage)

    @property
    def bias(self) -> int:
        return (1 << (self.exponent_bits - 1)) - 1

    @property
    def max_exponent(self) -> int:
        """The power of two of the largest finite value."""
        taken = self.specials == "ieee" or (self.specials == "nan" and self.mantissa_bits == 0)
        return (1 << self.exponent_bits) - 1 - taken - self.bias

    @property
    def max(self) -> float:
        lost = 2 if self.specials == "nan" and self.mantissa_bits else 1
        return (2.0 - lost * self.epsilon) * 2.0**self.max_exponent if self.mantissa_bits else 2.0**self.max_exponent

    @property
    def min(self) -> float:
        return -self.max if self.signed else self.smallest_subnormal

    @property
    def epsilon(self) -> float:
        """Distance from 1 to the next larger value."""
        return 2.0**-self.mantissa_bits

    @property
    def smallest_normal(self) -> float:
        return 2.0 ** (1 - self.bias) if self.signed else 2.0**-self.bias  # e8m0 has neither zero nor subnormals

    @property
    def smallest_subnormal(self) -> float:
        return self.smallest_normal * self.epsilon

    @property
    def levels(self) -> int:
        """Distinct finite values; the two zeros are one."""
        special = {"ieee": 2 << self.mantissa_bits, "nan": 1 + self.signed, "none": 0}[self.specials]
        return (1 << self.bits) - special - self.signed

    def round(self, x: np.ndarray) -> np.ndarray:
        """The nearest multiple of the last place, ties to even, the exponent unbounded above; float64, exact."""
        exponent = np.frexp(np.where(np.isfinite(x), x, 0.0))[1] - 1
        least = round(np.log2(self.smallest_normal))
        quantum = np.ldexp(1.0, np.maximum(exponent, least) - self.mantissa_bits)
        return np.rint(x / quantum) * quantum

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Bit patterns (integers) -> float64, from the fields alone."""
        codes = np.asarray(codes).astype(np.int64)
        fraction = codes & ((1 << self.mantissa_bits) - 1)
        exponent = (codes >> self.mantissa_bits) & ((1 << self.exponent_bits) - 1)
        sign = np.where(self.signed & (codes >> (self.bits - 1)), -1.0, 1.0)
        normal = (exponent > 0) | (not self.signed)
        value = np.ldexp(normal + fraction * self.epsilon, np.maximum(exponent, int(self.signed)) - self.bias)
        top = exponent == (1 << self.exponent_bits) - 1
        if self.specials == "ieee":
            value = np.where(top, np.where(fraction == 0, np.inf, np.nan), value)
        elif self.specials == "nan":
            value = np.where(top & (fraction == (1 << self.mantissa_bits) - 1), np.nan, value)
        return sign * value


@dataclass(frozen=True)
class CodebookFormat:
    """Any 2^bits values in [-1, 1], ascending; what it stores is the index."""

    name: str
    bits: int
    values: tuple[float, ...]

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.uint8)

    @property
    def levels(self) -> int:
        return len(self.values)

    @property
    def max(self) -> float:
        return self.values[-1]

    @property
    def min(self) -> float:
        return self.values[0]

    def encode(self, x: np.ndarray) -> np.ndarray:
        """Index of the nearest value, uint8."""
        v = np.array(self.values)
        return np.searchsorted((v[1:] + v[:-1]) / 2, x).astype(np.uint8)

    def round(self, x: np.ndarray) -> np.ndarray:
        return np.array(self.values)[self.encode(x)]


@dataclass(frozen=True)
class BlockFormat:
    """block_size elements share one scale; tensor_scale: a float32 for the whole tensor stands above the blocks' scales."""

    name: str
    element: FloatFormat | CodebookFormat
    scale: FloatFormat
    block_size: int
    tensor_scale: bool = False

    @property
    def bits(self) -> float:
        """Bits an element, its share of the scale included."""
        return self.element.bits + self.scale.bits / self.block_size

    @property
    def levels(self) -> int:
        return self.element.levels


def _normal_float(bits: int) -> CodebookFormat:
    """NF4: quantiles of the normal distribution, exact zero, one more value above it than below."""
    half = 1 << (bits - 1)
    outermost = ((1 - 1 / (4 * half - 2)) + (1 - 1 / (4 * half))) / 2  # as its authors chose it: between 1/30 and 1/32 of tail

    def side(n: int) -> list[float]:
        return [NormalDist().inv_cdf(outermost + (0.5 - outermost) * k / n) for k in range(n)]

    values = sorted([*side(half), 0.0, *(-v for v in side(half - 1))])
    return CodebookFormat(f"nf{bits}", bits, tuple(v / values[-1] for v in values))


Format = IntFormat | FloatFormat | CodebookFormat | BlockFormat

INTEGERS = {
    f.name: f
    for f in [IntFormat("int32", 32, True), *(IntFormat(f"int{b}", b, True) for b in (16, 8, 6, 4, 3, 2))]
    + [IntFormat("ternary", 2, True, narrow=True), *(IntFormat(f"uint{b}", b, False) for b in (16, 8, 6, 4, 3, 2))]
}
FLOATS = {
    f.name: f
    for f in [
        FloatFormat("float32", 8, 23, "ieee", np.float32),
        FloatFormat("float16", 5, 10, "ieee", np.float16),
        FloatFormat("bfloat16", 8, 7, "ieee", ml_dtypes.bfloat16),
        FloatFormat("float8_e5m2", 5, 2, "ieee", ml_dtypes.float8_e5m2),
        FloatFormat("float8_e4m3fn", 4, 3, "nan", ml_dtypes.float8_e4m3fn),
        FloatFormat("float6_e3m2fn", 3, 2, "none", ml_dtypes.float6_e3m2fn),
        FloatFormat("float6_e2m3fn", 2, 3, "none", ml_dtypes.float6_e2m3fn),
        FloatFormat("float4_e2m1fn", 2, 1, "none", ml_dtypes.float4_e2m1fn),
        FloatFormat("float8_e8m0fnu", 8, 0, "nan", ml_dtypes.float8_e8m0fnu, signed=False),
    ]
}
CODEBOOKS = {"nf4": _normal_float(4)}
BLOCKS = {
    f.name: f
    for f in [
        BlockFormat("mxfp8_e4m3", FLOATS["float8_e4m3fn"], FLOATS["float8_e8m0fnu"], 32),
        BlockFormat("mxfp8_e5m2", FLOATS["float8_e5m2"], FLOATS["float8_e8m0fnu"], 32),
        BlockFormat("mxfp6_e3m2", FLOATS["float6_e3m2fn"], FLOATS["float8_e8m0fnu"], 32),
        BlockFormat("mxfp6_e2m3", FLOATS["float6_e2m3fn"], FLOATS["float8_e8m0fnu"], 32),
        BlockFormat("mxfp4", FLOATS["float4_e2m1fn"], FLOATS["float8_e8m0fnu"], 32),
        BlockFormat("nvfp4", FLOATS["float4_e2m1fn"], FLOATS["float8_e4m3fn"], 16, tensor_scale=True),
        BlockFormat("nf4_block64", CODEBOOKS["nf4"], FLOATS["float32"], 64),
    ]
}
FORMATS: dict[str, Format] = {**FLOATS, **INTEGERS, **CODEBOOKS, **BLOCKS}


@dataclass(frozen=True)
class Cast:
    """values float64 (infinite or NaN where it overflowed so); overflowed, underflowed (to zero): masks of x's shape."""

    values: np.ndarray
    overflowed: np.ndarray
    underflowed: np.ndarray


def cast(x: np.ndarray | float, fmt: IntFormat | FloatFormat | CodebookFormat, overflow: str | None = None) -> Cast:
    """Round x to fmt. overflow: "saturate" to the largest finite value or "infinity" (NaN where a format has only that).

    The default is infinity where the format has one, saturation otherwise, as ONNX Cast and the OCP specifications do.
    """
    x = np.asarray(x, np.float64)
    special = isinstance(fmt, FloatFormat) and fmt.specials
    chosen = overflow or ("infinity" if special == "ieee" else "saturate")
    if chosen not in ("saturate", "infinity"):
        raise FewbitError(f"overflow {chosen!r} is unknown; choose saturate or infinity")
    if chosen == "infinity" and special not in ("ieee", "nan"):
        raise FewbitError(f"{fmt.name} has no infinity and no NaN to overflow to; it can only saturate")
    if np.isnan(x).any() and special not in ("ieee", "nan"):
        raise FewbitError(f"{fmt.name} cannot hold NaN, which element {_first(np.isnan(x))} is")
    if isinstance(fmt, FloatFormat) and not fmt.signed and (x <= 0).any():
        raise FewbitError(f"{fmt.name} holds powers of two only; element {_first(x <= 0)} is {x[_first(x <= 0)]}")
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = fmt.round(x)
        over = (rounded > fmt.max) | (rounded < fmt.min) if isinstance(fmt, FloatFormat) else (x > fmt.max) | (x < fmt.min)
        over &= ~(np.isinf(x) & (special == "ieee") & (chosen == "infinity"))  # infinity itself fits
        limit = np.inf if special == "ieee" else np.nan
        beyond = np.copysign(limit, x) if chosen == "infinity" else np.clip(x, fmt.min, fmt.max)
        return Cast(np.where(over, beyond, rounded), over, (x != 0) & (rounded == 0))


def _first(mask: np.ndarray) -> tuple[int, ...]:
    return tuple(int(i) for i in np.argwhere(mask)[0])


def find(name: str) -> Format:
    """The format of that name."""
    if name not in FORMATS:
        raise FewbitError(f"format {name} is unknown; choose one of {', '.join(FORMATS)}")
    return FORMATS[name]
