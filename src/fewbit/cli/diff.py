"""`fewbit diff SOURCE ARTIFACT --observations FILE`."""

import json as jsonlib
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from fewbit.cli import common


def diff(
    source: Annotated[str, typer.Argument(help="the float source: a Stable-Baselines3 .zip, an .onnx file or a TorchScript .pt")],
    artifact: Annotated[Path, typer.Argument(help="what was made from it")],
    observations: Annotated[Path, typer.Option(help=f"what to compare on: {common.OBSERVATIONS}")],
    normalizer: Annotated[Path | None, typer.Option(help="vecnormalize.pkl of the source")] = None,
    trust_torchscript: Annotated[bool, typer.Option(help="load a .pt file, which can execute code")] = False,
    json: Annotated[bool, typer.Option("--json", help="one JSON object on standard output")] = False,
) -> int:
    """Show where the error comes in, tensor by tensor: the step alone, and all that came before it too. Worst first."""
    from fewbit import pipeline

    rows = pipeline.diff(source, artifact, observations, normalizer, trust_torchscript)
    if json:
        print(jsonlib.dumps({"tensors": [asdict(r) for r in rows]}))
        return 0
    columns = ("tensor", "codes", "SQNR alone", "SQNR so far", "largest error", "saturated", "dead")
    table = Table(*columns, box=None, padding=(0, 2, 0, 0))
    for r in rows:
        decibels = [f"{v:.1f} dB" for v in (r.sqnr_local, r.sqnr_accumulated)]
        table.add_row(r.tensor, r.format, *decibels, f"{r.max_error:.3g}", f"{r.saturated:.2%}", f"{r.dead:.1%}")
    common.console().print(table)
    return 0
