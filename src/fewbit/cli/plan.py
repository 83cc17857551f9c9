"""`fewbit plan MODEL-OR-PARAMETERS`."""

import json as jsonlib
import math
import re
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fewbit.cli import common
from fewbit.devices import DEVICES, Device
from fewbit.errors import FewbitError
from fewbit.escape import printable

PREFIX = {"K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
MARK = {"memory": "m", "on-chip": "o", "compute": "c", "none": ""}
SHOWN = ("float32", "float16", "int8", "int4", "int2")  # int3 is in the sizes and in --json


def plan(
    model: Annotated[str, typer.Argument(help="7B, 350M, 124e6; or an SB3 .zip, an .onnx or .pt file, a Hugging Face folder")],
    device: Annotated[
        list[str] | None,
        typer.Option(help="a name of the table, here (measured), or bandwidth=100GB/s,memory=16GB[,ops=10TOPS]; repeatable"),
    ] = None,
    context: Annotated[int, typer.Option(help="tokens in the KV cache of each sequence")] = 4096,
    batch: Annotated[int, typer.Option(help="sequences, or observations, at once")] = 1,
    kv: Annotated[str, typer.Option(help="KV cache: float16 or int8")] = "float16",
    group_size: Annotated[int, typer.Option(help="weights that share a scale and zero point in int4, int3, int2")] = 128,
    trust_torchscript: Annotated[bool, typer.Option(help="load a .pt file, which can execute code")] = False,
    json: Annotated[bool, typer.Option("--json", help="one JSON object on standard output")] = False,
) -> int:
    """Say what a model costs in memory in each format, and how fast devices can run it at most, and why."""
    from fewbit import plan as p

    job = p.Job(context, batch, kv, group_size)
    chosen = [find(d) for d in device] if device else list(DEVICES.values())  # before the model: quick to refuse
    described = p.load(model, trust_torchscript)
    if described.shape is None:
        common.belongs("a language model", {"--context": context != 4096 and context, "--kv": kv != "float16" and kv})
    measure = any(d is None for d in chosen)
    points = []
    if measure:
        from fewbit import machine

        with Console(stderr=True).status("measuring this machine"):
            own, points = machine.here(), machine.wall()
        chosen = [d or own for d in chosen]
    record = _record(described, [d for d in chosen if d], job)
    if measure:
        record["memory_wall"] = {"kernels": machine.KERNELS, "caches": machine.caches(), "points": [asdict(x) for x in points]}
    if json:
        print(jsonlib.dumps(record))
        return 0
    console = common.console()
    _show_sizes(console, record)
    _show_bounds(console, record)
    if measure:
        _show_wall(console, record["memory_wall"])
    return 0


def find(text: str) -> Device | None:
    """A device of the table, or the user's own; None for `here`, which takes a while to measure."""
    if "=" in text:
        return own_device(text)
    if text.strip().lower() == "here":
        return None
    plain = {re.sub(r"[\s_-]", "", name).lower(): d for name, d in DEVICES.items()}
    found = plain.get(re.sub(r"[\s_-]", "", text).lower())
    if found is None:
        raise FewbitError(
            f"--device {text}: not known; choose one of {', '.join(DEVICES)}, here, or bandwidth=…,memory=…[,ops=…]"
        )
    return found


def own_device(text: str) -> Device:
    """ "bandwidth=100,memory=16,ops=10": GB/s, GB and TOPS (or TFLOPS) unless a unit says otherwise."""
    given: dict[str, float] = {}
    default = {"bandwidth": 1e9, "memory": 1e9, "ops": 1e12}
    for item in text.split(","):
        key, _, value = (part.strip() for part in item.partition("="))
        found = re.fullmatch(r"(\d+(?:\.\d+)?(?:e\d{1,2})?)\s*(?:([KMGT]?)(?:B/s|B|OPS|FLOPS|FLOP/s)?)", value, re.IGNORECASE)
        if key not in default or key in given or not found or not float(found[1]) > 0:
            raise FewbitError(
                f"--device {text}: {item.strip() or 'empty'} is not understood; give bandwidth=GB/s,memory=GB[,ops=TOPS]"
            )
        bare = value[len(found[1]) :].strip() == ""
        given[key] = float(found[1]) * (default[key] if bare else PREFIX.get(found[2].upper(), 1.0))
    if not {"bandwidth", "memory"} <= set(given):
        raise FewbitError(f"--device {text}: bandwidth and memory are both needed; give bandwidth=GB/s,memory=GB[,ops=TOPS]")
    # One rate for whatever computes: which formats it is faster in is not known.
    ops = {fmt: given["ops"] for fmt in ("float32", "float16", "int8")} if "ops" in given else {}
    return Device(text, given["memory"], given["bandwidth"], "given on the command line", ops)


def _record(model: Any, devices: list[Device], job: Any) -> dict[str, Any]:
    from fewbit import plan as p

    sizes = {fmt: p.size(model, fmt, job) for fmt in p.BITS}
    rows = {}
    for d in devices:
        bounds = {fmt: p.roofline(model, fmt, d, job) for fmt in p.BITS}
        rows[d.name] = asdict(d) | {"formats": {k: asdict(b) for k, b in bounds.items()}, "why": why(d, bounds, sizes, job.batch)}
    return {
        "model": {"name": model.name, "parameters": model.params, "kind": "language model" if model.shape else "policy"}
        | {"shape": asdict(model.shape) if model.shape else None, "note": model.note},
        "unit": "tokens/s" if model.shape else "actions/s",
        "job": asdict(job) if model.shape else {"batch": job.batch, "group_size": job.group_size},
        "includes": included(model, job),
        "formats": {fmt: asdict(b) | {"total": b.total} for fmt, b in sizes.items()},
        "devices": rows,
    }


def included(model: Any, job: Any) -> list[str]:
    """What the bytes are of, one sentence a line."""
    rest = "biases and norms stay in float16" if model.shape else "biases stay in float32"
    lines = [
        "Weights: every matrix in the format" + (", the embedding and the head too" if model.shape else "") + f"; {rest}.",
        "Scales: a float32 an output channel in int8; a float16 and a zero point for "
        f"{job.group_size} inputs of a channel in int4, int3, int2.",
    ]
    if model.shape:
        kv = job.kv + (", with a float16 scale a head and token" if job.kv == "int8" else "")
        lines.append(f"KV cache: {kv}, {job.context} tokens, batch {job.batch}. Activations: one decoding step, with its logits.")
    return lines


def why(device: Device, bounds: dict[str, Any], sizes: dict[str, Any], batch: int) -> str:
    """One sentence: memory or arithmetic, and whether fewer bits help."""
    fit = {fmt: b for fmt, b in bounds.items() if b.fits}
    if not fit:
        return f"no format fits in {amount(device.memory)}"
    by = {limit: [fmt for fmt, b in fit.items() if b.limit == limit] for limit in ("memory", "on-chip", "compute")}
    wide = "float16" if "float16" in fit else next(iter(fit))
    narrow = "int4" if wide == "float16" else list(fit)[-1]
    inside = [fmt for fmt, b in fit.items() if b.in_cache]
    if inside:
        return _why_inside(inside, fit, wide)
    gain = f"{wide} to {narrow}: {_gain(fit, wide, narrow)}"
    if fit[narrow].limit == "memory" and sizes[narrow].kv > sizes[narrow].weights + sizes[narrow].scales:
        return f"memory-bound by the KV cache, not the weights, so fewer weight bits help little ({gain}); a smaller cache does"
    if not by["compute"]:
        return f"memory-bound: a weight, once read, serves only {2 * batch} operations, so fewer bits are faster ({gain})"
    gain = ", ".join(f"{fmt} {_gain(fit, wide, fmt)} {wide}" for fmt in ("int8", "int4") if fmt in fit and fmt != wide)
    if not by["memory"]:
        return (
            f"compute-bound: a weight, once read, serves {2 * batch} operations: fewer bits help only if computed faster ({gain})"
        )
    return f"memory-bound in {', '.join(by['memory'])}; compute-bound in the rest, where only faster arithmetic helps ({gain})"


def _why_inside(inside: list[str], fit: dict[str, Any], wide: str) -> str:
    start = "the weights fit in its cache or SRAM" + ("" if len(inside) == len(fit) else f" from {inside[0]} on")
    what = "arithmetic or on-chip memory is" if any(fit[f].limit == "on-chip" for f in inside) else "arithmetic is"
    gain = f" (int8 {_gain(fit, wide, 'int8')} {wide})" if "int8" in fit and wide != "int8" else ""
    overhead = (fit[wide].bound or math.inf) > 1e5
    return f"{start}: DRAM or flash is not the limit, {what}{gain}" + (
        ", and before it the microseconds of any call" if overhead else ""
    )


def _gain(fit: dict[str, Any], wide: str, narrow: str) -> str:
    a, b = fit[wide].bound, fit[narrow].bound
    return f"{b / a:.1f}x" if a and b else "unknown"


def _show_sizes(console: Console, record: dict[str, Any]) -> None:
    model = record["model"]
    console.print(
        printable(f"{model['name']}: {model['parameters']:,} parameters ({model['kind']}; {model['note']})"), highlight=False
    )
    parts = ["weights", "scales", *(["kv"] if model["shape"] else []), "activations", "total"]
    table = Table("format", *({"kv": "KV cache"}.get(x, x) for x in parts), box=None, padding=(0, 2, 0, 0))
    for fmt, row in record["formats"].items():
        table.add_row(fmt, *(amount(row[x]) if row[x] else "-" for x in parts))
    common.print_table(table)
    for line in record["includes"]:
        console.print(line, highlight=False)


def _show_bounds(console: Console, record: dict[str, Any]) -> None:
    console.print(
        f"\n{record['unit']} at most, batch {record['job']['batch']} in all (a bound from peak figures, not a forecast)"
    )
    table = Table("device", "memory", "bandwidth", *SHOWN, box=None, padding=(0, 2, 0, 0))
    reasons: dict[str, list[str]] = {}
    for name, row in record["devices"].items():
        cells = [_cell(row["formats"][fmt]) for fmt in SHOWN]
        table.add_row(printable(name), amount(row["memory"]), amount(row["bandwidth"]) + "/s", *cells)
        reasons.setdefault(row["why"], []).append(name)
    common.print_table(table)
    console.print("m memory-bound, c compute-bound, o bound by on-chip memory; -: does not fit", highlight=False)
    for reason, names in reasons.items():
        console.print(f"{printable(', '.join(names))}: {reason}.", highlight=False)


def _show_wall(console: Console, found: dict[str, Any]) -> None:
    console.print("\nThe memory wall: one matrix-vector product, 1 thread, microseconds", highlight=False)
    head = ["weights", "in", "predicted", "measured"]
    table = Table("width", *(f"{fmt}\n{h}" for fmt in found["kernels"] for h in head), box=None, padding=(0, 2, 0, 0))
    rows: dict[int, list[str]] = {}
    for x in found["points"]:
        cells = [amount(x["bytes"]), x["level"], f"{x['predicted'] * 1e6:.1f}", f"{x['measured'] * 1e6:.1f}"]
        rows.setdefault(x["width"], []).extend(cells)
    for width, row in rows.items():
        table.add_row(str(width), *row)
    common.print_table(table)
    for fmt, kernel in found["kernels"].items():
        console.print(f"{fmt}: {kernel}", highlight=False)
    levels = ", ".join(f"{k} {amount(v)}" for k, v in found["caches"].items()) or "sizes not readable on this system"
    console.print(f"caches: {levels}", highlight=False)


def _cell(bound: dict[str, Any]) -> str:
    if not bound["fits"]:
        return "-"
    return f"{number(bound['bound'])} {MARK[bound['limit']]}" if bound["bound"] else "?"


def number(x: float) -> str:
    """Three figures and a prefix: 117, 13.3k, 6.87G."""
    for prefix, unit in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if x >= unit * 0.9995:
            return f"{x / unit:#.3g}".rstrip(".") + prefix
    return f"{x:#.3g}".rstrip(".")


def amount(x: float) -> str:
    """Bytes, in decimal units: 28.0 GB."""
    text = number(x)
    return f"{text[:-1]} {text[-1].upper()}B" if text[-1].isalpha() else f"{x:.0f} B"
