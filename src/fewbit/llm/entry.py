"""The entry to the blocks: hidden states before the first one, and what the model calls each with, seen by stubs in their place.

What a block is called with beside the hidden states (masks, rotary embeddings) must be the same for every text of one length, or
block after block is not the model; a model that gives its blocks more of the tokens is refused.
"""

import inspect
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from fewbit.errors import FewbitError, first_line
from fewbit.llm import blocks
from fewbit.llm.blocks import Call, Structure, probe


class _Stub(nn.Module):
    """Stands for a block: keeps what it is called with, hands its input on. Attributes of the block stay readable."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self._block = [block]  # in a list, so that it is no submodule
        self._names = [n for n in inspect.signature(block.forward).parameters][1:]  # behind the hidden states
        self.in_tuple = False
        self.call: dict[str, Any] | None = None
        self.states: torch.Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._block[0], name)

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        self.call, self.states = kwargs | dict(zip(self._names, args, strict=False)), hidden_states
        return (hidden_states,) if self.in_tuple else hidden_states


def entry(structure: Structure, batches: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[Call]]:
    """(hidden states before block 0 of each batch of ids [n, length], each block's call). All batches have one shape.

    Raises:
        FewbitError: The model does not hand hidden states from block to block as they are, or gives its blocks what depends on
            the tokens beside.
    """
    outside = [(n, m) for n, m in structure.base.named_children() if m is not structure.blocks]
    for name, module in outside:
        blocks.fill(structure, module, blocks.outer_prefix(structure) + name + ".")
    stubs = [_Stub(b) for b in structure.blocks]
    short = probe(batches[0])
    try:
        with _in_place(structure, stubs), torch.inference_mode():
            _choose_form(structure, stubs, short)
            calls = [_calls(stubs)]
            _check_calls(structure, stubs, calls[0], short)
            states = []
            for ids in batches:
                structure.base(input_ids=ids, use_cache=False)
                states.append(stubs[0].states.clone())  # type: ignore[union-attr]
                if len(calls) < 2:
                    calls.append(_calls(stubs))
        return states, [Call(batch, short) for short, batch in zip(*calls, strict=True)]
    finally:
        for _, module in outside:
            blocks.empty(module)


@contextmanager
def _in_place(structure: Structure, stubs: list[_Stub]) -> Any:
    owner = next(n for n, m in structure.base.named_children() if m is structure.blocks)
    setattr(structure.base, owner, nn.ModuleList(stubs))
    try:
        yield
    finally:
        setattr(structure.base, owner, structure.blocks)


def _calls(stubs: list[_Stub]) -> list[dict[str, Any]]:
    return [s.call or {} for s in stubs]


def _choose_form(structure: Structure, stubs: list[_Stub], ids: torch.Tensor) -> None:
    """Whether the model takes its blocks' output as it is or as the first of a tuple, by trying; else it is refused."""
    said = "it changes the hidden states between its blocks, or does not run all of them"
    for in_tuple in (False, True):
        for stub in stubs:
            stub.in_tuple, stub.call, stub.states = in_tuple, None, None
        try:
            out = structure.base(input_ids=ids, use_cache=False)[0]
        except (AttributeError, IndexError, TypeError, ValueError, RuntimeError) as e:
            said = said if in_tuple else first_line(e)
            continue
        first = stubs[0].states
        whole = first is not None and out.shape[:2] == first.shape[:2] == ids.shape and out.ndim == 3
        if whole and first is not None and all(s.states is not None and torch.equal(s.states, first) for s in stubs):
            return
    raise FewbitError(f"{structure.source.folder}: {type(structure.base).__name__} cannot be run block by block ({said})")


def _check_calls(structure: Structure, stubs: list[_Stub], calls: list[dict[str, Any]], ids: torch.Tensor) -> None:
    """Refuse what is shared between calls, or differs with the tokens."""
    structure.base(input_ids=(ids + 1) % int(structure.config.vocab_size), use_cache=False)
    for call, other in zip(calls, _calls(stubs), strict=True):
        for name, value in call.items():
            if not _alike(value, other.get(name)):
                raise FewbitError(
                    f"{structure.source.folder}: {type(structure.base).__name__} gives its blocks {name}, which depends on the "
                    "tokens or on other blocks; models that do are not supported"
                )


def _alike(a: Any, b: Any) -> bool:
    """Plain values and tensors, in tuples or not, that are equal; anything else could be what blocks tell each other."""
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(_alike(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return torch.equal(a, b)
    return (a is None or isinstance(a, bool | int | float | str | torch.dtype | torch.device)) and a == b
