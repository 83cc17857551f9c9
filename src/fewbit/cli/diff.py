"""`fewbit diff SOURCE ARTIFACT --observations FILE`."""

import json as jsonlib
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Column, Table

from fewbit.cli import common
from fewbit.escape import printable


def diff(
    source: Annotated[str, typer.Argument(help="the float source: a Stable-Baselines3 .zip, an .onnx file or a TorchScript .pt")],
    artifact: Annotated[Path, typer.Argument(help="what was made from it")],
    observations: Annotated[Path, typer.Option(help=f"what to compare on: {common.OBSERVATIONS}")],
    normalizer: Annotated[Path | None, typer.Option(help="vecnormalize.pkl of the source")] = None,
    trust_torchscript: Annotated[bool, typer.Option(help="load a .pt file, which can execute code")] = False,
    json: Annotated[bool, typer.Option("--json", help="one JSON object on standard output")] = False,
) -> int:
    """Show how far the actions are off, and where that comes in, tensor by tensor: the step alone, and all before it too.

    The network's outputs come first, then the worst. SQNR: signal over error, more is better; saturated: at an end of its range.
    """
    from fewbit import pipeline

    found = pipeline.compare(source, artifact, observations, normalizer, trust_torchscript)
    if json:
        print(jsonlib.dumps({"actions": found.actions, "tensors": [asdict(r) for r in found.tensors]}))
        return 0
    console = common.console()
    console.print(": ".join(common.fidelity(found.actions)), markup=False, highlight=False)
    figures = (
        Column(head, overflow="fold") for head in ("SQNR\nalone", "SQNR\nso far", "largest\nerror", "satu-\nrated", "dead")
    )
    table = Table(Column("tensor", overflow="fold", min_width=10), "codes", *figures, box=None, padding=(0, 1, 0, 0))
    for r in sorted(found.tensors, key=lambda r: r.tensor not in found.outputs):
        whole = r.format == "float32" and "action_agreement" in found.actions and r.tensor in found.outputs
        decibels = ["-" if whole else f"{v:.1f} dB" for v in (r.sqnr_local, r.sqnr_accumulated)]  # of a choice they say nothing
        table.add_row(printable(r.tensor), r.format, *decibels, f"{r.max_error:.3g}", f"{r.saturated:.2%}", f"{r.dead:.1%}")
    console.print(table)
    return 0
