"""What the weights of a group may become, and which scales can be kept: fewbit's own groups, and llama.cpp's blocks.

weight[o, k] = scale[o, g] (level - zero_point[o, g]), g = k // group_size; codes are unsigned, and are the levels themselves but
for types with a table of levels. The solvers (solvers/grouped) ask a grid for scales to begin with, for the nearest
level, for the scale that suits the levels found, and for the nearest scale that it can hold.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from fewbit.errors import FewbitError
from fewbit.numerics import ggml

SHARES = np.array([1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.5], np.float32)  # of a group's range, for its scale
CENTRED = np.array([1.0, 0.91, 0.85, 0.8, 0.7], np.float32)  # where a minimum is free: the middle of the range stays,
STEPS = np.arange(-0.9, 1.0, 0.2, dtype=np.float32)  # or its low end; the high one is so many steps nearer (llama.cpp's search)
SMALLEST, LARGEST = np.float32(2.0**-24), np.float32(65504)  # that float16 holds
NORMAL = np.float32(2.0**-14)  # below it float16 has fewer digits

Scales = tuple[np.ndarray, np.ndarray]  # scale and zero point, float32 [out, groups]


class AnyGrid(Protocol):
    """offset: the minimum scale * zero_point is free, and is refitted with the scale."""

    @property
    def bits(self) -> int: ...
    @property
    def group_size(self) -> int: ...
    @property
    def offset(self) -> bool: ...
    @property
    def scale_type(self) -> Any: ...
    @property
    def zero_type(self) -> Any: ...

    def check(self, name: str, columns: int) -> None:
        """Refuse columns that do not fit, naming what would."""

    def starts(self, w: np.ndarray) -> Iterator[Scales]:
        """Scales to try for w [out, groups, group_size]; the first reaches the largest weight."""

    def round(self, x: np.ndarray, zero: np.ndarray | int = 0) -> np.ndarray:
        """The levels nearest to x + zero, as floats."""

    def codes(self, levels: np.ndarray) -> np.ndarray:
        """uint8, of what `round` gave."""

    def levels(self, codes: np.ndarray) -> np.ndarray:
        """float32."""

    def refit(self, u: np.ndarray, w: np.ndarray, cost: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> Scales:
        """Least squares: w = scale * u, where u = level - zero, each column's error times cost."""

    def held(self, scale: np.ndarray, zero: np.ndarray) -> Scales:
        """The nearest that can be kept."""


