"""What was written for other programs, read back before it takes its name: some layers' numbers beside those they were made from.

The layouts are undone here by their published arithmetic, not by what wrote them.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from fewbit.errors import FewbitError
from fewbit.llm.packed import Layer
from fewbit.llm.tensors import Tensors

FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
NIBBLES = np.arange(0, 32, 4, dtype=np.uint32)
AWQ = (0, 2, 4, 6, 1, 3, 5, 7)  # which of eight outputs lies in each nibble
ROUNDED = 1.5  # steps that rounding to nearest may move a weight by: its own half, its zero point's, the dtype's

Read = Callable[[str, Tensors, Layer], np.ndarray]  # name, the new files, how the layer is kept -> float32 [out, in]


def some(names: Iterable[str]) -> list[str]:
    """The first three and the last three, where a mistake in names, order or shape would show as in any other."""
    found = list(names)
    return list(dict.fromkeys(found[:3] + found[-3:]))


def compare(name: str, found: np.ndarray, wanted: np.ndarray, step: np.ndarray | float, out: Path) -> None:
    """Refuse what was written unless found lies within step of wanted, element by element (0: bit for bit).

    Raises:
        FewbitError: It does not: a defect of fewbit, or of the disk.
    """
    fits = found.shape == wanted.shape and bool((np.abs(found - wanted) <= step).all())
    if not fits:
        raise FewbitError(f"{out}: {name}, read back, is not what was written; nothing is kept. Report this, or try another disk")


def _held(held: Tensors, name: str) -> np.ndarray:
    array = held(name)
    if array is None:
        raise FewbitError(f"{held.folder}: {name} was not written; report this")
    return array


def _stream(words: np.ndarray, bits: int, width: int) -> np.ndarray:
    """int32 [rows, n] as little-endian streams of codes -> float32 [rows, width], unsigned."""
    octets = np.ascontiguousarray(words).view(np.uint8)
    flat = np.unpackbits(octets, axis=1, bitorder="little")[:, : width * bits].reshape(len(words), width, bits)
    return flat.astype(np.float32) @ (2.0 ** np.arange(bits)).astype(np.float32)


def _scaled(codes: np.ndarray, zero: np.ndarray | float, scale: np.ndarray) -> np.ndarray:
    """codes [out, in]; zero and scale [out, groups]."""
    groups = codes.reshape(len(codes), scale.shape[1], -1)
    moved = groups - (zero[..., None] if isinstance(zero, np.ndarray) else zero)
    return (moved * scale.astype(np.float32)[..., None]).reshape(codes.shape)


def compressed(name: str, held: Tensors, layer: Layer) -> np.ndarray:
    """Of compressed-tensors' pack-quantized."""
    rows, columns = (int(n) for n in _held(held, f"{name}.weight_shape"))
    scale = _held(held, f"{name}.weight_scale")
    zero: np.ndarray | float = float(1 << (layer.bits - 1))
    if not layer.symmetric:
        zero = _stream(_held(held, f"{name}.weight_zero_point").T, layer.bits, rows).T
    return _scaled(_stream(_held(held, f"{name}.weight_packed"), layer.bits, columns), zero, scale)


def gptq(name: str, held: Tensors, layer: Layer) -> np.ndarray:
    """Codes down the columns, zero points along the rows; the older form stores them less one."""
    scale, group = _held(held, f"{name}.scales"), _held(held, f"{name}.g_idx")
    codes = _stream(_held(held, f"{name}.qweight").T, layer.bits, len(group))
    zero = _stream(_held(held, f"{name}.qzeros"), layer.bits, scale.shape[1]) + layer.symmetric
    return (codes - zero.T[:, group]) * scale.astype(np.float32).T[:, group]


def awq(name: str, held: Tensors, layer: Layer) -> np.ndarray:
    """Eight outputs in a word, in AWQ's order."""

    def unpacked(key: str) -> np.ndarray:
        words = _held(held, f"{name}.{key}").view(np.uint32)
        return ((words[..., None] >> NIBBLES & 15)[..., np.argsort(AWQ)]).reshape(len(words), -1).astype(np.float32).T

    return _scaled(unpacked("qweight"), unpacked("qzeros"), _held(held, f"{name}.scales").T)


def rounded(name: str, held: Tensors, layer: Layer | None, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """(numbers, the most that each may be away from the float weight) of a checkpoint rounded to this kind."""
    scale = _held(held, f"{name}.weight_scale").astype(np.float32)
    if layer is not None:
        found = compressed(name, held, layer)
        return found, ROUNDED * np.repeat(scale, found.shape[1] // scale.shape[1], axis=1)
    if kind in ("nvfp4", "mxfp4"):
        octets = _held(held, f"{name}.weight_packed")
        codes = FP4[np.stack([octets & 15, octets >> 4], axis=-1).reshape(len(octets), -1)]
        whole = float(_held(held, f"{name}.weight_global_scale")[0]) if kind == "nvfp4" else 1.0
        scale = scale / np.float32(whole) if kind == "nvfp4" else np.exp2(scale - 127)
        return _scaled(codes, 0.0, scale), ROUNDED * np.repeat(scale, codes.shape[1] // scale.shape[1], axis=1)
    codes = _held(held, f"{name}.weight").astype(np.float32)
    if kind == "fp8-block":
        scale = np.repeat(np.repeat(scale, 128, axis=0), 128, axis=1)[: codes.shape[0], : codes.shape[1]]
    found = codes * scale
    return found, ROUNDED * scale if kind == "w8a8" else np.abs(found) / 8 + scale / 256
