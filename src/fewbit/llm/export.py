"""`fewbit llm export`: a checkpoint in the layout that other programs load, quantized on the way if it is still float.

Adding a place is one module and one line in PLACES. The module has `check(source, kind, given)`, which refuses before any
work, `export(folder, out, kind, given)`, `options(source, kind, given)`, how a float checkpoint is quantized for it, and
`plain_kind(kind, given)`, true of what needs no walk over the blocks.
"""

import importlib
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from fewbit import files
from fewbit.errors import FewbitError
from fewbit.llm.options import Options

PLACES = {
    "gguf": "fewbit.llm.gguf",
    "compressed-tensors": "fewbit.llm.compressed_tensors",
    "gptq": "fewbit.llm.gptq_layout",
    "awq": "fewbit.llm.awq_layout",
}


def export(
    source: Path,
    out: Path,
    to: str,
    kind: str = "",
    given: Options | None = None,
    calibration: Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    say: Callable[[str], None] | None = None,
    importance: Path | None = None,
    consumer: str = "",
) -> dict[str, Any]:
    """Write OUT. The record of what was written.

    source: what `fewbit llm quantize` wrote, or a float checkpoint, first quantized to `kind` in a folder beside OUT (the
    same command goes on there after a kill). consumer: one of llm/consumers, which must run what is written.
    """
    from fewbit.llm import artifact, blocks, consumers, contents, quantize

    place, given = find(to), given or Options()
    files.check_new(out)
    if not source.is_dir():
        raise FewbitError(f"{source}: no such folder; give what `fewbit llm quantize` wrote, or the folder of a checkpoint")
    place.check(source, kind, given)
    if consumer:
        consumers.check(consumer, source, to, kind, given)
    contents.check(blocks.build(source), source)
    if (artifact.is_artifact(source) or place.plain_kind(kind, given)) and importance:
        raise FewbitError(f"--imatrix {importance}: nothing is rounded under it on the way to this; leave it out")
    known = consumers.known(source, to, kind, given)
    runs = ", ".join(c for c, why in known.items() if not why)
    if not runs and say:
        say(f"{out}: none of what fewbit knows of {to} runs this. {'. '.join(known.values())}")
    with files.alone(out):
        files.check_new(out)  # what another run may have finished meanwhile
        if artifact.is_artifact(source) or place.plain_kind(kind, given):
            return place.export(source, out, kind, given) | {"runs_in": runs}
        solved = out.with_name(f".{out.name}.solved")
        made = quantize.quantize(source, solved, place.options(source, kind, given), calibration, progress, say, importance)
        record = place.export(solved, out, "", given)
        shutil.rmtree(solved)
        return record | {"seconds": made["seconds"], "peak_bytes": made["peak_bytes"], "runs_in": runs}


def find(to: str) -> ModuleType:
    if to not in PLACES:
        raise FewbitError(f"--to {to} is unknown; choose one of {', '.join(PLACES)}")
    return importlib.import_module(PLACES[to])
