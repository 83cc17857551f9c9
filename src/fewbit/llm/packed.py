"""A quantized language model on disk: the tensors of one layer's weight, and the entry in config.json that describes them.

    weight[o, k] = scale[o, g] * (u[o, k] - zero_point[o, g]),   g = k // group_size

u are the codes moved to start at zero (code - quant_min of the integer format: offset binary), zero_point lies in the same
offset, and is 2^(bits - 1) throughout where the weight is symmetric. A folder holds a layer NAME as NAME.codes,
NAME.scale and, unless symmetric, NAME.zero_point, beside what Hugging Face keeps in it; NAME.weight is absent. A layer in one of
llama.cpp's types is kept as NAME.blocks, uint8 [out, bytes of a row], the bytes that a GGUF file holds (numerics/ggml).
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from fewbit.errors import FewbitError
from fewbit.llm.options import WEIGHTS
from fewbit.numerics import ggml, packing
from fewbit.numerics.formats import INTEGERS

METHOD, VERSION = "fewbit", 1  # of config.json's quantization_config
CHUNK = 1 << 20  # codes unpacked at a time: unpacking takes about 20 bytes a code


@dataclass(frozen=True)
class PackedWeight:
    """codes uint8 [out, ceil(in * bits / 8)], each row packed low bits first; scale float16, zero_point uint8 [out, groups].

    zero_point None: symmetric. shape: (out, in), in = groups * group_size.
    """

    codes: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray | None
    bits: int
    group_size: int
    shape: tuple[int, int]

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scale.nbytes + (0 if self.zero_point is None else self.zero_point.nbytes)


def stored_scale(scale: np.ndarray) -> np.ndarray:
    """The float16 that is stored for a scale, as float32: choose codes against this one. Never zero, never infinite."""
    tiny, largest = np.finfo(np.float16).smallest_subnormal, np.finfo(np.float16).max
    return np.clip(np.asarray(scale, np.float32), np.float32(tiny), np.float32(largest)).astype(np.float16).astype(np.float32)


def pack(codes: np.ndarray, scale: np.ndarray, zero_point: np.ndarray | None, bits: int, group_size: int) -> PackedWeight:
    """codes: any integers 0..2^bits-1 [out, in]; scale [out, groups], already what float16 holds (stored_scale);
    zero_point: integers 0..2^bits-1 [out, groups], or None where it is 2^(bits - 1) everywhere."""
    out, width = codes.shape
    _check_kind(bits, group_size, "pack")
    if width % group_size:
        raise FewbitError(f"pack: {width} columns are not whole groups of {group_size}; choose a group_size that divides them")
    for what, found in (("codes", codes), ("zero_point", zero_point)):
        if found is not None and found.size and not 0 <= int(found.min()) <= int(found.max()) < 1 << bits:
            raise FewbitError(f"pack: {what} from {found.min()} to {found.max()}; {bits} bits hold 0 to {(1 << bits) - 1}")
    half = np.asarray(scale).astype(np.float16)
    if not np.array_equal(half, scale) or not np.isfinite(half).all():
        raise FewbitError("pack: a scale is not what float16 holds; take stored_scale before choosing codes")
    groups = (out, width // group_size)
    for what, shape in (("scale", half.shape), ("zero_point", groups if zero_point is None else zero_point.shape)):
        if shape != groups:
            raise FewbitError(f"pack: {what} is {list(shape)}; [out, groups] is {list(groups)}")
    zero = None if zero_point is None else np.ascontiguousarray(zero_point).astype(np.uint8)
    return PackedWeight(_pack_rows(codes, bits), half, zero, bits, group_size, (out, width))


def unpack(weight: PackedWeight) -> np.ndarray:
    """uint8 codes u [out, in]."""
    out, width = weight.shape
    if weight.bits == 8:
        return weight.codes.copy()
    codes = np.empty((out, width), np.uint8)
    padded = -(-width // 8) * 8  # so that every row ends on a byte
    step = max(1, CHUNK // max(padded, 1))
    for first in range(0, out, step):
        rows = weight.codes[first : first + step]
        whole = np.pad(rows, ((0, 0), (0, padded * weight.bits // 8 - rows.shape[1])))
        codes[first : first + step] = packing.unpack(whole, weight.bits, (len(rows), padded), signed=False)[:, :width]
    return codes


def _pack_rows(codes: np.ndarray, bits: int) -> np.ndarray:
    out, width = codes.shape
    if bits == 8:
        return np.ascontiguousarray(codes).astype(np.uint8)
    packed = np.empty((out, -(-width * bits // 8)), np.uint8)
    padded = -(-width // 8) * 8
    step = max(1, CHUNK // max(padded, 1))
    for first in range(0, out, step):
        rows = np.pad(codes[first : first + step], ((0, 0), (0, padded - width)))
        packed[first : first + step] = packing.pack(rows, bits).reshape(len(rows), -1)[:, : packed.shape[1]]
    return packed


def zero_points(weight: PackedWeight) -> np.ndarray:
    """uint8 [out, groups], the symmetric ones too."""
    if weight.zero_point is not None:
        return weight.zero_point
    return np.full(weight.scale.shape, 1 << (weight.bits - 1), np.uint8)


def dequantize(weight: PackedWeight) -> np.ndarray:
    """float32 [out, in]: exact integers times the scale, rounded once."""
    out, width = weight.shape
    codes = unpack(weight).reshape(out, -1, weight.group_size).astype(np.int16)
    steps = (codes - zero_points(weight)[:, :, None].astype(np.int16)).astype(np.float32)
    return (steps * weight.scale.astype(np.float32)[:, :, None]).reshape(out, width)


@dataclass(frozen=True)
class Layer:
    """How one layer's weight is kept: weights is one of WEIGHTS, or a type of llama.cpp."""

    weights: str
    group_size: int
    symmetric: bool

    @property
    def bits(self) -> int:
        return ggml.TYPES[self.weights].bits if self.weights in ggml.TYPES else INTEGERS[self.weights].bits


