"""What 8-bit activations would cost, by float arithmetic on rounded numbers: no faster, the same error.

Each token's input of each Linear in a block to int8 by its own largest magnitude (dynamic, per token, as SmoothQuant's O1,
Xiao et al. 2023).
"""

import torch
from torch import nn

from fewbit.llm.kv_cache import held

KINDS = ("", "int8")


def rounded(x: torch.Tensor) -> torch.Tensor:
    """The nearest of 255 levels along the last axis, symmetric; the scale is one that float16 holds."""
    scale = held(x.abs().amax(-1, keepdim=True).float() / 127).float()
    return (torch.clamp(torch.round(x / scale), -127, 127) * scale).to(x.dtype)


def activations(model: nn.Module) -> None:
    """Round the input of every Linear but the head from now on."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    for module in model.modules():
        if isinstance(module, nn.Linear) and module is not head:
            module.register_forward_pre_hook(lambda module, inputs: (rounded(inputs[0]), *inputs[1:]))
