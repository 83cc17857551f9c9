"""`fewbit`: the verbs, and the exit statuses: 0 done, 1 tried and not reached, 2 bad input (one line), 130 Ctrl-C."""

import sys
import warnings
from typing import Annotated

import typer

from fewbit.cli import bench, diff, evaluate, export, formats, inspect, llm, plan, quantize, report, streams
from fewbit.cli.common import HELP, INTERRUPTED
from fewbit.errors import FewbitError, FewbitWarning, missing

app = typer.Typer(
    pretty_exceptions_enable=False,
    help="Take a trained network to few bits, measure what that cost, ship it.",
    epilog="fewbit VERB --help says what a verb takes, with an example.",
    **HELP,
)


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="print the version")] = False
) -> None:
    if version:
        import fewbit

        print(fewbit.__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


VERBS = (
    (quantize.quantize, "few bits for a trained policy", "quantize policy.zip -o policy.int8.onnx --env HalfCheetah-v5"),
    (evaluate.evaluate, "what share of the return it keeps", "evaluate policy.int8.onnx --env Hopper-v5 --against policy.zip"),
    (bench.bench, "time it beside other runtimes", "bench policy.int8.onnx --batch 1,256"),
    (diff.diff, "where the error comes in", "diff policy.zip policy.int8.onnx --observations observations.npy"),
    (export.export, "C, ONNX, LiteRT or a TensorRT engine", "export policy.int8.onnx --to c -o firmware/policy"),
    (inspect.inspect, "layers, formats, and what it cost", "inspect policy.int8.onnx"),
    (formats.formats, "compare number formats", "formats int4 nf4 float8_e4m3fn --value 0.3"),
    (plan.plan, "memory and speed limits, by device", "plan 7B --device here"),
    (report.report, "one page about an artifact", "report policy.int8.onnx -o report.html --against policy.zip"),
)
for verb, short, example in VERBS:
    app.command(verb.__name__, short_help=short, epilog=f"Example: fewbit {example}")(verb)
app.add_typer(llm.app, name="llm", short_help="the same for language models")


@app.command("help", short_help="what a verb takes")
def show_help(
    context: typer.Context, verb: Annotated[list[str] | None, typer.Argument(help="quantize, or llm generate, say")] = None
) -> None:
    """Say what a verb takes: the same as fewbit VERB --help."""
    app([*(verb or []), "--help"], prog_name=context.parent.info_name if context.parent else None, standalone_mode=False)


def main() -> None:
    """Run the command line and end the process with its exit status."""
    streams.prepare()
    show = warnings.showwarning
    warnings.showwarning = lambda m, kind, *rest: _warn(str(m)) if kind is FewbitWarning else show(m, kind, *rest)
    status, line = _run()
    if line:
        streams.say(f"fewbit: {' '.join(line.split())}")
    sys.exit(streams.finish(status))


def _warn(line: str) -> None:
    streams.say(f"fewbit: warning: {' '.join(line.split())}")


def _run() -> tuple[int, str]:
    """(exit status, the one line that says why it is not 0)."""
    try:
        status = app(standalone_mode=False) or 0
        return (130, INTERRUPTED) if status == 130 else (status, "")  # newer typers turn Ctrl-C into this status themselves
    except (KeyboardInterrupt, typer.Abort):
        return 130, INTERRUPTED
    except FewbitError as e:
        return 2, str(e)
    except ModuleNotFoundError as e:
        found = missing(e)
        if found is None:
            raise
        return 2, str(found)
    except OSError as e:
        where = e.filename or "standard output or the folder of temporary files"  # files of our own are always named
        return 2, f"{where}: {e.strerror or e}"
    except Exception as e:
        if not hasattr(e, "format_message"):
            raise
        return 2, e.format_message()