def layer(weights: str, group_size: int, symmetric: bool) -> Layer:
    """A type of llama.cpp has groups of its own."""
    if weights in ggml.TYPES:
        return Layer(weights, ggml.TYPES[weights].group, ggml.TYPES[weights].zero is not None)
    return Layer(weights, group_size, symmetric)


@dataclass(frozen=True)
class Recipe:
    """The quantization_config of config.json: what all layers share, and by name those that differ; skipped: kept in float."""

    default: Layer
    method: str = ""
    layers: Mapping[str, Layer] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()

    def of(self, name: str) -> Layer:
        return self.layers.get(name, self.default)


def to_config(recipe: Recipe) -> dict[str, Any]:
    """The value of config.json's "quantization_config"."""
    differing = {name: asdict(layer) for name, layer in recipe.layers.items() if layer != recipe.default}
    head = {"quant_method": METHOD, "version": VERSION, **asdict(recipe.default), "method": recipe.method}
    return head | {"layers": differing, "skipped": list(recipe.skipped)}


def from_config(config: Any, where: str) -> Recipe:
    """to_config's inverse; `where` is named in errors (the path of config.json)."""
    if not isinstance(config, dict) or config.get("quant_method") != METHOD:
        found = config.get("quant_method") if isinstance(config, dict) else None
        said = f"its quantization_config says quant_method {str(found)[:40]!r}" if config else "it has no quantization_config"
        raise FewbitError(f"{where}: {said}; give a folder that `fewbit llm quantize` wrote")
    if config.get("version") != VERSION:
        raise FewbitError(f"{where}: version {str(config.get('version'))[:40]} of the format; this fewbit reads {VERSION}")
    layers, skipped = config.get("layers", {}), config.get("skipped", [])
    if not isinstance(layers, dict) or not isinstance(skipped, list):
        raise FewbitError(f"{where}: layers must be an object and skipped a list; quantize again")
    found = {str(name): _layer(entry, f"{where}: layer {name}") for name, entry in layers.items()}
    return Recipe(_layer(config, where), str(config.get("method", "")), found, tuple(map(str, skipped)))


