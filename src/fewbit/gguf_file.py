"""GGUF files (llama.cpp's container, versions 2 and 3): written whole, and read with every count, length and offset checked.

A file is a header (metadata: keys with typed values; tensors: name, shape, type, offset) and, aligned, the tensors' bytes.
Shapes are stored with the row's length first: a matrix [out, in] as (in, out).
"""

import math
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fewbit.errors import FewbitError
from fewbit.files import said_in_one_line
from fewbit.numerics import ggml

MAGIC, VERSION, ALIGNMENT = b"GGUF", 3, 32
NUMBERS = {0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 10: "<u8", 11: "<i8", 12: "<f8"}
BOOL, STRING, ARRAY = 7, 8, 9
FLOATS: dict[int, np.dtype[Any]] = {0: np.dtype("<f4"), 1: np.dtype("<f2")}  # of ggml's types: F32, F16
SIZES = {t.number: (t.block, t.record.itemsize) for t in ggml.TYPES.values()} | {n: (1, d.itemsize) for n, d in FLOATS.items()}
SIZES |= {6: (32, 22), 7: (32, 24), 10: (256, 84), 11: (256, 110), 24: (1, 1), 25: (1, 2), 26: (1, 4), 28: (1, 8), 30: (1, 2)}
LONGEST_NAME = 63  # llama.cpp's own limit


@dataclass(frozen=True)
class Tensor:
    """One to be written; data() gives shape [out, in] of float32 or float16, or uint8 rows of ggml's type `number`."""

    name: str
    shape: tuple[int, ...]
    number: int
    data: Callable[[], np.ndarray]

    @classmethod
    def of(cls, name: str, array: np.ndarray) -> "Tensor":
        """In float32."""
        return cls(name, array.shape, 0, lambda: array.astype(np.float32))

    @property
    def nbytes(self) -> int:
        return _nbytes(self.shape, self.number)


@dataclass(frozen=True)
class Entry:
    """One that a file holds: shape [out, in], ggml's type number, where its bytes begin, and how many they are."""

    shape: tuple[int, ...]
    number: int
    start: int
    nbytes: int


def _nbytes(shape: tuple[int, ...], number: int) -> int:
    block, size = SIZES[number]
    return math.prod(shape) // block * size


