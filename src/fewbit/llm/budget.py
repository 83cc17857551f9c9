"""Bits where they are needed: each Linear's own width, under a budget of bits a weight.

A Linear's loss at a width is its output error there (rounded to nearest under searched scales, columns weighted by what GPTQ
cannot make up for) times what a unit of that error does to its block's output, measured once by running the block with that
Linear alone at PROBE bits. Block outputs are compared relative to the hidden state they belong to, token by token,
because a norm follows; an error counts the same in whichever block it arises. Widths are then raised one at a time, each time
where a bit buys most (the convex hull of each layer's losses, Shoham and Gersho 1988).
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from fewbit.errors import FewbitError
from fewbit.llm import blocks
from fewbit.llm.options import WEIGHTS
from fewbit.numerics.formats import INTEGERS
from fewbit.solvers import grouped
from fewbit.solvers.grids import Grid

WIDTHS = tuple(sorted(INTEGERS[w].bits for w in WEIGHTS))
PROBE = 3  # the width at which a block is run to see what an error does to it
ROWS = 8  # every so manyth row of a weight is enough to see its error
SAMPLES = 2

Losses = dict[str, dict[int, float]]


def stored_bits(bits: int, group_size: int, symmetric: bool) -> float:
    """Bits a weight takes in the file, its share of the scale and zero point with it."""
    return bits + (16 if symmetric else 24) / group_size


def block_losses(
    block: torch.nn.Module, states: torch.Tensor, call: blocks.Call, group_size: int, symmetric: bool
) -> tuple[Losses, torch.Tensor]:
    """(loss of each Linear at each of WIDTHS, the block's output); states [n, length, hidden] of the float model."""
    grams: dict[str, np.ndarray] = {}

    def note(name: str, x: torch.Tensor) -> None:
        rows = x.reshape(-1, x.shape[-1]).numpy()
        grams[name] = (rows.T @ rows).astype(np.float64) / len(rows)

    with blocks.inputs_watched(block, note), torch.inference_mode():
        wanted = blocks.run(block, states, call)
    size = (wanted.double() ** 2).sum(-1)
    found: Losses = {}
    for name, linear in blocks.linears(block).items():
        weight = linear.weight.detach().clone()
        matrix, cost = weight.numpy(), 1 / np.diag(grouped.damped_inverse(grams[name]))
        own = {}
        for bits in WIDTHS:
            solution = grouped.clipped(matrix[::ROWS], cost, Grid(bits, group_size, symmetric))
            own[bits] = float((((solution.dequantized() - matrix[::ROWS]).astype(np.float64) ** 2) @ cost).sum())
        rough = grouped.clipped(matrix, cost, Grid(PROBE, group_size, symmetric)).dequantized()
        off = (rough - matrix).astype(np.float64)
        linear.weight.data = torch.from_numpy(rough)
        with torch.inference_mode():
            moved = float((((blocks.run(block, states, call) - wanted).double() ** 2).sum(-1) / size).mean())
        linear.weight.data = weight
        gain = moved / max(float(((off @ grams[name]) * off).sum()), 1e-30)
        found[name] = {bits: gain * loss for bits, loss in own.items()}
    return found, wanted


def allocate(
    losses: Losses,
    weights: dict[str, int],
    budget: float,
    overhead: Callable[[int], float],
    widths: tuple[int, ...] = WIDTHS,
    together: Sequence[list[str]] = (),
) -> dict[str, int]:
    """Bits of each layer: stored bits (overhead(bits)) a weight within budget on average.

    Args:
        losses: Of each layer at each width.
        weights: How many each layer has.
        budget: Bits a weight.
        overhead: Stored bits of a weight of so many bits.
        widths: What there is to choose from, ascending.
        together: Layers that must have one width.
    """
    joined = {names[0]: names for names in together} | {n: [n] for n in losses if not any(n in names for names in together)}
    sums = {n: {b: sum(losses[m][b] for m in names) for b in widths} for n, names in joined.items()}
    counts = {n: sum(weights[m] for m in names) for n, names in joined.items()}
    chosen = _spend(sums, counts, budget, overhead, widths)
    return {m: chosen[n] for n, names in joined.items() for m in names}


def _spend(
    losses: Losses, weights: dict[str, int], budget: float, overhead: Callable[[int], float], widths: tuple[int, ...]
) -> dict[str, int]:
    total = sum(weights.values())
    least = overhead(widths[0])
    if budget < least:
        raise FewbitError(f"--bits-per-weight {budget:g}: at least {least:g}, int{widths[0]} with its scales, is needed")
    bits = dict.fromkeys(losses, widths[0])
    spent = least * total
    steps = sorted(
        ((-gain / cost, name, to) for name, own in losses.items() for to, gain, cost in _hull(own, weights[name], widths)),
    )
    closed: set[str] = set()
    for _, name, to in steps:
        cost = (overhead(to) - overhead(bits[name])) * weights[name]
        if name in closed or spent + cost > budget * total:
            closed.add(name)  # a later step of this layer would leave one out
            continue
        bits[name], spent = to, spent + cost
    return bits


def _hull(losses: dict[int, float], weights: int, widths: tuple[int, ...]) -> list[tuple[int, float, float]]:
    """(bits, loss saved, bits spent) of the steps along the lower convex hull, steepest first."""
    at, steps = widths[0], []
    while at < widths[-1]:
        to = max((b for b in widths if b > at), key=lambda b: (losses[at] - losses[b]) / (b - at))
        steps.append((to, losses[at] - losses[to], float((to - at) * weights)))
        at = to
    return steps
