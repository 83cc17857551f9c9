"""llama.cpp's weight types, bit for bit: records of 32 or 256 weights of one row (ggml-common.h, ggml-quants.c).

    weight = scale * (level - zero)       q4_0, q8_0, iq4_nl, q6_k: zero is the type's
    weight = scale * code - minimum       q4_1 and, with a minimum that is never negative, q4_k, q5_k

In the types of 32 weights scale and minimum are float16. Those of 256 keep a float16 factor for all and a small integer for each
group: scale = d * integer. Here a group has its own scale and minimum as float32, which holds these products exactly.
"""

from dataclasses import dataclass, field

import numpy as np

from fewbit.errors import FewbitError

SMALLEST = np.float32(2.0**-24)  # of float16
STRETCHES = (1.0, 0.996, 0.998, 1.002, 1.004)  # of a record's factor; 1 first, so that what is held stays
NONLINEAR = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)  # iq4_nl's levels


@dataclass(frozen=True)
class Type:
    """number: in ggml's enum; group: weights of one scale; block: weights of one record; zero: the level that stands for 0, None
    where a minimum is kept; levels: of the codes, where they are not the codes; factors: (largest scale, largest minimum) integer
    in a record with small integers; bottom: the least code that llama.cpp uses; file_type: general.file_type."""

    name: str
    number: int
    bits: int
    group: int
    block: int
    record: np.dtype
    file_type: int
    zero: int | None = None
    levels: tuple[int, ...] = ()
    factors: tuple[int, int] = (0, 0)
    bottom: int = 0

    @property
    def top(self) -> int:
        return (1 << self.bits) - 1

    def row_bytes(self, columns: int) -> int:
        return columns // self.block * self.record.itemsize


_D, _M = ("d", "<f2"), ("m", "<f2")
_HALVES = np.dtype([_D, ("q", "u1", 16)])
TYPES = {
    t.name: t
    for t in [
        Type("q4_0", 2, 4, 32, 32, _HALVES, 2, zero=8),
        Type("q4_1", 3, 4, 32, 32, np.dtype([_D, _M, ("q", "u1", 16)]), 3),
        Type("q8_0", 8, 8, 32, 32, np.dtype([_D, ("q", "i1", 32)]), 7, zero=128, bottom=1),
        Type("iq4_nl", 20, 4, 32, 32, _HALVES, 25, zero=0, levels=NONLINEAR),
        Type("q4_k", 12, 4, 32, 256, np.dtype([_D, _M, ("s", "u1", 12), ("q", "u1", 128)]), 15, factors=(63, 63)),
        Type(
            "q5_k", 13, 5, 32, 256, np.dtype([_D, _M, ("s", "u1", 12), ("h", "u1", 32), ("q", "u1", 128)]), 17, factors=(63, 63)
        ),
        Type(
            "q6_k", 14, 6, 16, 256, np.dtype([("q", "u1", 128), ("h", "u1", 64), ("s", "i1", 16), _D]), 18, 32, factors=(127, 0)
        ),
    ]
}


@dataclass(frozen=True)
class Parts:
    """codes uint8 [out, in]; scale and minimum float32 [out, groups], minimum zero throughout where the type keeps none."""

    codes: np.ndarray
    scale: np.ndarray
    minimum: np.ndarray
    type: Type = field(repr=False)

    def dequantized(self) -> np.ndarray:
        """float32 [out, in], by llama.cpp's own order of operations."""
        levels = level(self.codes, self.type).reshape(*self.scale.shape, self.type.group)
        steps = levels - np.float32(self.type.zero or 0)
        return (steps * self.scale[..., None] - self.minimum[..., None]).reshape(self.codes.shape)


def level(codes: np.ndarray, kind: Type) -> np.ndarray:
    """float32: what codes stand for before scale and zero."""
    return np.array(kind.levels, np.float32)[codes] if kind.levels else codes.astype(np.float32)


