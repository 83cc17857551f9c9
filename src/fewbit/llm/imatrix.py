"""llama.cpp's importance matrices: the mean square of every column's input, by weight: measured, written, read.

llama.cpp's `imatrix` tool has written GGUF since 2025, and a plain binary file before; both are read.
"""

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fewbit import gguf_file
from fewbit.errors import FewbitError
from fewbit.gguf_file import Tensor

MOST = 1 << 22  # columns of a weight, and weights


@dataclass(frozen=True)
class Importance:
    """squares: GGUF name of a weight -> float32 [in], the mean of the input's squares; digest: of the file."""

    squares: dict[str, np.ndarray]
    digest: str = ""


def measure(
    folder: Path, text: Path, samples: int, length: int, progress: Callable[[str, int, int], None] | None = None
) -> tuple[dict[str, np.ndarray], int]:
    """(squares by GGUF name, tokens) of a float checkpoint, block by block."""
    import torch

    from fewbit.llm import blocks, calibration, entry, gguf, source

    structure = blocks.read(source.open_source(folder))
    ids = calibration.samples(calibration.tokens(folder, text), samples, length, str(text), calibration.beginning(folder))
    blocks.check_ids(structure.model, ids, str(folder))
    states, calls = entry.entry(structure, [ids[k : k + 1] for k in range(len(ids))])
    found: dict[str, np.ndarray] = {}
    counts: dict[str, int] = {}

    def note(name: str, x: Any) -> None:
        key, rows = gguf.name_of(prefix + name, str(folder)) + ".weight", x.reshape(-1, x.shape[-1])
        found[key] = found.get(key, 0) + (rows.double() ** 2).sum(0).numpy()
        counts[key] = counts.get(key, 0) + len(rows)

    for k, block in enumerate(structure.blocks):
        prefix = f"{structure.prefix}{k}."
        blocks.fill(structure, block, prefix)
        with blocks.inputs_watched(block, note), torch.inference_mode():
            states = [blocks.run(block, x, calls[k]) for x in states]
        blocks.empty(block)
        if progress:
            progress("blocks", k + 1, len(structure.blocks))
    return {n: (v / counts[n]).astype(np.float32) for n, v in found.items()}, ids.numel()


def write(path: Path, squares: dict[str, np.ndarray], tokens: int, text: str, length: int) -> int:
    """As llama.cpp's tool writes it: sums, and the count of tokens, of each weight."""
    metadata = {"general.type": "imatrix", "imatrix.datasets": [text], "imatrix.chunk_count": tokens // length,
                "imatrix.chunk_size": length}  # fmt: skip
    tensors = []
    for name, mean in sorted(squares.items()):
        tensors.append(Tensor.of(f"{name}.in_sum2", (mean.astype(np.float64) * tokens)[None]))
        tensors.append(Tensor.of(f"{name}.counts", np.full((1, 1), tokens)))
    return gguf_file.write(path, metadata, tensors)


def read(path: Path) -> Importance:
    """Either form; every length in it is checked."""
    if not path.is_file():
        raise FewbitError(f"{path}: no such file; write one with: fewbit llm imatrix MODEL_DIR --calibration TEXT -o {path}")
    with path.open("rb") as f:
        magic = f.read(4)
    found = _read_gguf(path) if magic == gguf_file.MAGIC else _read_plain(path)
    for name, mean in found.items():
        if not (np.isfinite(mean).all() and (mean >= 0).all()):
            raise FewbitError(f"{path}: the squares of {name[:80]} are not all finite and positive; measure them again")
    return Importance(found, hashlib.sha256(path.read_bytes()).hexdigest())


def _read_gguf(path: Path) -> dict[str, np.ndarray]:
    metadata, entries = gguf_file.read(path)
    names = [n.removesuffix(".in_sum2") for n in entries if n.endswith(".in_sum2")]
    if metadata.get("general.type") != "imatrix" or not names:
        raise FewbitError(f"{path}: a GGUF file, but no importance matrix; give one that llama.cpp's imatrix or fewbit wrote")
    found = {}
    for name in names:
        sums, counts = entries[f"{name}.in_sum2"], entries.get(f"{name}.counts")
        if (
            counts is None
            or sums.number
            or counts.number
            or len(sums.shape) > 2
            or counts.nbytes != 4 * (sums.nbytes // 4 // sums.shape[-1])
        ):
            raise FewbitError(f"{path}: {name[:80]} has not one count for each row of its sums; measure them again")
        if counts.nbytes == 4:  # several counts: a mixture of experts, which is not quantized here
            count = float(gguf_file.load(path, counts).reshape(-1)[0])
            found[name] = gguf_file.load(path, sums).reshape(-1) / np.float32(max(count, 1.0))
    return found


def _read_plain(path: Path) -> dict[str, np.ndarray]:
    data, at = path.read_bytes(), 0

    def take(n: int) -> bytes:
        nonlocal at
        if not 0 <= n <= len(data) - at:
            raise FewbitError(f"{path}: neither a GGUF file nor an importance matrix of before, or truncated; measure it again")
        at += n
        return data[at - n : at]

    def number() -> int:
        return struct.unpack("<i", take(4))[0]

    found: dict[str, np.ndarray] = {}
    count = number()
    for _ in range(count if 0 < count <= MOST else take(-1)[0]):
        name = take(number()).decode(errors="replace")
        calls, columns = number(), number()
        found[name] = np.frombuffer(take(4 * columns), "<f4") / np.float32(max(calls, 1))
    return found
