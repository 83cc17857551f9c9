"""What 8-bit activations and an 8-bit KV cache would cost, by float arithmetic on rounded numbers: no faster, the same error.

Activations: each token's input of each Linear in a block to int8 by its own largest magnitude (dynamic, per token, as
SmoothQuant's O1, Xiao et al. 2023). Cache: each token's key and value of each head likewise, with a float16 scale.
"""

import inspect
from typing import Any

import torch
from torch import nn

KINDS = ("", "int8")


def rounded(x: torch.Tensor) -> torch.Tensor:
    """The nearest of 255 levels along the last axis, symmetric; the scale is one that float16 holds."""
    scale = (x.abs().amax(-1, keepdim=True).float() / 127).to(torch.float16).float()
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return (torch.clamp(torch.round(x / scale), -127, 127) * scale).to(x.dtype)


def activations(model: nn.Module) -> None:
    """Round the input of every Linear but the head from now on."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    for module in model.modules():
        if isinstance(module, nn.Linear) and module is not head:
            module.register_forward_pre_hook(lambda module, inputs: (rounded(inputs[0]), *inputs[1:]))


def cache(model: Any) -> dict[str, Any]:
    """Arguments of the model's forward: a fresh cache that gives back what int8 leaves of keys and values."""
    from transformers import DynamicCache

    class Rounded(DynamicCache):
        def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            return super().update(rounded(key_states), rounded(value_states), *args, **kwargs)

    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"  # its older name
    return {name: Rounded(config=model.config), "use_cache": True}
