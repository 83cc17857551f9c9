"""`fewbit`: the verbs, and the exit statuses: 0 done, 1 tried and not reached, 2 bad input (one line), 130 Ctrl-C."""

import sys
from typing import Annotated

import typer

from fewbit.cli import bench, diff, evaluate, export, formats, inspect, llm, plan, quantize, report
from fewbit.errors import FewbitError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Take a trained network to few bits, measure what that cost, ship it.",
)


@app.callback(invoke_without_command=True)
def _options(version: Annotated[bool, typer.Option("--version", help="print the version")] = False) -> None:
    if version:
        import fewbit

        print(fewbit.__version__)
        raise typer.Exit


app.command("quantize")(quantize.quantize)
app.command("evaluate")(evaluate.evaluate)
app.command("bench")(bench.bench)
app.command("diff")(diff.diff)
app.command("export")(export.export)
app.command("inspect")(inspect.inspect)
app.command("formats")(formats.formats)
app.command("plan")(plan.plan)
app.command("report")(report.report)
app.add_typer(llm.app, name="llm")


def main() -> None:
    try:
        status = app(standalone_mode=False) or 0
        if status == 130:  # newer typers turn Ctrl-C into this status themselves
            raise KeyboardInterrupt
        sys.exit(status)
    except (KeyboardInterrupt, typer.Abort):
        _stop("interrupted; what was asked for was not written", 130)
    except FewbitError as e:
        _stop(str(e), 2)
    except Exception as e:
        if isinstance(e, OSError) and e.filename is not None:
            _stop(f"{e.filename}: {e.strerror}", 2)
        if not hasattr(e, "format_message"):
            raise
        _stop(e.format_message(), 2)


def _stop(line: str, status: int) -> None:
    print(f"fewbit: {' '.join(line.split())}", file=sys.stderr)
    sys.exit(status)
