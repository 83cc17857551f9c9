"""`fewbit inspect ARTIFACT`."""

import json as jsonlib
from pathlib import Path
from typing import Annotated, Any

import onnx_ir as ir
import typer
from rich.console import Console
from rich.table import Column, Table

from fewbit.cli import common
from fewbit.engine import flatten
from fewbit.engine import program as p
from fewbit.engine.description import describe
from fewbit.engine.load import quickest
from fewbit.errors import FewbitError
from fewbit.escape import printable
from fewbit.graph import metadata
from fewbit.graph.read import read
from fewbit.graph.record import known


def inspect(
    artifact: Annotated[Path, typer.Argument(help="an artifact, or any ONNX policy")],
    sensitivity: Annotated[bool, typer.Option("--sensitivity", help="of a float source: what each layer alone costs")] = False,
    env: Annotated[str | None, typer.Option(help="with --sensitivity: the environment to measure in")] = None,
    weights: Annotated[str | None, typer.Option(help="with --sensitivity: the format of the one layer (default int4)")] = None,
    episodes: Annotated[int | None, typer.Option(help="with --sensitivity: of each layer (default 20)")] = None,
    trust_torchscript: Annotated[bool, typer.Option(help="with --sensitivity: load a .pt file, which can execute code")] = False,
    json: Annotated[bool, typer.Option("--json", help="one JSON object on standard output")] = False,
) -> int:
    """Show a policy: its contract, its layers and formats, how it was made and what it cost."""
    if sensitivity:
        return _sensitivity(artifact, env, weights or "int4", 20 if episodes is None else episodes, json, trust_torchscript)
    if env is not None:
        raise FewbitError("--env belongs to --sensitivity; fewbit evaluate measures an artifact in an environment")
    common.belongs("--sensitivity", {"--weights": weights, "--episodes": episodes, "--trust-torchscript": trust_torchscript})
    model = read(artifact)
    described, record = describe(model), known(metadata.read(model))
    if described.program is None:
        quickest(model)  # refuses what ONNX Runtime does not run either
    program = described.program
    steps = [description(s) for s in program.steps] if program is not None else []
    if json:
        ends = {"inputs": program.inputs, "outputs": program.outputs} if program is not None else _ends(model)
        native = described.executor.removeprefix("native ") if not described.reason else f"no ({described.reason})"
        print(jsonlib.dumps(ends | {"exact": described.exact, "steps": steps, "native": native} | record))
        return 0
    console = common.console()
    _show_steps(console, steps)
    table = Table(show_header=False, box=None, padding=(0, 2))
    for what, value in [*_contract(record), *_recipe(record)]:
        table.add_row(what, printable(value))
    console.print(table, highlight=False)
    figures = {"fidelity": record["fidelity"]} | record["evidence"]
    common.show(figures | {"exact": described.exact, "floats": _floats(program)}, False)
    engine = f"{described.executor}" if not described.reason else f"ONNX Runtime, as fewbit's engine cannot: {described.reason}"
    console.print(f"  runs in  {printable(engine)}", highlight=False)
    return 0


def _ends(model: ir.Model) -> dict[str, Any]:
    shapes = {v.name: [d if isinstance(d, int) else None for d in (v.shape or [])[1:]] for v in model.graph.inputs}
    return {"inputs": shapes, "outputs": [v.name for v in model.graph.outputs]}


def _show_steps(console: Console, steps: list[tuple[str, str, str]]) -> None:
    """A row a step, and what the kinds of steps are."""
    if not steps:
        return
    table = Table(Column("step", no_wrap=True), Column("what", overflow="fold"), "codes", box=None, padding=(0, 2))
    for kind, what, codes in steps:
        table.add_row(kind, printable(what), codes)
    console.print(table)
    legend = Table(show_header=False, box=None, padding=(0, 2), title_justify="left")
    for kind in dict.fromkeys(kind for kind, _, _ in steps):
        legend.add_row(kind, LEGEND[kind])
    console.print("\nS1 to S8 are the clauses of docs/semantics.md:", highlight=False)
    console.print(legend, highlight=False)
    console.print()


def _floats(program: p.Program | None) -> list[str]:
    """Operators that run in float."""
    steps = program.steps if program is not None else []
    return sorted({s.op for s in steps if isinstance(s, p.Float) and s.op not in MOVING})


def _contract(record: dict[str, Any]) -> list[tuple[str, str]]:
    """What goes in and comes out."""
    contract = record.get("contract") or {}
    return [(key.replace("_", " "), _spoken(value)) for key, value in contract.items() if value is not None]


def _spoken(value: Any) -> str:
    """Shapes by name, the space of an action, or JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict) and value.get("type") == "Box":
        ends = [set(value.get(k) or []) for k in ("low", "high")]
        between = f", from {min(ends[0]):g} to {max(ends[1]):g}" if all(len(e) == 1 for e in ends) else ""
        return f"Box {value.get('shape')}{between}"
    if isinstance(value, dict) and all(isinstance(v, list) for v in value.values()):
        return ", ".join(f"{name} {jsonlib.dumps(shape)}" for name, shape in value.items())
    return jsonlib.dumps(value)


def _recipe(record: dict[str, Any]) -> list[tuple[str, str]]:
    """How it was made."""
    recipe = dict(record.get("recipe") or {})
    digests = {k: str(recipe.pop(k, ""))[:12] for k in ("source_sha256", "calibration_sha256")}
    if "source" in recipe:
        recipe["source"] = f"{recipe['source']} (SHA-256 {digests['source_sha256']}...)"
    recipe["layers"] = ", ".join("=".join(map(str, pair)) for pair in recipe.get("layers") or [])
    return [(k.replace("_", " "), str(v)) for k, v in recipe.items() if v not in ("", None, {}, "any")]


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
    common.print_table(table)
    return 0


MOVING = {"Concat", *flatten.MOVING}
LEGEND = {
    "S1 entry": "real numbers become integers",
    "S2-S4 linear": "integer products, summed in 32 bits or more, rounded to the next codes",
    "S2 patches": "a convolution's windows, as rows",
    "S4 rescale": "integers to another scale",
    "S5 add": "two tensors of integers",
    "S5 multiply": "two tensors of integers",
    "S5 moved": "elements change their places",
    "S6 table": "a function of one value, looked up",
    "S6 lookup": "a function of one value, looked up",
    "S7 exit": "integers become real numbers",
    "float": "float32 arithmetic: bits may differ between executors",
}


def description(step: p.Step) -> tuple[str, str, str]:
    """(clause, what it does, the codes it makes); the clauses are LEGEND's."""
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
