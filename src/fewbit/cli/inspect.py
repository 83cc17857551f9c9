"""`fewbit inspect ARTIFACT`."""

import json as jsonlib
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from fewbit.cli import common
from fewbit.engine import flatten, native
from fewbit.engine import program as p
from fewbit.engine.lower import lower
from fewbit.errors import FewbitError
from fewbit.graph import metadata
from fewbit.graph.read import read


def inspect(
    artifact: Annotated[Path, typer.Argument(help="an artifact, or any ONNX policy")],
    sensitivity: Annotated[bool, typer.Option("--sensitivity", help="of a float source: what each layer alone costs")] = False,
    env: Annotated[str | None, typer.Option(help="with --sensitivity: the environment to measure in")] = None,
    weights: Annotated[str, typer.Option(help="with --sensitivity: the format of the one layer")] = "int4",
    episodes: Annotated[int, typer.Option(help="with --sensitivity: of each layer")] = 20,
    trust_torchscript: Annotated[bool, typer.Option(help="with --sensitivity: load a .pt file, which can execute code")] = False,
    json: Annotated[bool, typer.Option("--json", help="one JSON object on standard output")] = False,
) -> int:
    """Show a policy: its contract, its layers and formats, how it was made and what it cost."""
    if sensitivity:
        return _sensitivity(artifact, env, weights, episodes, json, trust_torchscript)
    if env is not None:
        raise FewbitError("--env belongs to --sensitivity; fewbit evaluate measures an artifact in an environment")
    model = read(artifact)
    program, record = lower(model), metadata.read(model)
    steps = [describe(s) for s in program.steps]
    if json:
        shape = {"inputs": program.inputs, "outputs": program.outputs, "exact": program.exact, "steps": steps}
        print(jsonlib.dumps(shape | {"native": _native(program)} | record))
        return 0
    console = common.console()
    table = Table("step", "what", "codes", box=None, padding=(0, 2))
    for kind, what, codes in steps:
        table.add_row(kind, escape(what), codes)
    console.print(table)
    for part in ("contract", "recipe"):
        for key, value in (record.get(part) or {}).items():
            console.print(f"{part} {key}: {jsonlib.dumps(value)}", markup=False, highlight=False)
    common.show((record.get("evidence") or {}) | {"exact": program.exact}, False)
    console.print(f"native engine: {_native(program)}", markup=False, highlight=False)
    return 0


def _native(program: p.Program) -> str:
    """The instruction set whose kernels would run here, or why none."""
    try:
        return native.load(program).instruction_set
    except FewbitError as e:
        return f"no ({e})"


def _sensitivity(source: Path, env: str | None, weights: str, episodes: int, json: bool, trust_torchscript: bool) -> int:
    from fewbit import pipeline

    if env is None:
        raise FewbitError("--sensitivity measures the return; give --env ID")
    with common.Bar() as bar:
        rows = pipeline.sensitivity(
            str(source), env, weights, episodes=episodes, progress=bar, trust_torchscript=trust_torchscript
        )
    if json:
        print(jsonlib.dumps({"layers": rows}))
        return 0
    table = Table(
        "layer", f"kept at {weights}", "95% interval", "action error", "its output's SQNR", box=None, padding=(0, 2, 0, 0)
    )
    for row in rows:
        low, high = row["kept_ci95"]
        error = f"{row['action_rmse']:.3%}" if "action_rmse" in row else f"{1 - row['action_agreement']:.3%} differ"
        kept = ("undefined", "-") if row["kept"] is None else (f"{row['kept']:.1%}", f"{low:.1%} to {high:.1%}")
        table.add_row(row["layer"], *kept, error, "-" if row["sqnr_local"] is None else f"{row['sqnr_local']:.1f} dB")
    common.console().print(table)
    return 0


MOVING = {"Concat", *flatten.MOVING}


def describe(step: p.Step) -> tuple[str, str, str]:
    """(clause, what it does, the codes it makes)."""
    match step:
        case p.Quantize():
            return "S1 entry", f"scale {step.scale:g}", step.format.name
        case p.Linear():
            shape = f"{step.weight.shape[1]} -> {step.weight.shape[0]}, |acc| < 2^{step.bound.bit_length()}"
            return (
                ("S7 exit" if step.format is None else "S2-S4 linear"),
                shape,
                "float32" if step.format is None else step.format.name,
            )
        case p.Patches():
            return "S2 patches", f"kernel {step.window.kernel}, strides {step.window.strides}", "-"
        case p.Table():
            return "S6 table", step.function, step.format.name
        case p.Dequantize():
            return "S7 exit", f"scale {float(step.scale.reshape(-1)[0]):g}", "float32"
        case p.Lookup():
            return "S6 lookup", step.function, step.format.name
        case p.Rescale():
            return "S4 rescale", "to another scale", step.format.name
        case p.Add() | p.Multiply():
            return f"S5 {type(step).__name__.lower()}", f"{step.a}, {step.b}", step.format.name
        case p.Float() if step.op in MOVING:
            return "S5 moved", step.op, "-"
        case p.Float():
            return "float", step.op, "float32"
