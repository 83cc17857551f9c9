"""One block of the walk: its float inputs and those that the quantized blocks before hand on, in; its integers, out.

Both streams are kept between blocks. The quantized one runs in stages (llm/staged), so that each group of
Linears sees what the groups before it, already quantized, really produce.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from fewbit.llm import blocks, fold, methods, staged
from fewbit.llm.methods import Method, Moments
from fewbit.solvers import grouped
from fewbit.solvers.grids import AnyGrid, Solution

SAME = 1e-4


@dataclass
class Streams:
    """Hidden states before a block, a tensor [n, length, hidden] a batch: of the float model and of the quantized one.

    exact may hold the first batches only: half of them say nearly as well where the streams drift apart.
    """

    exact: list[torch.Tensor]
    quantized: list[torch.Tensor]


@dataclass
class _Float:
    """What a float pass leaves: inputs of groups and outputs of writers, a tensor a batch."""

    outputs: list[torch.Tensor] = field(default_factory=list)
    inputs: dict[int, list[torch.Tensor]] = field(default_factory=dict)
    written: dict[int, list[torch.Tensor]] = field(default_factory=dict)


def quantize_block(
    block: nn.Module,
    streams: Streams,
    call: blocks.Call,
    method: Method,
    grid_of: Callable[[str, int], AnyGrid | None],
    dtype: torch.dtype,
    head_dim: int,
) -> dict[str, Solution]:
    """Solutions by Linear name; the block is left with their values, norms rescaled, and the streams stand behind it.

    grid_of(name, columns): None keeps a Linear in float.
    """
    probe = blocks.probe((streams.exact or streams.quantized)[0])
    groups = blocks.groups(block, probe, call)
    grids = {n: grid_of(n, m.in_features) for n, m in blocks.linears(block).items()}
    if method.scaling:
        _scale(block, groups, grids, streams, call, method, dtype, head_dim)
    weights = {n: m.weight.detach().numpy().copy() for n, m in blocks.linears(block).items()}
    writers = _writers(block, groups, probe, call) if method.propagate or method.by_token else []
    exact = _float_pass(block, streams.exact, call, groups, writers) if method.propagate else _Float()
    found: dict[str, Solution] = {}
    counts = _counts(streams)
    written: dict[int, list[torch.Tensor]] = {g: [] for g in writers if method.propagate}

    def at(g: int, inputs: list[torch.Tensor]) -> None:
        names = [n for n in groups[g] if grids[n] is not None]
        if names:
            use = counts if g in writers and method.by_token else None
            target = _wanted(block, groups, g, writers, exact, streams, written)
            moments = _moments({n: weights[n] for n in names}, inputs, target, use)
            wanted = {n: grid for n, grid in grids.items() if grid is not None}
            for name, solution in methods.solve({n: weights[n] for n in names}, wanted, moments, method).items():
                found[name] = solution
                block.get_submodule(name).weight.data = torch.from_numpy(solution.dequantized())

    with _outputs_watched(block, groups, written):
        streams.quantized = staged.run(block, streams.quantized, call, groups, at)
    streams.exact = exact.outputs
    return found


def round_block(
    block: nn.Module, grid_of: Callable[[str, int], AnyGrid | None], importance_of: Callable[[str, int], np.ndarray | None]
) -> dict[str, Solution]:
    """Round to nearest, without inputs; under the best scales where importance_of says what each column's error costs."""
    found = {}
    for name, module in blocks.linears(block).items():
        grid = grid_of(name, module.in_features)
        if grid is not None:
            weight, importance = module.weight.detach().numpy(), importance_of(name, module.in_features)
            found[name] = grouped.nearest(weight, grid) if importance is None else grouped.clipped(weight, importance, grid)
    return found


