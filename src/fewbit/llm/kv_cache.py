"""A key-value cache of int8 inside the unchanged transformers model: a quarter of float32's bytes, and a read that makes floats.

Every key and value vector of a head is 255 symmetric levels of its own largest magnitude. Its float16 scale lies in two more
int8 entries behind its codes, so that all that transformers does to a cache (append, slide, crop, reorder) needs no knowledge
of it. It saves memory, not time: attention itself computes in floats.
"""

import inspect
from typing import Any

import torch

KINDS = ("", "int8")
TOP = 127
SMALLEST, NORMAL, LARGEST = 2.0**-24, 2.0**-14, 65504.0  # of float16; below NORMAL it has fewer digits


def pack(x: torch.Tensor) -> torch.Tensor:
    """Float [..., n] -> int8 [..., n + 2]: codes, then the bytes of their float16 scale."""
    scale = held(x.abs().amax(-1, keepdim=True).float() / TOP)
    codes = torch.clamp(torch.round(x.float() / scale.float()), -TOP, TOP).to(torch.int8)
    return torch.cat([codes, scale.contiguous().view(torch.int8)], dim=-1)


def held(scale: torch.Tensor) -> torch.Tensor:
    """float16 for float32 scales: among the few below its normal numbers the next larger one, so that the codes still reach the
    largest value. Never zero, never infinite."""
    upward = torch.ceil(scale / SMALLEST).clamp(min=1) * SMALLEST
    return torch.where(scale < NORMAL, upward, scale.clamp(max=LARGEST)).to(torch.float16)


def unpack(packed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """int8 [..., n + 2] -> [..., n] of dtype."""
    scale = packed[..., -2:].contiguous().view(torch.float16).to(dtype)
    return packed[..., :-2].to(dtype) * scale


def arguments(model: Any) -> dict[str, Any]:
    """What the model's forward or generate is to be given for a fresh cache of this kind."""
    from transformers import DynamicCache

    found = DynamicCache(config=model.config)
    for layer in found.layers:
        layer.__class__ = _packing(type(layer))
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"  # its older name
    return {name: found, "use_cache": True}


def _packing(kind: type) -> Any:
    """The cache layer that keeps what `kind` would, packed."""

    class Packed(kind):  # type: ignore[misc,valid-type]
        _layer_type = None  # transformers is not to make it for others

        def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            keys, values = super().update(pack(key_states), pack(value_states), *args, **kwargs)
            return unpack(keys, key_states.dtype), unpack(values, value_states.dtype)

    return Packed