def write(
    path: Path, metadata: dict[str, Any], tensors: list[Tensor], check: Callable[[Path], object] = lambda part: None
) -> int:
    """Bytes written; check(the file before it takes its name) may refuse it.

    Values: str, bool, int (uint32), float (float32), lists of str or of int (int32)."""
    if not path.parent.is_dir():
        raise FewbitError(f"{path}: the folder {path.parent} does not exist")
    part = path.with_name(f".{path.name}.part")
    try:
        with said_in_one_line(path), part.open("wb") as f:
            f.write(MAGIC + struct.pack("<IQQ", VERSION, len(tensors), len(metadata)))
            for key, value in metadata.items():
                f.write(_text(key) + _value(value))
            offset = 0
            for t in tensors:
                f.write(_text(t.name) + struct.pack(f"<I{len(t.shape)}Q", len(t.shape), *reversed(t.shape)))
                f.write(struct.pack("<IQ", t.number, offset))
                offset += -(-t.nbytes // ALIGNMENT) * ALIGNMENT
            for t in tensors:
                f.write(b"\0" * (-f.tell() % ALIGNMENT))
                data = np.ascontiguousarray(t.data())
                if data.nbytes != t.nbytes:
                    raise RuntimeError(f"{t.name}: {data.nbytes} bytes, {t.nbytes} were said")
                f.write(data.data)
            f.write(b"\0" * (-f.tell() % ALIGNMENT))
            size = f.tell()
        check(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return size


def _text(s: str) -> bytes:
    data = s.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: Any) -> bytes:
    """With its type before it."""
    if isinstance(value, list):
        whole = bool(value) and isinstance(value[0], int)
        items = [struct.pack("<i", v) if whole else _text(v) for v in value]
        return struct.pack("<IIQ", ARRAY, 5 if whole else STRING, len(value)) + b"".join(items)
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _text(value)
    if isinstance(value, bool):
        return struct.pack("<I?", BOOL, value)
    return struct.pack("<II", 4, value) if isinstance(value, int) else struct.pack("<If", 6, value)


class _Reader:
    """Reads no further than the file goes, whatever its lengths say."""

    def __init__(self, f: BinaryIO, path: Path):
        self.f, self.path, self.size = f, path, path.stat().st_size

    def fail(self, what: str) -> FewbitError:
        return FewbitError(f"{self.path}: {what}; the file is damaged or not a GGUF file: download or write it again")

    def take(self, n: int) -> bytes:
        if n > self.size - self.f.tell():
            raise self.fail(f"{n} bytes are announced at {self.f.tell()}, {self.size - self.f.tell()} follow")
        return self.f.read(n)

    def number(self, code: str) -> Any:
        return np.frombuffer(self.take(np.dtype(code).itemsize), code)[0].item()

    def text(self) -> str:
        try:
            return self.take(self.number("<u8")).decode()
        except UnicodeDecodeError:
            raise self.fail("a string is not UTF-8") from None

    def value(self, kind: int) -> Any:
        if kind in NUMBERS:
            return self.number(NUMBERS[kind])
        if kind == BOOL:
            return bool(self.number("<u1"))
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            raise self.fail(f"a value of the unknown type {kind}")
        inner, count = self.number("<u4"), self.number("<u8")
        if inner in NUMBERS:
            code = np.dtype(NUMBERS[inner])
            return np.frombuffer(self.take(count * code.itemsize), code).tolist()
        if inner not in (BOOL, STRING) or count > self.size - self.f.tell():
            raise self.fail(f"an array of {count} values of type {inner}")
        return [self.value(inner) for _ in range(count)]


def read(path: str | Path) -> tuple[dict[str, Any], dict[str, Entry]]:
    """(metadata, name -> entry); no tensor is read."""
    path = Path(path)
    with path.open("rb") as f:
        r = _Reader(f, path)
        if r.size < 24 or r.take(4) != MAGIC:
            raise r.fail("it does not begin as a GGUF file does")
        version, count, keys = r.number("<u4"), r.number("<u8"), r.number("<u8")
        if version not in (2, 3):
            raise r.fail(f"version {version}; 2 and 3 are read")
        if keys > r.size // 13 or count > r.size // 33:  # the least that one of them takes
            raise r.fail(f"{keys} keys and {count} tensors are announced")
        metadata: dict[str, Any] = {}
        for _ in range(keys):
            key = r.text()
            if key in metadata:
                raise r.fail(f"the key {key[:80]!r} occurs twice")
            metadata[key] = r.value(r.number("<u4"))
        alignment = metadata.get("general.alignment", ALIGNMENT)
        if type(alignment) is not int or alignment < 8 or alignment & (alignment - 1) or alignment > 1 << 20:
            raise r.fail(f"an alignment of {str(alignment)[:40]}")
        found: dict[str, Entry] = {}
        for _ in range(count):
            name, entry = _entry(r)
            if name in found:
                raise r.fail(f"the tensor {name!r} occurs twice")
            found[name] = entry
        start = -(-f.tell() // alignment) * alignment
    return metadata, _placed(r, found, start, alignment)


def _entry(r: _Reader) -> tuple[str, Entry]:
    name, dimensions = r.text(), r.number("<u4")
    if not name or len(name.encode()) > LONGEST_NAME or not name.isprintable() or any(c in name for c in "/\\"):
        raise r.fail(f"a tensor is named {name[:80]!r}")
    if not 1 <= dimensions <= 4:
        raise r.fail(f"the tensor {name} has {dimensions} dimensions")
    shape = tuple(r.number("<u8") for _ in range(dimensions))[::-1]
    number, offset = r.number("<u4"), r.number("<u8")
    if number not in SIZES:
        raise r.fail(f"the tensor {name} has the unknown type {number}")
    if 0 in shape:
        raise r.fail(f"the tensor {name} is empty, {list(shape)}")
    if shape[-1] % SIZES[number][0]:
        raise r.fail(f"the tensor {name} has rows of {shape[-1]}, its type keeps {SIZES[number][0]} together")
    return name, Entry(shape, number, offset, _nbytes(shape, number))


def _placed(r: _Reader, entries: dict[str, Entry], start: int, alignment: int) -> dict[str, Entry]:
    """With offsets from the file's begin: inside the file, aligned, none over another."""
    end = 0
    for name, e in sorted(entries.items(), key=lambda item: item[1].start):
        if e.start % alignment or e.start < end or start + e.start + e.nbytes > r.size:
            raise r.fail(
                f"the tensor {name} ({list(e.shape)}, {e.nbytes} bytes at {e.start}) lies outside the file or on another one"
            )
        end = e.start + e.nbytes
    return {name: Entry(e.shape, e.number, start + e.start, e.nbytes) for name, e in entries.items()}


def load(path: str | Path, entry: Entry) -> np.ndarray:
    """The array of a float tensor; of any other type its bytes, uint8 [rows, bytes of a row]."""
    data = np.fromfile(path, np.uint8, entry.nbytes, offset=entry.start)
    if entry.number in FLOATS:
        return data.view(FLOATS[entry.number]).reshape(entry.shape)
    return data.reshape(math.prod(entry.shape[:-1]), -1)