def _scale(
    block: nn.Module,
    groups: list[list[str]],
    grids: dict[str, AnyGrid | None],
    streams: Streams,
    call: blocks.Call,
    method: Method,
    dtype: torch.dtype,
    head_dim: int,
) -> None:
    """Scale the columns of every group whose producer can take it; the rule is chosen on one batch of float inputs."""
    grams: dict[str, np.ndarray] = {}
    peaks: dict[str, np.ndarray] = {}

    def note(name: str, x: torch.Tensor) -> None:
        if name in first:
            rows = _rows(x)
            grams[name] = (rows.T @ rows).astype(np.float64) / len(rows)
            peaks[name] = np.abs(rows).max(axis=0)

    first = {names[0] for names in groups}
    states = streams.exact or streams.quantized
    with blocks.inputs_watched(block, note), torch.inference_mode():
        blocks.run(block, states[0], call)
    found = fold.producers(block, groups, blocks.probe(states[0]), call, head_dim)
    for g, producer in found.items():
        grid = next((grids[n] for n in groups[g] if grids[n] is not None), None)
        if grid is None:
            continue
        modules = [blocks.linears(block)[n] for n in groups[g]]
        matrices = [m.weight.detach().numpy() for m in modules]
        scale = methods.column_scale(matrices, grams[groups[g][0]], peaks[groups[g][0]], method, grid)
        fold.apply(block, producer, modules, torch.from_numpy(scale), dtype)


def _writers(block: nn.Module, groups: list[list[str]], probe: torch.Tensor, call: blocks.Call) -> list[int]:
    """Groups of one Linear whose output is added to the hidden states as it is; none if that does not explain the block."""
    candidates = [g for g, names in enumerate(groups) if len(names) == 1]
    candidates = [g for g in candidates if block.get_submodule(groups[g][0]).out_features == probe.shape[-1]]
    written: dict[int, list[torch.Tensor]] = {g: [] for g in candidates}
    with _outputs_watched(block, groups, written), torch.inference_mode():
        out = blocks.run(block, probe, call)
    if any(y[0].numel() != probe.numel() for y in written.values()):
        return []
    off = out - probe - sum(y[0].reshape(probe.shape) for y in written.values())
    return candidates if candidates and float(off.abs().max()) <= SAME * float(out.abs().max()) else []


def _float_pass(
    block: nn.Module, states: list[torch.Tensor], call: blocks.Call, groups: list[list[str]], writers: list[int]
) -> _Float:
    found = _Float(inputs={g: [] for g in range(len(groups)) if g not in writers}, written={g: [] for g in writers})
    index = {names[0]: g for g, names in enumerate(groups) if g not in writers}

    def note(name: str, x: torch.Tensor) -> None:
        if name in index:
            found.inputs[index[name]].append(x)

    with _outputs_watched(block, groups, found.written), blocks.inputs_watched(block, note), torch.inference_mode():
        for x in states:
            found.outputs.append(blocks.run(block, x, call))
    return found


class _outputs_watched:
    """Keeps the outputs of these groups' Linears, a tensor a batch, in the order of the batches."""

    def __init__(self, block: nn.Module, groups: list[list[str]], into: dict[int, list[torch.Tensor]]):
        self._pairs = [(block.get_submodule(groups[g][0]), kept) for g, kept in into.items()]

    def __enter__(self) -> None:
        self._handles = [
            m.register_forward_hook(lambda module, inputs, output, kept=kept: kept.append(output)) for m, kept in self._pairs
        ]

    def __exit__(self, *exc: object) -> None:
        for h in self._handles:
            h.remove()


@dataclass(frozen=True)
class _Wanted:
    """Of so many batches: outputs, what the group is to write; or inputs, what the float model feeds it."""

    batches: int = 0
    outputs: Callable[[int], torch.Tensor] | None = None
    inputs: list[torch.Tensor] = field(default_factory=list)


