"""`fewbit formats [NAME…] [--value X]`."""

import json as jsonlib
import math
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table

from fewbit.cli import common
from fewbit.errors import FewbitError
from fewbit.numerics import blocks
from fewbit.numerics.formats import FORMATS, BlockFormat, FloatFormat, Format, IntFormat, cast, find


def formats(
    names: Annotated[list[str] | None, typer.Argument(help="formats to compare; all without")] = None,
    value: Annotated[list[float] | None, typer.Option(help="show what each format makes of this number; repeatable")] = None,
    json: Annotated[bool, typer.Option("--json", help="one JSON object on standard output")] = False,
) -> int:
    """Compare number formats: range, smallest numbers, precision, and what each does to a value."""
    records = [find(n) for n in names] if names else list(FORMATS.values())
    rows = {f.name: describe(f) | {"values": {repr(v): _outcome(v, f) for v in value or []}} for f in records}
    if json:
        print(jsonlib.dumps(rows))
        return 0
    table = Table(box=None, padding=(0, 1, 0, 0))
    properties = ["bits", "max", "smallest_normal", "smallest_subnormal", "epsilon", "levels", "beyond max"]
    shown = ["bits", "levels"] if value else properties
    for head in ["format", *shown, *(f"{v:g} becomes" for v in value or [])]:
        table.add_column(head.replace("_", "\n"), justify="left" if head == "format" else "right", no_wrap=True)
    for name, row in rows.items():
        table.add_row(name, *(_text(row[k]) for k in shown), *row["values"].values())
    console = common.console()
    common.print_table(table)
    if value and any(isinstance(f, IntFormat) for f in records):
        console.print("Integers and nf4 hold a value after division by a scale; here the scale is 1.", highlight=False)
    return 0


def describe(f: Format) -> dict[str, Any]:
    """Every derived property, None where the format has no such thing."""
    float_like = f.element if isinstance(f, BlockFormat) and isinstance(f.element, FloatFormat) else f
    is_float = isinstance(float_like, FloatFormat)
    row: dict[str, Any] = {"bits": f.bits, "levels": f.levels, "beyond max": "saturates"}
    row["max"] = f.element.max if isinstance(f, BlockFormat) else f.max
    for key in ("smallest_normal", "smallest_subnormal", "epsilon"):
        row[key] = getattr(float_like, key) if is_float else 1.0 if isinstance(f, IntFormat) and key != "epsilon" else None
    if isinstance(f, FloatFormat):
        row["beyond max"] = {"ieee": "infinity", "nan": "saturates", "none": "saturates"}[f.specials]
    if isinstance(f, BlockFormat):
        row["block"] = f"{f.block_size} share a {f.scale.name}"
    return row


def _outcome(value: float, f: Format) -> str:
    if not math.isfinite(value):
        raise FewbitError(f"--value {value}: give a finite number")
    if isinstance(f, BlockFormat):
        alone = blocks.dequantize(blocks.quantize(np.array([value], np.float32), f))[0]
        return f"{_text(float(alone), 7)} (alone in its block)"
    if isinstance(f, FloatFormat) and not f.signed and value <= 0:
        return "not held"
    found = cast(value, f)
    note = " (overflow)" if found.overflowed else " (underflow)" if found.underflowed else ""
    return _text(float(found.values), 7) + note


def _text(value: Any, digits: int = 3) -> str:
    if value is None:
        return "-"
    if isinstance(value, str) or (isinstance(value, int) and value < 10**6):
        return str(value)
    if math.isfinite(value) and value == round(value) and abs(value) < 10**6:
        return str(round(value))
    return f"{value:.{digits}g}"
