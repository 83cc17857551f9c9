"""Column scales folded away: a Linear's columns are multiplied, what produces them divides, and the block computes the same.

Who produces a group's input is found by trying: the norm whose output it is, or an earlier Linear whose rows reach it one to
one (up before down) or one to several (a value head read by a group of query heads). A candidate counts only if the block's
output stays what it was under a scaling by powers of two.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fewbit.llm import blocks

SAME = 1e-4  # of the output's size: what float32 may differ by


@dataclass(frozen=True)
class Producer:
    """name: of the module; index [in]: the entry of its output that each column comes from; offset: of a norm that
    multiplies by weight + offset (Gemma's 1 + weight)."""

    name: str
    index: torch.Tensor
    offset: float = 0.0


def producers(
    block: nn.Module, groups: list[list[str]], states: torch.Tensor, call: blocks.Call, head_dim: int
) -> dict[int, Producer]:
    """Group index -> who produces its input; groups that nobody can scale exactly are absent."""
    with torch.inference_mode():
        wanted = blocks.run(block, states, call)
    found = {}
    for g, names in enumerate(groups):
        consumers = [block.get_submodule(n) for n in names]
        for candidate in _candidates(block, groups[:g], names, states, call, head_dim):
            if _unchanged(block, candidate, consumers, states, call, wanted):
                found[g] = candidate
                break
    return found


def apply(block: nn.Module, producer: Producer, consumers: list[Any], scale: torch.Tensor, dtype: torch.dtype) -> None:
    """Columns of the consumers times scale [in]; the producer divided. A norm's new weight is one that dtype holds, and the scale
    is what that makes it."""
    module: Any = block.get_submodule(producer.name)
    out = int(module.weight.shape[0])
    by = torch.ones(out, dtype=torch.float64)
    counts = torch.zeros(out, dtype=torch.float64).index_add(
        0, producer.index, torch.ones(len(producer.index), dtype=torch.float64)
    )
    logs = torch.zeros(out, dtype=torch.float64).index_add(0, producer.index, scale.double().log())
    by = torch.where(counts > 0, (logs / counts.clamp(min=1)).exp(), by)
    with torch.no_grad():
        if isinstance(module, nn.Linear):
            module.weight.copy_((module.weight.double() / by[:, None]).float())
            if module.bias is not None:
                module.bias.copy_((module.bias.double() / by).float())
        else:
            old = module.weight.double() + producer.offset
            new = (old / by - producer.offset).to(dtype).double() + producer.offset
            by = torch.where((old != 0) & (new != 0), old / new, torch.ones_like(by))
            module.weight.copy_(torch.where((old != 0) & (new != 0), new, old) - producer.offset)
        for c in consumers:
            c.weight.copy_((c.weight.double() * by[producer.index]).float())


def _candidates(
    block: nn.Module, before: list[list[str]], names: list[str], states: torch.Tensor, call: blocks.Call, head_dim: int
) -> list[Producer]:
    width = blocks.linears(block)[names[0]].in_features
    norm = _norm_before(block, names[0], states, call)
    if norm is not None:
        return [Producer(norm, torch.arange(width), offset) for offset in (0.0, 1.0)]
    found = []
    for name in (n for group in reversed(before) for n in reversed(group)):
        out = blocks.linears(block)[name].out_features
        if out == width:
            found.append(Producer(name, torch.arange(width)))
        elif width % out == 0 and head_dim and out % head_dim == 0:
            column = torch.arange(width)
            found.append(Producer(name, column // head_dim // (width // out) * head_dim + column % head_dim))
    return found


def _norm_before(block: nn.Module, consumer: str, states: torch.Tensor, call: blocks.Call) -> str | None:
    """The module with one vector of weights whose output is the very tensor that the consumer is given."""
    outputs: dict[str, torch.Tensor] = {}
    seen: list[torch.Tensor] = []
    kept: dict[str, Callable[..., None]] = {}
    vectors = [(n, m) for n, m in block.named_modules() if getattr(getattr(m, "weight", None), "ndim", 0) == 1]
    for n, _ in vectors:
        kept[n] = lambda module, inputs, output, n=n: outputs.__setitem__(n, output)
    handles = [block.get_submodule(n).register_forward_hook(f) for n, f in kept.items()]
    try:
        with blocks.inputs_watched(block, lambda n, x: seen.append(x) if n == consumer else None), torch.inference_mode():
            blocks.run(block, states, call)
    finally:
        for h in handles:
            h.remove()
    return next((n for n, y in outputs.items() if y is seen[0]), None)


def _unchanged(
    block: nn.Module,
    producer: Producer,
    consumers: list[Any],
    states: torch.Tensor,
    call: blocks.Call,
    wanted: torch.Tensor,
) -> bool:
    modules: list[Any] = [block.get_submodule(producer.name), *consumers]
    before = [{n: p.detach().clone() for n, p in m.named_parameters(recurse=False)} for m in modules]
    random = torch.Generator().manual_seed(0)
    by = torch.randint(-1, 2, (modules[0].weight.shape[0],), generator=random).double()
    try:
        apply(block, producer, consumers, torch.exp2(by)[producer.index], torch.float32)
        with torch.inference_mode():
            found = blocks.run(block, states, call)
        moved = (found - wanted).abs().max()
        return bool(moved <= SAME * (wanted - states).abs().max())
    finally:
        with torch.no_grad():
            for m, saved in zip(modules, before, strict=True):
                for n, p in saved.items():
                    getattr(m, n).copy_(p)
