"""One step of an LSTM or GRU in torch, written as the graph wants it: one dense layer over [input, state], then functions (S8).

Weights are torch.nn's: LSTM's rows in the order input, forget, cell, output; GRU's reset, update, new (its new gate adds the
recurrent bias behind the reset, as torch.nn.GRU and ONNX's linear_before_reset=1 do).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fewbit.errors import FewbitError

Weights = Sequence[Tensor]  # w_ih [gates * hidden, in], w_hh [gates * hidden, hidden], b_ih, b_hh [gates * hidden]


def lstm(x: Tensor, h: Tensor, c: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
    """x [n, in], h, c [n, hidden] -> the next h and c."""
    w_ih, w_hh, b_ih, b_hh = weights
    gates = functional.linear(torch.cat([x, h], 1), torch.cat([w_ih, w_hh], 1), b_ih + b_hh)
    i, f, g, o = gates.chunk(4, 1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def gru(x: Tensor, h: Tensor, weights: Weights) -> Tensor:
    """x [n, in], h [n, hidden] -> the next h."""
    w_ih, w_hh, b_ih, b_hh = weights
    k = 2 * w_hh.shape[1]
    both = functional.linear(torch.cat([x, h], 1), torch.cat([w_ih[:k], w_hh[:k]], 1), b_ih[:k] + b_hh[:k])
    r, z = torch.sigmoid(both).chunk(2, 1)
    n = torch.tanh(functional.linear(x, w_ih[k:], b_ih[k:]) + r * functional.linear(h, w_hh[k:], b_hh[k:]))
    return n + z * (h - n)


@dataclass(frozen=True)
class Remembered:
    """A state's name, its shape without the batch, and what an episode starts with (None: zeros)."""

    name: str
    shape: tuple[int, ...]
    initial: list[float] | None = None

    @property
    def output(self) -> str:
        return f"{self.name}_next"

    @property
    def record(self) -> dict:
        start = {} if self.initial is None else {"initial": self.initial}
        return {"input": self.name, "output": self.output} | start


def layers(x: Tensor, states: list[list[Tensor]], weights: Weights, kind: str, biases: bool) -> tuple[Tensor, list[list[Tensor]]]:
    """Stacked layers of one step: states (h, an LSTM's c) by layer, each [n, hidden] -> (the last one's h, what comes next)."""
    each = 4 if biases else 2
    new: list[list[Tensor]] = [[] for _ in states]
    for k, held in enumerate(zip(*states, strict=True)):
        own = list(weights[each * k : each * (k + 1)])
        if not biases:
            own += [torch.zeros(len(own[0]))] * 2
        if len(own) < 4 or own[1].shape[0] != (4 if kind == "lstm" else 3) * own[1].shape[1]:
            raise FewbitError(f"a {kind.upper()} with projections is not supported; export it as ONNX by hand")
        made = lstm(x, held[0], held[1], own) if kind == "lstm" else (gru(x, held[0], own),)
        for collected, value in zip(new, made, strict=True):
            collected.append(value)
        x = made[0]
    return x, new
