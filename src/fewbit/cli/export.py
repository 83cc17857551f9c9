"""`fewbit export ARTIFACT --to TARGET`."""

import json as jsonlib
from pathlib import Path
from typing import Annotated

import typer

from fewbit import targets


def export(
    artifact: Annotated[Path, typer.Argument(help="an artifact")],
    to: Annotated[str, typer.Option(help=f"one of {', '.join(targets.TARGETS)}")],
    output: Annotated[Path, typer.Option("-o", "--output", help="the folder to write into")],
    name: Annotated[str, typer.Option(help="the prefix of files and functions")] = "policy",
    layout: Annotated[str, typer.Option(help="c: plain, arduino (PlatformIO too), esp-idf or zephyr")] = "plain",
    json: Annotated[bool, typer.Option("--json", help="one JSON object on standard output")] = False,
) -> int:
    """Write an artifact for where it must run; c: one .c and one .h that any C99 compiler takes."""
    made = targets.export(artifact, to, output, name=name, layout=layout)
    if json:
        print(jsonlib.dumps(made))
        return 0
    for file in made["files"]:
        print(file)
    print(f"flash {made['flash_bytes']:,} bytes of constants (code beside them), RAM {made['ram_bytes']:,} bytes static")
    return 0
