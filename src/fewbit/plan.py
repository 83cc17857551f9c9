"""Bytes of a network in each format, and the roofline bound on its tokens or actions a second on a device.

A step reads every weight once, whatever the batch, and a language model reads the KV cache of each of its sequences; it computes
2 operations a weight and sequence. What takes longer is the bound: memory or arithmetic. Nothing here is measured.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path

from fewbit import checkpoint, sources
from fewbit.checkpoint import Shape
from fewbit.devices import Device
from fewbit.errors import FewbitError
from fewbit.graph.edit import const
from fewbit.graph.layers import layers

BITS = {"float32": 32, "float16": 16, "int8": 8, "int4": 4, "int3": 3, "int2": 2}
# What computes on such weights, best first: below 8 bits they are unpacked (float16 on a GPU, int8 on a microcontroller).
ARITHMETIC: dict[str, tuple[str, ...]] = {f: ("float16", "int8", "float32") for f in ("int4", "int3", "int2")}
ARITHMETIC |= {"float32": ("float32",), "float16": ("float16", "float32"), "int8": ("int8", "float16", "float32")}
KV_BITS = {"float16": 16, "int8": 8}
SMALL = 50e6  # a bare count below this is taken for a policy's


@dataclass(frozen=True)
class Model:
    """params: all weights; matrices: (outputs, inputs) of those that are quantized; lookup: weights that a step does not
    multiply (an untied embedding); shape: None for a policy; note: what was read, and what was assumed."""

    name: str
    params: int
    matrices: tuple[tuple[int, int], ...]
    lookup: int
    shape: Shape | None
    note: str
    vectors: int = 0

    @property
    def multiplied(self) -> int:
        """Multiply-adds of one token or action."""
        return self.params - self.vectors - self.lookup


@dataclass(frozen=True)
class Job:
    """How the model is run and stored: tokens of context, sequences at once, KV cache format, inputs that share a scale."""

    context: int = 4096
    batch: int = 1
    kv: str = "float16"
    group_size: int = 128

    def __post_init__(self) -> None:
        for option in ("context", "batch", "group_size"):
            if getattr(self, option) < 1:
                raise FewbitError(f"--{option.replace('_', '-')} {getattr(self, option)}: give a whole number of at least 1")
        if self.kv not in KV_BITS:
            raise FewbitError(f"--kv {self.kv} is not supported; choose one of {', '.join(KV_BITS)}")


@dataclass(frozen=True)
class Bytes:
    """scales: with zero points where there are any; activations: of one step of the whole batch."""

    weights: float
    scales: float
    kv: float
    activations: float

    @property
    def total(self) -> float:
        return self.weights + self.scales + self.kv + self.activations


@dataclass(frozen=True)
class Bound:
    """Tokens or actions a second, at most: `bound`, the smaller of both; None: nothing bounds it. limit: memory, on-chip
    (memory close to the arithmetic) or compute."""

    bound: float | None
    memory: float | None
    compute: float | None
    limit: str
    arithmetic: str | None
    in_cache: bool
    fits: bool


# Published configurations; a bare count borrows the widths of the nearest, and the output says which.
SHAPES = {
    "Qwen2.5-0.5B": (0.494e9, Shape(24, 2, 64, 896, 4864, 151936)),
    "TinyLlama-1.1B": (1.1e9, Shape(22, 4, 64, 2048, 5632, 32000)),
    "Llama-3.2-3B": (3.2e9, Shape(28, 8, 128, 3072, 8192, 128256)),
    "Mistral-7B": (7.2e9, Shape(32, 8, 128, 4096, 14336, 32000)),
    "Qwen2.5-32B": (32.8e9, Shape(64, 8, 128, 5120, 27648, 152064)),
    "Llama-3-70B": (70.6e9, Shape(80, 8, 128, 8192, 28672, 128256)),
}


def load(text: str, trust_torchscript: bool = False) -> Model:
    """text: "7B", "350M", "124e6"; or the path of an SB3 zip, an ONNX or TorchScript file or a folder with a config.json."""
    path = Path(text)
    try:
        is_folder, exists = path.is_dir(), path.exists()
    except OSError:  # too long for a path
        is_folder = exists = False
    if is_folder:
        return from_folder(path)
    return from_policy(path, trust_torchscript) if exists or path.suffix in (".zip", ".onnx") else from_count(text)


def from_count(text: str) -> Model:
    found = re.fullmatch(r"(\d+(?:\.\d+)?(?:e\d{1,3})?)([kmbt]?)", text.strip(), re.IGNORECASE)
    value = float(found[1]) * {"": 1, "k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}[found[2].lower()] if found else 0
    if not 1 <= value <= 1e15:
        raise FewbitError(f"{text}: neither a parameter count (7B, 350M, 124e6) nor a file or folder; give one of those")
    params = round(value)
    if params < SMALL:
        note = "taken for a policy, in layers of 256 inputs; a count of 50M or more is taken for a language model's"
        return Model(text, params, ((math.ceil(params / 256), 256),), 0, None, note)
    name, (_, shape) = min(SHAPES.items(), key=lambda s: abs(math.log(s[1][0] / params)))
    note = f"widths, layers and KV heads assumed to be those of {name}; give the model's folder to have its own"
    return Model(text, params, ((math.ceil(params / shape.hidden), shape.hidden),), 0, shape, note)


def from_policy(path: Path, trust_torchscript: bool = False) -> Model:
    """The dense layers of a policy; what they multiply is what an action costs."""
    matrices, vectors = [], 0
    for layer in layers(sources.load(path, trust_torchscript=trust_torchscript).model):
        value = layer.node.inputs[1]
        producer = value.producer() if value is not None else None  # an artifact's weights come from DequantizeLinear
        weight = const(producer.inputs[0] if producer is not None and producer.op_type == "DequantizeLinear" else value)
        if weight is None:
            raise FewbitError(f"{path}: the dense layer {layer.node.name} has no constant weights; give the float policy")
        if layer.node.op_type != "Gemm":
            continue  # plan weighs dense layers; a convolution's cost is its positions'
        transposed = layer.node.attributes.get_int("transB", 0)
        matrices.append((weight.shape[0], weight.shape[1]) if transposed else (weight.shape[1], weight.shape[0]))
        vectors += matrices[-1][0] if len(layer.node.inputs) > 2 else 0
    count = sum(o * i for o, i in matrices) + vectors
    return Model(str(path), count, tuple(matrices), 0, None, f"{len(matrices)} dense layers, read from the file", vectors)


def from_folder(folder: Path) -> Model:
    """A Hugging Face folder: weights counted in the safetensors headers if there are any, from config.json otherwise."""
    config = checkpoint.read_json(folder / "config.json", "a Hugging Face model's folder has one")
    try:
        matrices, vectors, lookup, shape, tied = checkpoint.from_config(config)
    except FewbitError as e:
        raise FewbitError(f"{folder / 'config.json'}: {e}") from None
    note = "counted from config.json"
    if files := checkpoint.shards(folder):
        tensors = {k: v for f in files for k, v in checkpoint.read_header(f).items()}
        if tied and any("embed_tokens" in k or "wte" in k for k in tensors):
            tensors.pop("lm_head.weight", None)  # some checkpoints store the tied matrix twice
        # GPT-2's ".c_" layers are kept as (inputs, outputs).
        matrices = [(s[1], s[0]) if ".c_" in k else (s[0], s[1]) for k, s in tensors.items() if len(s) == 2]
        vectors = sum(math.prod(s) for s in tensors.values() if len(s) != 2)
        note = f"counted in the headers of {len(files)} safetensors file{'s' * (len(files) > 1)}"
    params = sum(o * i for o, i in matrices) + vectors
    if params - vectors <= lookup:
        raise FewbitError(f"{folder}: its safetensors files hold no layers of the network that config.json describes")
    return Model(str(folder), params, tuple(matrices), lookup, shape, note, vectors)


def size(model: Model, fmt: str, job: Job) -> Bytes:
    """Matrices in fmt with their scales; biases and norms stay in float16 (float32 in a policy), and so do activations."""
    element, bits, s = 2 if model.shape else 4, BITS[fmt], model.shape
    if bits >= 16:
        weights, scales = model.params * bits / 8, 0.0
    else:
        weights = (model.params - model.vectors) * bits / 8 + model.vectors * element
        channels = sum(o for o, _ in model.matrices)
        groups = sum(o * math.ceil(i / job.group_size) for o, i in model.matrices)
        scales = channels * 4.0 if bits == 8 else groups * (2 + bits / 8)  # float32; float16 and a zero point of `bits`
    if s is None:
        widest = max(o + i for o, i in model.matrices)
        return Bytes(weights, scales, 0.0, float(job.batch * widest * element))
    head = s.head_dim * KV_BITS[job.kv] / 8 + (2 if job.kv == "int8" else 0)  # int8: a float16 scale a head and token
    kv = 2 * s.layers * s.kv_heads * head * job.context * job.batch
    return Bytes(weights, scales, kv, float(job.batch * (element * (4 * s.hidden + 2 * s.intermediate) + 4 * s.vocab)))


def roofline(model: Model, fmt: str, device: Device, job: Job) -> Bound:
    """bandwidth / bytes read and operations / (2 * weights), for the whole batch; the smaller is the bound."""
    bytes_ = size(model, fmt, job)
    used = 1 - model.lookup / model.params  # a lookup reads one row
    read = (bytes_.weights + bytes_.scales) * used + bytes_.kv
    in_cache = bytes_.weights + bytes_.scales + bytes_.kv <= device.cache
    bandwidth = device.cache_bandwidth if in_cache else device.bandwidth
    arithmetic = next((a for a in ARITHMETIC[fmt] if a in device.ops), None)
    memory = job.batch * bandwidth / read if bandwidth else None
    compute = device.ops[arithmetic] / (2 * model.multiplied) if arithmetic else None
    rates = [r for r in (memory, compute) if r is not None]
    limit = "none" if not rates else "compute" if compute == min(rates) else "on-chip" if in_cache else "memory"
    return Bound(min(rates, default=None), memory, compute, limit, arithmetic, in_cache, bytes_.total <= device.memory)
