"""Quantize a causal language model block by block, from disk to disk: what is finished survives a kill (llm/work)."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from fewbit import files
from fewbit.errors import FewbitError
from fewbit.llm import artifact, blocks, calibration, consumers, forecast, imatrix, methods, source
from fewbit.llm.options import Options, check
from fewbit.llm.tensors import Tensors
from fewbit.llm.work import Progress, Work, part_of
from fewbit.numerics import ggml

VERSION = 5  # of the walk: one that makes other bytes has another number


def quantize(
    folder: str | Path,
    out: str | Path,
    options: Options,
    text: Path | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
    importance: Path | None = None,
    consumer: str = "",
) -> dict[str, Any]:
    """Write the artifact OUT of the checkpoint in `folder`; text: what to calibrate on; importance: an imatrix file, for method
    rtn; consumer: one of llm/consumers, which must run it. The record of what it took."""
    began, out = time.perf_counter(), Path(out)
    if consumer:
        consumers.check(consumer, Path(folder), "", options.weights, options)
    say = say or (lambda _: None)
    structure, ids, first = _prepare(folder, out, options, text)
    given = imatrix.read(importance) if importance else None
    if given and methods.find(options.method).calibrated:
        raise FewbitError(f"--imatrix is for --method rtn; {options.method} measures more than it says")
    key = _key(structure, options, ids) | ({"imatrix": given.digest} if given else {})
    key |= {"for": consumer} if consumer and options.bits_per_weight is not None else {}
    with files.alone(out):
        if _finished(out, key):
            return _record(out, structure, options, None, began)
        if first.ids:
            say(f"every sample begins with {first.names}, as the tokenizer begins a text")
        work = Work(out, structure, key, ids, options, given, consumer)
        said = work.run(progress or (lambda *_: None), say)
    return _record(out, structure, options, said, began)


def _prepare(
    folder: str | Path, out: Path, options: Options, text: Path | None
) -> tuple[blocks.Structure, torch.Tensor | None, calibration.Beginning]:
    """All that can be refused, before any work: the model, the samples [count, length] and what each begins with."""
    method = methods.find(options.method)
    for option, weights in (("--weights", options.weights), ("--head", options.head), ("--embedding", options.embedding)):
        if weights or option == "--weights":
            check(option, weights)
    if options.bits_per_weight is not None and options.weights in ggml.TYPES:
        raise FewbitError(f"--bits-per-weight chooses among int2 to int8, not for {options.weights}; leave one of them out")
    if options.bits_per_weight is not None and not method.calibrated:
        raise FewbitError("--bits-per-weight needs a method that calibrates, not rtn")
    if not out.parent.is_dir():
        raise FewbitError(f"{out}: the folder {out.parent} does not exist")
    found = source.open_source(folder)
    if text is None and method.calibrated:
        raise FewbitError(f"method {options.method} needs a text to calibrate on; give --calibration FILE.txt, or --method rtn")
    structure = blocks.read(found)
    for name, linear in blocks.linears(structure.blocks[0]).items():
        options.grid().check(f"{structure.prefix}0.{name}", linear.in_features)
    if options.head and blocks.head(structure) is None:
        raise FewbitError(f"--head {options.head}: the head is the embedding (tied), give --embedding instead")
    if options.embedding and blocks.embedding(structure) is None:
        raise FewbitError(f"--embedding {options.embedding}: the model's embedding does more than look up; leave it out")
    if not method.calibrated or text is None:
        return structure, None, calibration.NOTHING
    first = calibration.beginning(found.folder)
    ids = calibration.samples(calibration.tokens(found.folder, text), options.samples, options.length, str(text), first)
    blocks.check_ids(structure.model, ids, str(folder))
    return structure, ids, first


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
    shutil.rmtree(part_of(out), ignore_errors=True)
    return True


def _record(
    out: Path, structure: blocks.Structure, options: Options, said: dict[str, Any] | None, began: float
) -> dict[str, Any]:
    return {
        "artifact": str(out),
        "method": options.method,
        "blocks": len(structure.blocks),
        "bytes": artifact.size(out),
        "bytes_float": sum(p.stat().st_size for p in set(structure.source.shards.values())),
        "packed_share": _packed_share(out, structure),
        "seconds": time.perf_counter() - began,
        "peak_bytes": forecast.peak_bytes(),
        "forecast": said,
        "after_forecast": forecast.since(said.pop("began")) if said else None,  # what it is to be compared with
    }


def _packed_share(out: Path, structure: blocks.Structure) -> float:
    """Of the weights in the blocks (matrices and more dimensions), how many are packed; the rest is float."""
    weights = {
        f"{structure.prefix}{k}.{n}": p.numel()
        for k, b in enumerate(structure.blocks)
        for n, p in b.named_parameters()
        if p.ndim > 1
    }
    packed = {n.rpartition(".")[0] for n in Tensors(out) if n.endswith((".codes", ".blocks"))}
    return sum(count for n, count in weights.items() if n.removesuffix(".weight") in packed) / sum(weights.values())
