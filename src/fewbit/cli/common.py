"""What the verbs share: progress on standard error, the evidence as a table or as one JSON object."""

import json
import os
import sys
import time
from importlib.util import find_spec
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from fewbit.cli.streams import say as say
from fewbit.errors import FewbitError, MissingExtra
from fewbit.escape import printable

EVERY = 30.0  # seconds between lines of progress
PIPED_WIDTH = 10_000  # characters of a line that nobody folds: a program reads it, or a pager

INTERRUPTED = "interrupted; what was asked for was not written"

HELP: Any = {  # of every Typer: plain text, which no narrow or ASCII terminal cuts
    "rich_markup_mode": None,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}

OBSERVATIONS = (  # of every verb that takes them
    ".npy array [n, ...] of n observations (of a network that remembers [episodes, steps, ...]), a .csv table with one a line, "
    "or, for several inputs, a .npz with an array named as each"
)

UNITS = {"training": "steps", "blocks": "", "windows": ""}


class Bar:
    """A progress callback with one bar a task; where standard error is no terminal, a line every EVERY seconds. A context."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[unit]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, Any] = {}
        self._lines, self._said = not console.is_terminal, time.monotonic()

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._progress.stop()

    def __call__(self, what: str, done: int, of: int) -> None:
        unit = UNITS.get(what, "episodes")
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=of, unit=unit)
        self._progress.update(self._tasks[what], completed=done, total=of)
        if self._lines and time.monotonic() - self._said >= EVERY:
            self._said = time.monotonic()
            say(f"fewbit: {what}: {done} of {of} {unit}".rstrip())


def console() -> Console:
    """Standard output; where it is no terminal, lines are as long as they are, unless COLUMNS says otherwise."""
    folded = sys.stdout.isatty() or "COLUMNS" in os.environ
    return PlainConsole(width=None if folded else PIPED_WIDTH)


class PlainConsole(Console):
    """Text is printed as it is: brackets are no markup, and control characters (line ends in headings apart) are seen."""

    def render_str(self, text: str, **options: Any) -> Text:
        lines = "\n".join(printable(line) for line in text.split("\n"))
        return super().render_str(lines, **options | {"markup": False, "emoji": False})


def print_table(table: Table) -> None:
    """A table of figures on standard output, as wide as it is: none is cut, a terminal that is too narrow breaks its lines."""
    width = Console(width=PIPED_WIDTH).measure(table).maximum
    Console(width=max(width, console().width)).print(table)


def needs(extra: str, *packages: str) -> None:
    """Refuse before any work where a package is missing."""
    for name in packages:
        if find_spec(name) is None:
            raise MissingExtra(name, extra)


def belongs(to: str, options: dict[str, Any]) -> None:
    """Refuse the first of these options that is given: without `to` it would do nothing."""
    for name, value in options.items():
        if value not in (None, False, ""):
            raise FewbitError(f"{name} belongs to {to}, and does nothing here; leave it out")


def environment_arguments(given: list[str] | None) -> dict[str, Any]:
    """["continuous=true"] -> {"continuous": True}; values are JSON, or text."""
    found = {}
    for item in given or []:
        key, eq, value = item.partition("=")
        if not eq:
            raise FewbitError(f"--env-arg {item}: give NAME=VALUE")
        if key in found:
            raise FewbitError(f"--env-arg {item}: {key} is given more than once")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found


def states(given: list[str] | None) -> dict[str, tuple[str, Any]]:
    """["h=h_next"] -> {"h": ("h_next", None)}."""
    found: dict[str, tuple[str, Any]] = {}
    for item in given or []:
        name, eq, output = item.partition("=")
        if not (eq and name and output) or name in found:
            raise FewbitError(f"--state {item}: give INPUT=OUTPUT, each input once")
        found[name] = (output, None)
    return found


def layer_formats(given: list[str] | None) -> tuple[tuple[str, str], ...]:
    """["node_linear=int8"] -> (("node_linear", "int8"),)."""
    for item in given or []:
        if not all(item.rpartition("=")[::2]):
            raise FewbitError(f"--layer {item}: give NAME=FORMAT")
    return tuple((item.rpartition("=")[0], item.rpartition("=")[2]) for item in given or [])


def show(record: dict[str, Any], as_json: bool, extra: dict[str, Any] | None = None) -> None:
    if as_json:
        print(json.dumps((extra or {}) | record))
        return
    table = Table(show_header=False, box=None, padding=(0, 2))
    for key, value in (extra or {}).items():
        table.add_row(key, printable(str(value)))
    for key in ("return_float", "return_quantized", "return_random"):
        if key in record:
            r = record[key]
            table.add_row(key.replace("_", " "), f"{r['mean']:.1f} ± {r['se']:.1f} (standard error, {r['n']} episodes)")
    if record.get("kept") is not None:
        low, high = record["kept_ci95"]
        claim = f"   {record['verdict']} at {record['keep']:.0%}" if "keep" in record else ""
        table.add_row("kept", f"{record['kept']:.1%}   95% interval {low:.1%} to {high:.1%}{printable(claim)}")
        if "rare_failure_share" in record:
            share, cost = record["rare_failure_share"], record["rare_failure_cost"]
            table.add_row(
                "rare failures",
                f"{record['return_quantized']['n']} episodes leave room for unseen ones in up to {share:.1%} (rule of three): "
                f"{cost:.1%} of kept, in the interval",
            )
    elif "verdict" in record:
        table.add_row("kept", "undefined: the float policy is not measurably better than random actions")
    measured = record if "action_agreement" in record or "action_rmse" in record else record.get("fidelity")
    if measured:
        table.add_row(*fidelity(measured))
    for what in ("terminated", "success"):
        if f"{what}_quantized" in record:
            table.add_row(what, _shares(record, what))
    if "size_bytes" in record:
        size = f"{record['size_bytes']:,} bytes"
        table.add_row(
            "file",
            size
            + (
                f" (float {record['size_float_bytes']:,}; codes alone {record['packed_bytes']:,})"
                if "size_float_bytes" in record
                else ""
            ),
        )
    if "latency_us" in record:
        latency = f"{record['latency_us']:.2f} us an action in {record['latency_executor']}"
        if "latency_float_us" in record:
            latency += f" (float {record['latency_float_us']:.1f} in {record['latency_float_executor']})"
        table.add_row("latency", printable(latency))
    if record.get("source_matches", True) is None:
        table.add_row("source", f"{printable(record['source'])}: not known to be what the artifact was made from")
    if "exact" in record:
        floats = f"{', '.join(record['floats'])} run" if record.get("floats") else "part of the graph runs"
        table.add_row("exact", "yes" if record["exact"] else f"no: {floats} in float")
    console().print(table)


def fidelity(found: dict[str, Any]) -> tuple[str, str]:
    """(what, how much) of an action error: evidence's, with its noise floor, or an artifact's on what it was calibrated on."""
    states = found.get("states", found.get("fidelity_states", 0))
    floor = found.get("fidelity_noise_floor")
    if "action_agreement" in found:
        noise = "" if floor is None else f" (noise floor {floor:.2%})"
        return "same action", f"{found['action_agreement']:.2%} of {states} states{noise}"
    noise = "" if floor is None else f" (noise floor {floor:.3%})"
    text = f"{found['action_rmse']:.3%} of the range, RMSE over {states} states{noise}"
    if "action_worst" in found:
        text += f"; 99.9% of them within {found['action_p999']:.2%}, the worst {found['action_worst']:.2%}"
    return "action error", text
def _shares(record: dict[str, Any], what: str) -> str:
    """How many episodes ended so, of each policy, with the 95% interval of the probability."""
    parts = []
    for who in ("float", "quantized", "random"):
        if f"{what}_{who}" in record:
            r = record[f"{what}_{who}"]
            parts.append(f"{who} {r['count']} of {r['n']} ({r['ci95'][0]:.1%} to {r['ci95'][1]:.1%})")
    return "   ".join(parts)


def show_pairs(record: dict[str, Any], as_json: bool) -> None:
    """A line a key."""
    if as_json:
        print(json.dumps(record))
        return
    table = Table(show_header=False, box=None, padding=(0, 2))
    for key, value in record.items():
        table.add_row(
            key.replace("_", " "),
            f"{value:,}" if isinstance(value, int) else f"{value:.6g}" if isinstance(value, float) else str(value),
        )
    console().print(table)


def show_search(tried: list[dict[str, Any]]) -> None:
    """Every rung: what it changed, what it kept where it was chosen and, if it got there, where it is reported."""
    if not tried:
        return
    table = Table("tried", "codes", "kept where chosen", "kept where reported", box=None, padding=(0, 2, 0, 0))
    for rung in tried:
        seconds = rung.get("training_seconds")
        what = rung["tried"] + (f" ({seconds:.0f} s)" if seconds else "")
        table.add_row(what, f"{rung['chosen_on']['packed_bytes']:,}", _kept(rung["chosen_on"]), _kept(rung["reported"]))
    console().print(table)


def _kept(record: dict[str, Any] | None) -> str:
    if record is None:
        return "-"
    if record["kept"] is None:
        return "undefined"
    low, high = record["kept_ci95"]
    alike = ", same actions" if record["verdict"] == "undecided" and record["fidelity_met"] else ""
    return f"{record['kept']:.1%} ({low:.1%} to {high:.1%}) {record['verdict']}{alike}"


def status(record: dict[str, Any], judged: bool) -> int:
    """0 on pass, or on undecided with fidelity met; 1 otherwise; 0 where nothing was asked for."""
    if not judged or "verdict" not in record:
        return 0
    return 0 if record["verdict"] == "pass" or (record["verdict"] == "undecided" and record.get("fidelity_met")) else 1
