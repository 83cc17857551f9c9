"""`fewbit llm eval OUT --tasks FILE… --against MODEL_DIR`."""

import json as jsonlib
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from fewbit.cli import common
from fewbit.errors import FewbitError


def evaluate(
    folder: Annotated[Path, typer.Argument(help="what `fewbit llm quantize` wrote, or any checkpoint")],
    tasks: Annotated[
        list[Path], typer.Option(help="questions as .jsonl, or a task of lm-evaluation-harness as .yaml; repeatable")
    ],
    against: Annotated[Path | None, typer.Option(help="the float checkpoint: compared question by question")] = None,
    limit: Annotated[int | None, typer.Option(help="at most so many questions of each task")] = None,
    batch: Annotated[int, typer.Option(help="sequences at a time")] = 8,
    json: Annotated[bool, typer.Option("--json", help="one JSON object on standard output")] = False,
) -> int:
    """Tasks of lm-evaluation-harness, from files, on a model and beside its float original."""
    common.needs("llm", "torch", "safetensors", "transformers")
    common.needs("eval", "lm_eval")
    from fewbit.llm import evaluate as e

    if batch < 1 or (limit is not None and limit < 1):
        raise FewbitError("--limit and --batch must be at least 1")
    for path in (folder, against):
        if path is not None and not path.is_dir():
            raise FewbitError(f"{path}: no such folder; give the folder of a checkpoint or of an artifact")
    found = e.evaluate(folder, tasks, against, limit, batch)
    if json:
        print(jsonlib.dumps(found))
        return 0
    table = Table("task", "metric", "questions", "value (95%)", "float", "difference (95%)", "better, worse", box=None)
    for name, metrics in found.items():
        for metric, r in metrics.items():
            low, high = r["ci95"]
            cells = [name, metric, str(r["n"]), f"{r['value']:.3f} ({low:.3f} to {high:.3f})"]
            if "float" in r:
                low, high = r["difference_ci95"]
                cells += [
                    f"{r['float']:.3f}",
                    f"{r['difference']:+.3f} ({low:+.3f} to {high:+.3f})",
                    f"{r['better']}, {r['worse']}",
                ]
            table.add_row(*cells)
    common.print_table(table)
    return 0
