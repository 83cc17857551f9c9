"""The loop over the blocks, and what of it lies on disk: finished shards, and the hidden states before the next block.

.OUT.part beside OUT holds `artifact`, which becomes OUT by a rename, `state`, what going on needs, and `key`, whose they are.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from fewbit.errors import FewbitError
from fewbit.files import write_whole
from fewbit.llm import artifact, blocks, budget, consumers, entry, forecast, gguf, methods, packed, walk
from fewbit.llm.imatrix import Importance
from fewbit.llm.options import Options
from fewbit.solvers import grouped
from fewbit.solvers.grids import AnyGrid, check_range

BATCH_TOKENS = 4096
LOST = 1e-3  # of a weight's norm, that may lie in rows which become zeros (dead ones are that small beside the rest)

Progress = Callable[[str, int, int], None]


def part_of(out: Path) -> Path:
    """Where the work on OUT lies until it is done."""
    return out.with_name(f".{out.name}.part")


class Work:
    """One quantization: the folder it lies in, and the loop over the blocks."""

    def __init__(
        self,
        out: Path,
        structure: blocks.Structure,
        key: dict[str, Any],
        ids: torch.Tensor | None,
        options: Options,
        importance: Importance | None = None,
        consumer: str = "",
    ):
        self.importance, self.consumer = importance, consumer
        self.out, self.structure, self.key, self.options = out, structure, key, options
        self.method = methods.find(options.method, options.bits)
        self.batches = _batches(ids) if ids is not None else []
        self.part = part_of(out)
        self.made, self.state = self.part / "artifact", self.part / "state"
        self.shards = len(structure.blocks) + 1
        self.layers: dict[str, str] = {}

    def run(self, progress: Progress, say: Callable[[str], None]) -> dict[str, Any] | None:
        self._open()
        done = self._done()
        if done:
            say(f"{done} of {self.shards - 1} blocks were finished before; going on")
        self._outer()
        self.layers = self._plan()
        streams, calls = self._streams(done)
        said = None
        for k in range(done, self.shards - 1):
            began = forecast.now()
            self._block(k, streams, calls)
            forecast.give_back()
            progress("blocks", k + 1, self.shards - 1)
            if said is None and k + 1 < self.shards - 1:
                said = forecast.forecast(forecast.since(began), self.shards - 2 - k)
                say(f"one block took {said['block_seconds']:.1f} s: {forecast.clock(said['seconds_left'])} left, "
                    f"peak memory {said['peak_bytes'] / 1e9:.2f} GB")  # fmt: skip
        self._close()
        return said

    def _open(self) -> None:
        """Go on with what lies there if it belongs, begin anew otherwise."""
        kept = self.part / "key"
        if not kept.is_file() or kept.read_text() != json.dumps(self.key, sort_keys=True):
            shutil.rmtree(self.part, ignore_errors=True)
        self.made.mkdir(parents=True, exist_ok=True)
        self.state.mkdir(exist_ok=True)
        write_whole(kept, json.dumps(self.key, sort_keys=True))

    def _done(self) -> int:
        """Blocks whose shard, and all that the next one needs, are on disk."""
        done = 0
        while (self.made / artifact.shard_name(done + 1, self.shards)).exists() and done < self.shards - 1:
            done += 1
        if not self.method.calibrated:
            return done
        return max((k for k in range(done + 1) if self._stream_file(k).exists() or k == self.shards - 1), default=0)

    def _stream_file(self, k: int) -> Path:
        return self.state / f"before-{k}.safetensors"

    def _outer(self) -> None:
        """All that lies outside the blocks: as it is, or rounded to nearest where that was asked for."""
        path = self.made / artifact.shard_name(0, self.shards)
        if path.exists():
            return
        tensors = self.structure.source.load(self.structure.outer(), None)
        for name, weights in self._rounded().items():
            weight = tensors.pop(f"{name}.weight").float().numpy()
            grid = self.options.grid(weights)
            grid.check(name, weight.shape[1])
            check_range(name, weight, grid)
            tensors |= artifact.packed_tensors(name, grouped.nearest(weight, grid))
        artifact.save(path, tensors)

    def _rounded(self) -> dict[str, str]:
        """Name -> weights of what is packed outside the blocks."""
        asked = {blocks.head(self.structure): self.options.head, blocks.embedding(self.structure): self.options.embedding}
        return {name: weights for name, weights in asked.items() if name is not None and weights}

    def _plan(self) -> dict[str, str]:
        """Full name -> weights of the layers that differ from the rest; kept, so that going on does not measure again."""
        options, kept = self.options, self.state / "plan.json"
        if options.bits_per_weight is None:
            return {}
        if not kept.exists():
            group, symmetric = options.group_size, options.symmetric
            samples = torch.cat(self.batches)[: budget.SAMPLES]
            (states,), calls = entry.entry(self.structure, [samples])
            losses: budget.Losses = {}
            for k, block in enumerate(self.structure.blocks):
                blocks.fill(self.structure, block, f"{self.structure.prefix}{k}.")
                own, states = budget.block_losses(block, states, calls[k], group, symmetric)
                losses |= {f"{self.structure.prefix}{k}.{n}": v for n, v in own.items()}
                blocks.empty(block)
            modules = dict(self.structure.model.named_modules())
            counts = {n: int(m.in_features * m.out_features) for n in losses if isinstance(m := modules[n], torch.nn.Linear)}
            widths = consumers.widths(self.consumer, symmetric)
            together = consumers.fused(losses) if self.consumer == "vllm" else []
            bits = budget.allocate(
                losses, counts, options.bits_per_weight, lambda b: budget.stored_bits(b, group, symmetric), widths, together
            )
            write_whole(kept, json.dumps({n: f"int{b}" for n, b in bits.items()}))
        return json.loads(kept.read_text())

    def _streams(self, done: int) -> tuple[walk.Streams, list[blocks.Call]]:
        """Hidden states before block `done`, and the blocks' calls."""
        if not self.batches or done == self.shards - 1:
            return walk.Streams([], []), []
        kept = self._stream_file(done)
        if not kept.exists():
            states, calls = entry.entry(self.structure, self.batches)
            return walk.Streams(states[: self._exact()], states), calls
        _, calls = entry.entry(self.structure, self.batches[:1])
        held = load_file(kept)
        exact = [held[f"exact.{b}"] for b in range(self._exact())]
        return walk.Streams(exact, [held[f"quantized.{b}"] for b in range(len(self.batches))]), calls

    def _exact(self) -> int:
        """Batches that the float stream is kept of: half, each being from all over the text."""
        return (len(self.batches) + 1) // 2 if self.method.propagate else 0

    def _block(self, k: int, streams: walk.Streams, calls: list[blocks.Call]) -> None:
        """Quantize block k and put its shard, then the streams behind it, on disk."""
        block, prefix = self.structure.blocks[k], f"{self.structure.prefix}{k}."
        blocks.fill(self.structure, block, prefix)
        before = {n: t for n, t in block.state_dict().items()}
        dtype = self._dtype(prefix, before)

        def grid_of(name: str, columns: int) -> AnyGrid | None:
            grid = self.options.grid(self.layers.get(prefix + name, ""))
            grid.check(prefix + name, columns)
            check_range(prefix + name, before[f"{name}.weight"].numpy(), grid)
            return grid

        if self.method.calibrated:
            solved = walk.quantize_block(block, streams, calls[k], self.method, grid_of, dtype, self.structure.head_dim)
        else:
            solved = walk.round_block(block, grid_of, lambda n, columns: self._importance(prefix + n, columns))
        for name, solution in solved.items():
            self._check_kept(prefix + name, before[f"{name}.weight"].numpy(), solution.dequantized())
        artifact.save(self.made / artifact.shard_name(k + 1, self.shards), self._tensors(block, prefix, solved))
        blocks.empty(block)
        if self.method.calibrated and k + 2 < self.shards:
            held = {f"{kind}.{b}": t for kind in ("exact", "quantized") for b, t in enumerate(getattr(streams, kind))}
            artifact.save(self._stream_file(k + 1), held)
        self._stream_file(k).unlink(missing_ok=True)

    def _check_kept(self, name: str, weight: np.ndarray, found: np.ndarray) -> None:
        """Scales are float16 in every format: weights so small that theirs becomes zero must not vanish unsaid."""
        gone = ~np.asarray(found.any(axis=1))
        if np.linalg.norm(weight[gone]) > LOST * np.linalg.norm(weight):
            raise FewbitError(
                f"{self.structure.source.folder}: {name} has weights up to {np.abs(weight).max():.1e}, too small for scales in "
                f"float16: {int(gone.sum())} of its {len(gone)} rows would become zeros"
            )

    def _importance(self, name: str, columns: int) -> np.ndarray | None:
        if self.importance is None:
            return None
        squares = self.importance.squares.get(gguf.name_of(name, str(self.structure.source.folder)) + ".weight")
        if squares is None or len(squares) != columns:
            raise FewbitError(f"--imatrix has no {columns} squares for {name}; measure them on this model")
        return squares

    def _dtype(self, prefix: str, state: dict[str, torch.Tensor]) -> torch.dtype:
        """What the checkpoint keeps its vectors in."""
        vectors = [n for n, t in state.items() if t.ndim == 1] or list(state)
        return self.structure.source.load([prefix + vectors[0]], None)[prefix + vectors[0]].dtype

    def _tensors(self, block: torch.nn.Module, prefix: str, solved: dict[str, Any]) -> dict[str, torch.Tensor]:
        """A finished block's: packed weights, and the rest in the checkpoint's own types."""
        rest = {n: t for n, t in block.state_dict().items() if n.removesuffix(".weight") not in solved}
        types = {n: t.dtype for n, t in self.structure.source.load([prefix + n for n in rest], None).items()}
        tensors = {prefix + n: t.detach().to(types[prefix + n]).contiguous() for n, t in rest.items()}
        for name, solution in solved.items():
            tensors |= artifact.packed_tensors(prefix + name, solution)
        return tensors

    def _close(self) -> None:
        options = self.options
        layer = packed.layer(options.weights, options.group_size, options.symmetric)
        of = {n: packed.layer(w, options.group_size, options.symmetric) for n, w in (self.layers | self._rounded()).items()}
        recipe = packed.Recipe(layer, options.method, of, self._skipped())
        artifact.finish(self.made, self.structure.source.folder, self.structure.source.config, recipe, self.key)
        self.made.rename(self.out)
        shutil.rmtree(self.part)

    def _skipped(self) -> tuple[str, ...]:
        model = self.structure.model
        inside = self.structure.prefix
        outside = (n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and not n.startswith(inside))
        return tuple(n for n in outside if not self.options.head or n != blocks.head(self.structure))


def _batches(ids: torch.Tensor) -> list[torch.Tensor]:
    """Of about BATCH_TOKENS, of one shape, every one from all over the text."""
    n = max(1, BATCH_TOKENS // ids.shape[1])
    while len(ids) % n:
        n -= 1
    return [ids[b :: len(ids) // n].contiguous() for b in range(len(ids) // n)]
