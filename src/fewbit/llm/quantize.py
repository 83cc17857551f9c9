"""Quantize a causal language model block by block, on disk at both ends: what is finished survives a kill.

Beside OUT lies .OUT.part while work goes on: `artifact` with a shard for each finished block, `state` with the calibration
tokens' hidden states before the next one, and `key`, which says what it belongs to. OUT appears by a rename, whole.
"""

import hashlib
import json
import resource
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fewbit.errors import FewbitError
from fewbit.files import write_whole
from fewbit.llm import artifact, blocks, budget, calibration, methods, packed, source, walk
from fewbit.numerics.formats import INTEGERS
from fewbit.solvers import grouped
from fewbit.solvers.grouped import Grid

VERSION = 1  # of the walk: one that makes other bytes has another number
BATCH_TOKENS = 4096

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Options:
    """weights: one of packed.WEIGHTS; method: one of methods.METHODS; samples of `length` tokens from the calibration text.

    bits_per_weight: widths by layer under this budget instead of `weights` everywhere. head: the head's width, "" for float.
    """

    weights: str = "int4"
    group_size: int = 64
    symmetric: bool = False
    method: str = "auto"
    samples: int = 64
    length: int = 512
    bits_per_weight: float | None = None
    head: str = ""


def quantize(
    folder: str | Path,
    out: str | Path,
    options: Options,
    text: Path | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Write the artifact OUT of the checkpoint in `folder`; text: what to calibrate on. The record of what it took."""
    began, out = time.perf_counter(), Path(out)
    structure, ids = _prepare(folder, out, options, text)
    key = _key(structure, options, ids)
    if _finished(out, key):
        return _record(out, structure, options, None, began)
    work = _Work(out, structure, key, ids, options)
    forecast = work.run(progress or (lambda *_: None), say or (lambda _: None))
    return _record(out, structure, options, forecast, began)


def _prepare(folder: str | Path, out: Path, options: Options, text: Path | None) -> tuple[blocks.Structure, torch.Tensor | None]:
    """All that can be refused, before any work."""
    method = methods.find(options.method)
    if options.weights not in packed.WEIGHTS:
        raise FewbitError(f"--weights {options.weights}: choose one of {', '.join(packed.WEIGHTS)}")
    if options.head and options.head not in packed.WEIGHTS:
        raise FewbitError(f"--head {options.head}: choose one of {', '.join(packed.WEIGHTS)}")
    if options.bits_per_weight is not None and not method.calibrated:
        raise FewbitError("--bits-per-weight needs a method that calibrates, not rtn")
    if not out.parent.is_dir():
        raise FewbitError(f"{out}: the folder {out.parent} does not exist")
    found = source.open_source(folder)
    if text is None and method.calibrated:
        raise FewbitError(f"method {options.method} needs a text to calibrate on; give --calibration FILE.txt, or --method rtn")
    structure = blocks.read(found)
    for name, linear in blocks.linears(structure.blocks[0]).items():
        grouped.check(f"{structure.prefix}0.{name}", linear.in_features, options.group_size)
    if options.head and _head(structure) is None:
        raise FewbitError(f"--head {options.head}: the head is the embedding (tied), which stays float; leave --head out")
    if not method.calibrated or text is None:
        return structure, None
    ids = calibration.samples(calibration.tokens(found.folder, text), options.samples, options.length, str(text))
    vocabulary = int(structure.config.vocab_size)
    if int(ids.max()) >= vocabulary:
        raise FewbitError(f"{folder}: its tokenizer gives id {int(ids.max())}, the model has {vocabulary} embeddings")
    return structure, ids


def _head(structure: blocks.Structure) -> str | None:
    """The name of a Linear outside the blocks whose weight the checkpoint holds."""
    outer = set(structure.outer())
    found = (n for n, m in structure.model.named_modules() if isinstance(m, torch.nn.Linear))
    return next((n for n in found if f"{n}.weight" in outer), None)


def _key(structure: blocks.Structure, options: Options, ids: torch.Tensor | None) -> dict[str, Any]:
    """What an artifact was made from; equal keys, equal bytes."""
    tokens = hashlib.sha256(ids.numpy().tobytes()).hexdigest() if ids is not None else ""
    return {"version": VERSION, "source": structure.source.digest(), "tokens": tokens, "options": asdict(options)}


def _finished(out: Path, key: dict[str, Any]) -> bool:
    """OUT is there and is what is asked for; another one is not overwritten."""
    if not out.exists():
        return False
    made = out / artifact.RECORD
    if not made.is_file() or json.loads(made.read_text()) != json.loads(json.dumps(key)):
        raise FewbitError(f"{out}: exists and is something else; remove it or choose another name")
    shutil.rmtree(_part(out), ignore_errors=True)
    return True


def _part(out: Path) -> Path:
    return out.with_name(f".{out.name}.part")


def _record(
    out: Path, structure: blocks.Structure, options: Options, forecast: dict[str, float] | None, began: float
) -> dict[str, Any]:
    return {
        "artifact": str(out),
        "method": options.method,
        "blocks": len(structure.blocks),
        "bytes": artifact.size(out),
        "bytes_float": sum(p.stat().st_size for p in set(structure.source.shards.values())),
        "seconds": time.perf_counter() - began,
        "peak_bytes": peak_bytes(),
        "forecast": forecast,
        "seconds_after_forecast": time.perf_counter() - forecast.pop("at") if forecast else None,
    }


def peak_bytes() -> int:
    """The most memory this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class _Work:
    """One quantization: the folder it lies in, and the loop over the blocks."""

    def __init__(self, out: Path, structure: blocks.Structure, key: dict[str, Any], ids: torch.Tensor | None, options: Options):
        self.out, self.structure, self.key, self.options = out, structure, key, options
        self.method = methods.find(options.method)
        self.batches = _batches(ids) if ids is not None else []
        self.part = _part(out)
        self.made, self.state = self.part / "artifact", self.part / "state"
        self.shards = len(structure.blocks) + 1
        self.layers: dict[str, str] = {}

    def run(self, progress: Progress, say: Callable[[str], None]) -> dict[str, float] | None:
        self._open()
        done = self._done()
        if done:
            say(f"{done} of {self.shards - 1} blocks were finished before; going on")
        self._outer()
        self.layers = self._plan()
        streams, calls = self._streams(done)
        forecast = None
        for k in range(done, self.shards - 1):
            began = time.perf_counter()
            self._block(k, streams, calls)
            progress("blocks", k + 1, self.shards - 1)
            if forecast is None and k + 1 < self.shards - 1:
                forecast = self._forecast(time.perf_counter() - began, self.shards - 2 - k)
                say(f"one block took {forecast['block_seconds']:.1f} s: {_clock(forecast['seconds_left'])} left, "
                    f"peak memory {forecast['peak_bytes'] / 1e9:.2f} GB")  # fmt: skip
        self._close()
        return forecast

    def _forecast(self, block_seconds: float, blocks_left: int) -> dict[str, float]:
        """From one block of full size; those after it are of the same size, and reuse its memory."""
        return {"block_seconds": block_seconds, "seconds_left": block_seconds * blocks_left, "peak_bytes": float(peak_bytes()),
                "at": time.perf_counter()}  # fmt: skip

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
        """All that lies outside the blocks, as it is."""
        path = self.made / artifact.shard_name(0, self.shards)
        if path.exists():
            return
        tensors = self.structure.source.load(self.structure.outer(), None)
        if self.options.head:
            head = _head(self.structure)
            weight = tensors.pop(f"{head}.weight").float().numpy()
            grouped.check(str(head), weight.shape[1], self.options.group_size)
            grid = Grid(INTEGERS[self.options.head].bits, self.options.group_size, self.options.symmetric)
            tensors |= artifact.packed_tensors(str(head), grouped.nearest(weight, grid))
        artifact.save(path, tensors)

    def _plan(self) -> dict[str, str]:
        """Full name -> weights of the layers that differ from the rest; kept, so that going on does not measure again."""
        options, kept = self.options, self.state / "plan.json"
        if options.bits_per_weight is None:
            return {}
        if not kept.exists():
            group, symmetric = options.group_size, options.symmetric
            samples = torch.cat(self.batches)[: budget.SAMPLES]
            (states,), calls = blocks.entry(self.structure, [samples])
            losses: budget.Losses = {}
            for k, block in enumerate(self.structure.blocks):
                blocks.fill(self.structure, block, f"{self.structure.prefix}{k}.")
                own, states = budget.block_losses(block, states, calls[k], group, symmetric)
                losses |= {f"{self.structure.prefix}{k}.{n}": v for n, v in own.items()}
                blocks.empty(block)
            modules = dict(self.structure.model.named_modules())
            counts = {n: int(m.in_features * m.out_features) for n in losses if isinstance(m := modules[n], torch.nn.Linear)}
            bits = budget.allocate(losses, counts, options.bits_per_weight, lambda b: budget.stored_bits(b, group, symmetric))
            write_whole(kept, json.dumps({n: f"int{b}" for n, b in bits.items()}))
        return json.loads(kept.read_text())

    def _streams(self, done: int) -> tuple[walk.Streams, list[blocks.Call]]:
        """Hidden states before block `done`, and the blocks' calls."""
        if not self.batches or done == self.shards - 1:
            return walk.Streams([], []), []
        kept = self._stream_file(done)
        if not kept.exists():
            states, calls = blocks.entry(self.structure, self.batches)
            return walk.Streams(states if self.method.propagate else [], states), calls
        _, calls = blocks.entry(self.structure, self.batches[:1])
        from safetensors.torch import load_file

        held = load_file(kept)
        n = len(self.batches)
        exact = [held[f"exact.{b}"] for b in range(n)] if self.method.propagate else []
        return walk.Streams(exact, [held[f"quantized.{b}"] for b in range(n)]), calls

    def _block(self, k: int, streams: walk.Streams, calls: list[blocks.Call]) -> None:
        """Quantize block k and put its shard, then the streams behind it, on disk."""
        block, prefix = self.structure.blocks[k], f"{self.structure.prefix}{k}."
        blocks.fill(self.structure, block, prefix)
        before = {n: t for n, t in block.state_dict().items()}
        dtype = self._dtype(prefix, before)

        def grid_of(name: str, columns: int) -> Grid | None:
            grouped.check(prefix + name, columns, self.options.group_size)
            weights = self.layers.get(prefix + name, self.options.weights)
            return Grid(INTEGERS[weights].bits, self.options.group_size, self.options.symmetric)

        if self.method.calibrated:
            head_dim = getattr(self.structure.config, "head_dim", None) or 0
            solved = walk.quantize_block(block, streams, calls[k], self.method, grid_of, dtype, head_dim)
        else:
            solved = walk.round_block(block, grid_of)
        artifact.save(self.made / artifact.shard_name(k + 1, self.shards), self._tensors(block, prefix, solved))
        blocks.empty(block)
        if self.method.calibrated and k + 2 < self.shards:
            held = {f"{kind}.{b}": t for kind in ("exact", "quantized") for b, t in enumerate(getattr(streams, kind))}
            artifact.save(self._stream_file(k + 1), held)
        self._stream_file(k).unlink(missing_ok=True)

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
        layer = packed.Layer(options.weights, options.group_size, options.symmetric)
        head = {_head(self.structure): options.head} if options.head else {}
        differing = {n: replace(layer, weights=w) for n, w in (self.layers | head).items() if n is not None}
        recipe = packed.Recipe(layer, options.method, differing, self._skipped())
        artifact.finish(self.made, self.structure.source.folder, self.structure.source.config, recipe, self.key)
        self.made.rename(self.out)
        shutil.rmtree(self.part)

    def _skipped(self) -> tuple[str, ...]:
        model = self.structure.model
        inside = self.structure.prefix
        outside = (n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and not n.startswith(inside))
        return tuple(n for n in outside if not self.options.head or n != _head(self.structure))


def _batches(ids: torch.Tensor) -> list[torch.Tensor]:
    """Of about BATCH_TOKENS, of one shape, every one from all over the text."""
    n = max(1, BATCH_TOKENS // ids.shape[1])
    while len(ids) % n:
        n -= 1
    return [ids[b :: len(ids) // n].contiguous() for b in range(len(ids) // n)]


def _clock(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"