def held(scale: np.ndarray, minimum: np.ndarray, kind: Type) -> tuple[np.ndarray, np.ndarray]:
    """The nearest scales and minima, float32 [out, groups], that records of this type can hold."""
    (d, s), (m, t) = _factors(scale, kind, 0), _factors(minimum, kind, 1)
    return d * s, m * t


def _factors(values: np.ndarray, kind: Type, which: int) -> tuple[np.ndarray, np.ndarray]:
    """(float16 factor, integer of each group), both as float32 [out, groups]; which: 0 the scales, 1 the minima."""
    values, most = np.asarray(values, np.float32), kind.factors[which]
    if which and kind.zero is not None:
        return np.zeros_like(values), np.zeros_like(values)
    if not most:
        return _half(values), np.ones_like(values)
    blocks = values.reshape(len(values), -1, kind.block // kind.group)
    d, whole = _fitted(blocks, most, -most if kind.zero is not None else 0)
    return np.broadcast_to(d, blocks.shape).reshape(values.shape), whole.reshape(values.shape)


def _fitted(blocks: np.ndarray, most: int, least: int) -> tuple[np.ndarray, np.ndarray]:
    """(factor [out, records, 1], integers from least to most) whose products are nearest to blocks [out, records, groups].

    The largest takes the integer `most` even where the factor is so small that its rounding shows, so that it can be found again.
    """
    size = np.abs(blocks)
    largest = size.max(axis=2, keepdims=True)
    best_d, best, lost = np.zeros_like(largest), np.zeros_like(blocks), np.full_like(largest, np.inf)
    for stretch in STRETCHES:
        d = np.maximum(_half(largest / most * np.float32(stretch)), SMALLEST)
        whole = np.where((size == largest) & (size > 0), np.sign(blocks) * most, np.clip(np.rint(blocks / d), least, most))
        error = ((d * whole - blocks) ** 2).sum(axis=2, keepdims=True)
        better = error < lost
        best_d, best, lost = np.where(better, d, best_d), np.where(better, whole, best), np.where(better, error, lost)
    return best_d, best


def _half(x: np.ndarray) -> np.ndarray:
    return np.clip(x, -65504, 65504).astype(np.float16).astype(np.float32)


def check(name: str, columns: int, kind: Type) -> None:
    """Refuse columns that are not whole records, naming the types that would do."""
    if columns % kind.block:
        fit = [t.name for t in TYPES.values() if columns % t.block == 0]
        raise FewbitError(
            f"{kind.name} keeps {kind.block} columns together, which does not divide the {columns} of {name}; "
            + (f"{', '.join(fit)} do" if fit else "no type of llama.cpp does; keep it float")
        )


def pack(parts: Parts) -> np.ndarray:
    """uint8 [out, bytes of a row]. scale and minimum must be what `held` gives."""
    kind, (out, columns) = parts.type, parts.codes.shape
    check("a weight", columns, kind)
    records = np.zeros((out, columns // kind.block), kind.record)
    (d, s), (m, t) = _factors(parts.scale, kind, 0), _factors(parts.minimum, kind, 1)
    if not (np.array_equal(d * s, parts.scale) and np.array_equal(m * t, parts.minimum)):
        raise FewbitError(f"pack: a scale or minimum is not one that {kind.name} holds; take `held` before choosing codes")
    each = kind.block // kind.group
    records["d"] = d[:, ::each]
    if "m" in (kind.record.names or ()):
        records["m"] = m[:, ::each] if kind.factors[1] else -m  # the types of 32 add theirs
    if kind.factors[1]:
        records["s"] = _pack_six(*(x.reshape(out, -1, each).astype(np.uint8) for x in (s, t)))
    elif kind.factors[0]:
        records["s"] = s.reshape(out, -1, each)
    _put_codes(records, parts.codes.reshape(out, -1, kind.block), kind)
    return records.view(np.uint8).reshape(out, -1)


def unpack(data: np.ndarray, columns: int, kind: Type) -> Parts:
    """pack's inverse; data uint8 [out, bytes of a row]."""
    check("a weight", columns, kind)
    if data.ndim != 2 or data.dtype != np.uint8 or data.shape[1] != kind.row_bytes(columns):
        raise FewbitError(
            f"{kind.name}: {data.dtype} {list(data.shape)} is not rows of {columns} weights, {kind.row_bytes(columns)} bytes each"
        )
    records = np.ascontiguousarray(data).view(kind.record)
    groups, each = (len(data), columns // kind.group), kind.block // kind.group
    d = np.repeat(records["d"].astype(np.float32), each, axis=1)
    m = np.zeros(groups, np.float32)
    if "m" in (kind.record.names or ()):
        m = np.repeat(records["m"].astype(np.float32), each, axis=1)
    if kind.factors[1]:
        s, t = (x.reshape(groups).astype(np.float32) for x in _unpack_six(records["s"]))
        d, m = d * s, m * t
    elif kind.factors[0]:
        d = d * records["s"].reshape(groups)
    elif kind.zero is None:
        m = -m
    return Parts(_codes(records, kind).reshape(len(data), columns), d, m, kind)


def _put_codes(records: np.ndarray, codes: np.ndarray, kind: Type) -> None:
    """codes [out, records, block]."""
    if kind.bits == 8:
        records["q"] = (codes.astype(np.int16) - 128).astype(np.int8)
    elif kind.name == "q6_k":
        parts = codes.reshape(*codes.shape[:2], 2, 4, 32)  # halves, quarters
        low, high = parts & 15, parts >> 4
        records["q"] = (low[..., :2, :] | low[..., 2:, :] << 4).reshape(*codes.shape[:2], 128)
        shifts = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
        records["h"] = np.bitwise_or.reduce(high << shifts, axis=3).reshape(*codes.shape[:2], 64)
    else:
        parts = codes.reshape(*codes.shape[:2], -1, 2, min(32, kind.block // 2))
        records["q"] = ((parts[..., 0, :] & 15) | (parts[..., 1, :] & 15) << 4).reshape(*records.shape, -1)
        if kind.bits == 5:
            bits = (codes >> 4).reshape(*codes.shape[:2], 8, 32) << np.arange(8, dtype=np.uint8)[:, None]
            records["h"] = np.bitwise_or.reduce(bits, axis=2)


def _codes(records: np.ndarray, kind: Type) -> np.ndarray:
    """uint8 [out, records, block]."""
    q = records["q"]
    if kind.bits == 8:
        return (q.astype(np.int16) + 128).astype(np.uint8)
    if kind.name == "q6_k":
        pairs = q.reshape(*records.shape, 2, 2, 32)
        low = np.concatenate([pairs & 15, pairs >> 4], axis=-2)
        shifts = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
        high = records["h"].reshape(*records.shape, 2, 1, 32) >> shifts & 3
        return (low | high << 4).reshape(*records.shape, 256)
    pairs = q.reshape(*records.shape, -1, min(32, kind.block // 2))
    low = np.stack([pairs & 15, pairs >> 4], axis=-2).reshape(*records.shape, kind.block)
    if kind.bits == 5:
        high = records["h"][..., None, :] >> np.arange(8, dtype=np.uint8)[:, None] & 1
        low = low | high.reshape(low.shape) << 4
    return low


def _pack_six(scale: np.ndarray, minimum: np.ndarray) -> np.ndarray:
    """Eight scales and eight minima of 6 bits in 12 bytes; [out, records, 8] each."""
    first = [x[..., :4] | (x[..., 4:] >> 4) << 6 for x in (scale, minimum)]
    return np.concatenate([*first, (scale[..., 4:] & 15) | (minimum[..., 4:] & 15) << 4], axis=-1)


def _unpack_six(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scale, minimum, low = packed[..., :4], packed[..., 4:8], packed[..., 8:]
    return (
        np.concatenate([scale & 63, (low & 15) | (scale >> 6) << 4], axis=-1),
        np.concatenate([minimum & 63, (low >> 4) | (minimum >> 6) << 4], axis=-1),
    )
