"""Which 16-bit format a device trains in, and why: the rule behind format="auto".

Where both formats are fast, bfloat16: it has float32's range, so nothing underflows that would not in float32. float16 only where
CUDA's matrix units have it and not bfloat16. A device that has neither stays in float32: emulated 16 bits are slower, not faster.

Sources: NVIDIA CUDA C++ Programming Guide, compute capabilities (matrix units multiply float16 from 7.0 on, bfloat16 from 8.0
on); torch.cpu.get_capabilities for the names of the CPU's instruction sets.
"""

from dataclasses import dataclass

from fewbit.errors import FewbitError, MissingExtra
from fewbit.numerics.formats import FLOATS, FloatFormat

try:
    import torch
except ImportError:
    raise MissingExtra("torch", "torch") from None

DEVICES = ("cpu", "cuda")
FORMATS = ("float16", "bfloat16", "float32")
CPU_BFLOAT16 = ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16")  # as torch.cpu.get_capabilities names them
CUDA_FLOAT16, CUDA_BFLOAT16 = (7, 0), (8, 0)


@dataclass(frozen=True)
class Precision:
    """A format, and why it was taken."""

    format: FloatFormat
    reason: str


def on_cuda(capability: tuple[int, int]) -> Precision:
    """The format for a GPU of this compute capability."""
    name = f"compute capability {capability[0]}.{capability[1]}"
    if capability >= CUDA_BFLOAT16:
        return Precision(FLOATS["bfloat16"], f"{name} multiplies bfloat16 as fast as float16, and bfloat16 has float32's range")
    if capability >= CUDA_FLOAT16:
        return Precision(FLOATS["float16"], f"{name} has matrix units for float16 and none for bfloat16")
    return Precision(FLOATS["float32"], f"{name} has no matrix units for 16-bit floats, which would be slower")


def on_cpu(capabilities: dict[str, object]) -> Precision:
    """The format for a CPU of these capabilities. Never float16, slower than float32 in torch on most."""
    found = [k for k in CPU_BFLOAT16 if capabilities.get(k)]
    if found:
        return Precision(FLOATS["bfloat16"], f"this CPU has bfloat16 instructions ({', '.join(found)})")
    return Precision(FLOATS["float32"], "no bfloat16 instructions are known of this CPU, and emulated 16 bits would be slower")


def choose(name: str, device: torch.device) -> Precision:
    """The format of that name, or for "auto" the one that suits device. FewbitError for other names and devices."""
    if device.type not in DEVICES:
        raise FewbitError(f"mixed precision runs on {' and '.join(DEVICES)}; the model is on {device.type}")
    if name in FORMATS:
        return Precision(FLOATS[name], "asked for")
    if name != "auto":
        raise FewbitError(f"format {name} is no format to train in; choose one of {', '.join(FORMATS)}, auto")
    if device.type == "cuda":
        return on_cuda(torch.cuda.get_device_capability(device))
    query = getattr(torch.cpu, "get_capabilities", None)  # torch older than it says nothing of bfloat16
    return on_cpu(dict(query()) if query else {})
