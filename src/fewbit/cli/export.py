"""`fewbit export ARTIFACT --to TARGET`."""

import json as jsonlib
from pathlib import Path
from typing import Annotated, Any

import typer

from fewbit import targets
from fewbit.cli import streams
from fewbit.files import check_writable
from fewbit.recorded import read_array


def export(
    artifact: Annotated[Path, typer.Argument(help="an artifact")],
    to: Annotated[str, typer.Option(help=f"one of {', '.join(targets.PLACES)}")],
    output: Annotated[Path, typer.Option("-o", "--output", help="the folder (c) or file to write; replaces what is there")],
    target: Annotated[str, typer.Option(help=f"onnx: whose rules, one of {', '.join(targets.RUNTIMES)}")] = "",
    name: Annotated[str, typer.Option(help="c: the prefix of files and functions; policy")] = "",
    layout: Annotated[str, typer.Option(help="c: plain, arduino (PlatformIO too), esp-idf or zephyr")] = "",
    raw: Annotated[str, typer.Option(help="c: observations are a sensor's integers of this type, int16 for example")] = "",
    raw_factors: Annotated[Path | None, typer.Option(help="c: .npy, what one of them is worth, one number or one each")] = None,
    raw_offsets: Annotated[Path | None, typer.Option(help="c: .npy, what is added then")] = None,
    json: Annotated[bool, typer.Option("--json", help="one JSON object on standard output")] = False,
) -> int:
    """Write an artifact for where it must run; c: one .c and one .h that any C99 compiler takes; tensorrt-rtx: an engine."""
    given: dict[str, Any] = {"target": target, "name": name, "layout": layout, "raw": raw}
    given = {k: v for k, v in given.items() if v}
    for option, path in (("raw_factors", raw_factors), ("raw_offsets", raw_offsets)):
        if path is not None:
            given[option] = read_array(path)
    if output.is_file():
        check_writable(output, artifact)
    made = targets.export(artifact, to, output, **given)
    if json:
        print(jsonlib.dumps(made))
        return 0
    for file in made["files"]:
        streams.out(file)
    for layer, read in made.get("layers", {}).items():
        streams.out(f"{layer}  {read}")
    if "flash_bytes" in made:
        flash, memory = made["flash_bytes"], made["ram_bytes"]
        streams.out(f"flash {flash:,} bytes of constants (code beside them), RAM {memory:,} bytes static")
        if made["state_bytes"]:
            streams.out(f"and {made['state_bytes']:,} bytes of the caller's for what each robot's policy remembers")
    if "executed" in made:
        streams.out(made["executed"])
    return 0