def _layer(entry: Any, where: str) -> Layer:
    entry = entry if isinstance(entry, dict) else {}
    weights, size, symmetric = entry.get("weights"), entry.get("group_size"), entry.get("symmetric")
    if not isinstance(weights, str) or weights not in (*WEIGHTS, *ggml.TYPES):
        raise FewbitError(f"{where}: weights are {str(weights)[:40]!r}; known are {', '.join((*WEIGHTS, *ggml.TYPES))}")
    if type(size) is not int or size < 1 or type(symmetric) is not bool:
        raise FewbitError(f"{where}: group_size {str(size)[:40]}, symmetric {str(symmetric)[:40]}; wanted are a size and a bool")
    return Layer(weights, size, symmetric)


def tensors(name: str, weight: PackedWeight) -> dict[str, np.ndarray]:
    """What a safetensors file holds of the layer `name`."""
    held = {f"{name}.codes": weight.codes, f"{name}.scale": weight.scale}
    return held if weight.zero_point is None else held | {f"{name}.zero_point": weight.zero_point}


def read(name: str, tensor: Callable[[str], np.ndarray | None], layer: Layer, where: str) -> PackedWeight:
    """tensors' inverse. tensor(key): the file's array, or None where it has none; `where` is named in errors."""
    _check_kind(layer.bits, layer.group_size, f"{where}: {name}")
    keys = ["codes", "scale"] + ([] if layer.symmetric else ["zero_point"])
    found = {}
    for key in keys:
        array = tensor(f"{name}.{key}")
        if array is None:
            raise FewbitError(f"{where}: tensor {name}.{key} is missing; quantize again")
        wanted = np.float16 if key == "scale" else np.uint8
        if array.dtype != wanted or array.ndim != 2:
            raise FewbitError(
                f"{where}: {name}.{key} is {array.dtype} {list(array.shape)}; a matrix of {np.dtype(wanted)} is expected"
            )
        found[key] = array
    out, groups = found["scale"].shape
    width = groups * layer.group_size
    for key, shape in (("codes", (out, -(-width * layer.bits // 8))), ("zero_point", (out, groups))):
        if key in found and found[key].shape != shape:
            raise FewbitError(
                f"{where}: {name}.{key} is {list(found[key].shape)}; {layer.weights} in groups of {layer.group_size} "
                f"with scales {[out, groups]} need {list(shape)}"
            )
    weight = PackedWeight(found["codes"], found["scale"], found.get("zero_point"), layer.bits, layer.group_size, (out, width))
    _check_values(weight, f"{where}: {name}")
    return weight


def read_blocks(name: str, data: np.ndarray, layer: Layer, where: str) -> ggml.Parts:
    """NAME.blocks, of one of llama.cpp's types."""
    if layer.weights not in ggml.TYPES:
        raise FewbitError(f"{where}: {name}.blocks, but config.json says that {name} is {layer.weights}; quantize again")
    kind = ggml.TYPES[layer.weights]
    if data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] % kind.record.itemsize:
        raise FewbitError(f"{where}: {name}.blocks is {data.dtype} {list(data.shape)}, no rows of {kind.name}; quantize again")
    parts = ggml.unpack(data, data.shape[1] // kind.record.itemsize * kind.block, kind)
    if not (np.isfinite(parts.scale).all() and np.isfinite(parts.minimum).all()):
        raise FewbitError(f"{where}: {name}.blocks holds a scale that is not finite; quantize again")
    return parts


def _check_values(weight: PackedWeight, where: str) -> None:
    bad = ~np.isfinite(weight.scale)
    if bad.any():
        row, group = (int(k) for k in np.argwhere(bad)[0])
        raise FewbitError(f"{where}.scale: element ({row}, {group}) is {weight.scale[row, group]}; quantize again")
    if weight.zero_point is not None and int(weight.zero_point.max(initial=0)) >= 1 << weight.bits:
        raise FewbitError(f"{where}.zero_point: {weight.zero_point.max()} does not fit {weight.bits} bits; quantize again")


def _check_kind(bits: int, group_size: int, where: str) -> None:
    if f"int{bits}" not in WEIGHTS or group_size < 1:
        raise FewbitError(f"{where}: {bits} bits in groups of {group_size}; bits are 8, 4, 3, 2")