def _wanted(
    block: nn.Module,
    groups: list[list[str]],
    g: int,
    writers: list[int],
    exact: _Float,
    streams: Streams,
    written: dict[int, list[torch.Tensor]],
) -> _Wanted:
    """What the weights of group g are to give: the bias, which stays as it is, is no part of it."""
    if g in exact.inputs:
        return _Wanted(len(streams.exact), inputs=exact.inputs.pop(g))
    if g not in exact.written:
        return _Wanted()
    until = writers[: writers.index(g)]
    bias: Any = block.get_submodule(groups[g][0]).bias

    def target(b: int) -> torch.Tensor:
        """The float stream behind this writer less the quantized one before it: the writer makes up for both."""
        shape = streams.exact[b].shape
        t = streams.exact[b] - streams.quantized[b] + exact.written[g][b].reshape(shape)
        for other in until:
            t += (exact.written[other][b] - written[other][b]).reshape(shape)
        return t if bias is None else t - bias.detach()

    return _Wanted(len(streams.exact), outputs=target)


def _counts(streams: Streams) -> list[torch.Tensor]:
    """What each token counts: 1 / the mean square of its hidden state, in the stream where that is larger.

    A huge state that quantization has lost would else count most exactly where nothing can be mended.
    """
    size = [(x**2).mean(-1) for x in streams.quantized]
    for b, x in enumerate(streams.exact):
        size[b] = torch.maximum(size[b], (x**2).mean(-1))
    return [1 / s.clamp(min=1e-12) for s in size]


def _moments(
    weights: dict[str, np.ndarray], inputs: list[torch.Tensor], wanted: _Wanted, counts: list[torch.Tensor] | None
) -> Moments:
    """counts: what each token counts, [n, length] a batch, or None where all count the same.

    The drift is taken over the batches that the float stream has, less what the float weights make of those same inputs.
    """
    width = inputs[0].shape[-1]
    gram, total = np.zeros((width, width)), 0.0
    halves = [_Half(width), _Half(width)] if wanted.batches else []
    for b, x in enumerate(inputs):
        rows = _rows(x)  # of a tensor of any rank; a row a token, or several (a head's)
        share = np.ones((len(rows), 1), np.float32)
        if counts and counts[b].numel() == len(rows):
            share = counts[b].reshape(-1, 1).numpy()
        rows = rows * np.sqrt(share)
        total += float(share.sum())
        if b >= wanted.batches:
            gram += rows.T @ rows
            continue
        other = _rows(wanted.outputs(b) if wanted.outputs else wanted.inputs[b]) * np.sqrt(share)
        middle = len(rows) // 2  # of the batch's samples
        halves[0].add(rows[:middle], other[:middle], share[:middle])
        halves[1].add(rows[middle:], other[middle:], share[middle:])
    if not halves:
        return Moments(gram / total, {})
    both = halves[0] + halves[1]
    own = tuple((h.gram / h.total, h.drift(weights, wanted)) for h in halves)
    return Moments((gram + both.gram) / total, both.drift(weights, wanted), own if min(h.total for h in halves) > 0 else ())


class _Half:
    """Sums over half of the samples of which what is wanted is known."""

    def __init__(self, width: int):
        self.gram, self.total = np.zeros((width, width)), 0.0
        self.cross: np.ndarray | float = 0.0

    def add(self, rows: np.ndarray, other: np.ndarray, share: np.ndarray) -> None:
        """Inputs [n, in], wanted outputs [n, out] or inputs [n, in], and what each token counts [n, 1]."""
        self.gram += rows.T @ rows
        self.cross = self.cross + (other.T @ rows).astype(np.float64)
        self.total += float(share.sum())

    def __add__(self, other: "_Half") -> "_Half":
        found = _Half(len(self.gram))
        found.gram, found.total = self.gram + other.gram, self.total + other.total
        found.cross = self.cross + other.cross
        return found

    def drift(self, weights: dict[str, np.ndarray], wanted: _Wanted) -> dict[str, np.ndarray]:
        """Mean of what is wanted less what the weights give, times the input, [out, in] of each Linear."""
        if wanted.outputs:
            return {n: (self.cross - w @ self.gram) / self.total for n, w in weights.items()}
        return {n: w @ (self.cross - self.gram) / self.total for n, w in weights.items()}


def _rows(x: torch.Tensor) -> np.ndarray:
    return x.reshape(-1, x.shape[-1]).numpy()