@dataclass(frozen=True)
class Grid:
    """bits 2 to 8; scale float16, zero_point an integer; symmetric: it is 2^(bits - 1) everywhere."""

    bits: int
    group_size: int
    symmetric: bool = False

    offset = False
    scale_type, zero_type = np.float16, np.uint8

    @property
    def top(self) -> int:
        return (1 << self.bits) - 1

    def check(self, name: str, columns: int) -> None:
        if self.group_size < 1 or columns % self.group_size:
            fit = [g for g in (16, 32, 64, 96, 128, 192, 256, columns) if columns % g == 0 and g <= columns]
            raise FewbitError(
                f"group size {self.group_size} does not divide the {columns} columns of {name}; "
                f"{', '.join(map(str, dict.fromkeys(fit)))} do"
            )

    def starts(self, w: np.ndarray) -> Iterator[Scales]:
        for share in SHARES:
            yield self._ranges(w, share)

    def _ranges(self, w: np.ndarray, share: np.float32) -> Scales:
        if self.symmetric:
            scale = np.abs(w).max(axis=2) * share / (self.top // 2)
            zero = np.full_like(scale, (self.top + 1) // 2)
            return np.where(scale > 0, _half(scale), np.float32(1)), zero
        low, high = np.minimum(w.min(axis=2), 0) * share, np.maximum(w.max(axis=2), 0) * share
        scale = (high - low) / self.top
        scale = np.where(scale > 0, _half(scale), np.float32(1))
        return scale, np.clip(np.rint(-low / scale), 0, self.top)

    def round(self, x: np.ndarray, zero: np.ndarray | int = 0) -> np.ndarray:
        return np.clip(np.rint(x) + zero, 0, np.float32(self.top))

    def codes(self, levels: np.ndarray) -> np.ndarray:
        return levels.astype(np.uint8)

    def levels(self, codes: np.ndarray) -> np.ndarray:
        return codes.astype(np.float32)

    def refit(self, u: np.ndarray, w: np.ndarray, cost: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> Scales:
        weighted = u * cost
        below = (weighted * u).sum(axis=2)
        refit = (weighted * w).sum(axis=2) / np.maximum(below, 1e-30)
        return _half(np.where((below > 0) & (refit > 0), refit, scale)), zero

    def held(self, scale: np.ndarray, zero: np.ndarray) -> Scales:
        return _half(scale), zero


@dataclass(frozen=True)
class GgmlGrid:
    """One of llama.cpp's types. The scale may be negative where its sign is kept; zero_point * scale is the minimum."""

    type: ggml.Type

    scale_type = zero_type = np.float32

    @property
    def bits(self) -> int:
        return self.type.bits

    @property
    def group_size(self) -> int:
        return self.type.group

    @property
    def offset(self) -> bool:
        return self.type.zero is None

    def check(self, name: str, columns: int) -> None:
        ggml.check(name, columns, self.type)

    def starts(self, w: np.ndarray) -> Iterator[Scales]:
        if self.offset:
            low, high = w.min(axis=2), np.maximum(w.max(axis=2), 0 if self._positive else -np.inf)
            low = np.minimum(low, 0) if self._positive else low
            for share in CENTRED:
                middle = (high + low) / 2 * (0 if self._positive else 1 - share)
                yield self._safe((high - low) * share / self.type.top, -(low * share + middle))
            for steps in STEPS:
                yield self._safe((high - low) / (self.type.top + steps), -low)
            return
        far, near = self._ends()
        reach = np.take_along_axis(w, np.abs(w).argmax(axis=2)[..., None], axis=2)[..., 0]
        zero = np.full_like(reach, self.type.zero)
        for share in (*SHARES[:1], np.float32(far / near), *SHARES[1:]):
            for sign in (1, -1):  # the largest weight on the far end, then on the near one
                yield self._safe(sign * reach * share / far, zero)[0], zero

    def _ends(self) -> tuple[float, float]:
        """How far the lowest level and the highest lie from zero, both counted below it."""
        zero = float(self.type.zero or 0)
        if self.type.levels:
            return self.type.levels[0], -self.type.levels[-1]
        return self.type.bottom - zero, zero - self.type.top

    @property
    def _positive(self) -> bool:
        """The minimum is never above zero."""
        return self.type.factors[1] > 0

    def _safe(self, scale: np.ndarray, minimum: np.ndarray) -> Scales:
        """A group of zeros too has a scale: a zero is not always a level."""
        scale = np.where(np.abs(scale) > ggml.SMALLEST, scale, ggml.SMALLEST)
        return scale, minimum / scale

    def round(self, x: np.ndarray, zero: np.ndarray | int = 0) -> np.ndarray:
        if not self.type.levels:
            return np.clip(np.rint(x + zero), self.type.bottom, np.float32(self.type.top))
        table = np.array(self.type.levels, np.float32)
        return table[np.searchsorted((table[1:] + table[:-1]) / 2, x + zero)]

    def codes(self, levels: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.type.levels, levels).astype(np.uint8) if self.type.levels else levels.astype(np.uint8)

    def levels(self, codes: np.ndarray) -> np.ndarray:
        return ggml.level(codes, self.type)

    def refit(self, u: np.ndarray, w: np.ndarray, cost: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> Scales:
        weighted = u * cost
        uu, uw = (weighted * u).sum(axis=2), (weighted * w).sum(axis=2)
        if not self.offset:
            new = uw / np.maximum(uu, 1e-30)
            return np.where((uu > 0) & (np.abs(new) > ggml.SMALLEST), new, scale), zero
        c = np.broadcast_to(cost, w.shape).sum(axis=2)
        u1, w1 = weighted.sum(axis=2), (w * cost).sum(axis=2)
        new = (c * uw - u1 * w1) / np.maximum(c * uu - u1 * u1, 1e-30)
        new = np.where(new > ggml.SMALLEST, new, scale)
        shift = (w1 - new * u1) / np.maximum(c, 1e-30)  # w = new * u + shift, u = level - zero
        new_zero = zero - shift / new
        return new, np.maximum(new_zero, 0) if self._positive else new_zero

    def held(self, scale: np.ndarray, zero: np.ndarray) -> Scales:
        kept, minimum = ggml.held(scale, scale * zero if self.offset else 0 * scale, self.type)
        if self.type.factors[0]:
            least = np.abs(kept).reshape(len(kept), -1, self.type.block // self.type.group).max(axis=2) / self.type.factors[0]
            least = np.repeat(least, self.type.block // self.type.group, axis=1)
            kept = np.where(np.abs(kept) < least, least, kept)  # the integer 1, not 0
        return kept, minimum / kept if self.offset else zero

    def parts(self, solution: "Solution") -> ggml.Parts:
        """What a record is packed from."""
        minimum = solution.scale * solution.zero_point if self.offset else np.zeros_like(solution.scale)
        return ggml.Parts(solution.codes, *ggml.held(solution.scale, minimum, self.type), self.type)


@dataclass(frozen=True)
class Solution:
    """codes uint8 [out, in]; scale and zero_point [out, groups] of the grid's types."""

    codes: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray
    grid: AnyGrid

    def dequantized(self) -> np.ndarray:
        """float32 [out, in]."""
        zero, scale = (np.repeat(v.astype(np.float32), self.grid.group_size, axis=1) for v in (self.zero_point, self.scale))
        return (self.grid.levels(self.codes) - zero) * scale


def check_range(name: str, weight: np.ndarray, grid: AnyGrid) -> None:
    """Refuse a weight [out, in] that no float16 scale suits: all of it would become zeros, or be cut off.

    Single rows or groups below that range beside others within it are what training leaves of dead neurons: they become zeros,
    or the smallest steps.

    Raises:
        FewbitError: naming the weight, its size and what would do.
    """
    largest = float(np.abs(weight).max(initial=0))
    reach = float(1 << (grid.bits - 1)) * (grid.type.factors[0] or 1 if isinstance(grid, GgmlGrid) else 1)
    scale = largest / reach
    if 0 < scale < SMALLEST or scale > LARGEST:
        advice = "fewer" if scale < SMALLEST else "more"
        raise FewbitError(
            f"{name}: its largest weight is {largest:.2g}, which at {grid.bits:g} bits needs a scale of {scale:.2g}, and float16 "
            f"holds {SMALLEST:.1g} to {LARGEST:g}; give {advice} bits, or scale the checkpoint's weights"
        )


def _half(scale: np.ndarray) -> np.ndarray:
    """float32 that float16 holds: the nearest, or among the few below its normal numbers the next larger, so that codes still
    reach the largest weight. Never zero."""
    nearest = np.minimum(scale, LARGEST).astype(np.float16).astype(np.float32)
    upward = np.maximum(np.ceil(scale / SMALLEST), 1) * SMALLEST
    return np.where(scale < NORMAL, upward, nearest).astype(np.float32)
