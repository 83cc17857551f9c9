"""The search: every rung as a point, bytes against kept with its intervals, and the command that makes each again."""

import json
import shlex
from typing import Any

from fewbit.report import plot
from fewbit.report.numbers import interval, percent, size

Words = dict[str, Any]


def search(record: Words) -> Words | None:
    """{"rows", "figure", "keep"}; None where the artifact was not searched for."""
    rungs, evidence, recipe = record["search"], record["evidence"], record["recipe"]
    if not rungs:
        return None
    keep = evidence.get("keep")
    shipped = _shipped(rungs, evidence)
    rows = [_row(k, rung, k == shipped, recipe, keep) for k, rung in enumerate(rungs)]
    return {"rows": rows, "figure": _figure(rungs, shipped, keep), "keep": percent(keep, 0) if keep else None}


def _shipped(rungs: list[Words], evidence: Words) -> int | None:
    """The rung whose report is the artifact's own evidence."""
    same = [k for k, r in enumerate(rungs) if r.get("reported") and r["reported"].get("kept") == evidence.get("kept")]
    same = [k for k in same if rungs[k]["reported"].get("packed_bytes") == evidence.get("packed_bytes")]
    return same[-1] if same else None


def _row(k: int, rung: Words, shipped: bool, recipe: Words, keep: float | None) -> Words:
    chosen, reported, seconds = rung["chosen_on"], rung.get("reported"), rung.get("training_seconds")
    return {
        "number": k + 1,
        "tried": rung["tried"] + (f" ({seconds:.0f} s)" if seconds else ""),
        "bytes": size(chosen["packed_bytes"]),
        "chosen": _kept(chosen),
        "reported": _kept(reported) if reported else None,
        "shipped": shipped,
        "command": command(rung.get("scheme"), recipe, keep),
    }


def _kept(found: Words) -> Words:
    alike = found["verdict"] == "undecided" and found.get("fidelity_met")
    verdict = "same actions" if alike else found["verdict"]
    return {
        "kept": percent(found.get("kept")),
        "interval": interval(found.get("kept_ci95")),
        "verdict": verdict,
        "seeds": found["seeds"],
    }


def command(scheme: Words | None, recipe: Words, keep: float | None) -> str | None:
    """`fewbit quantize` of that scheme; None where the artifact does not say it (older ones)."""
    if not scheme:
        return None
    words = ["fewbit", "quantize", str(recipe.get("source", "SOURCE")), "-o", "OUT.onnx"]
    if recipe.get("env"):
        words += ["--env", str(recipe["env"])]
    args = recipe.get("env_args")
    for key, value in args.items() if isinstance(args, dict) else []:
        words += ["--env-arg", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
    words += ["--weights", str(scheme["weights"]), "--method", str(scheme["method"])]
    defaults = {"activations": "uint8", "inputs": "int16", "ranges": "minmax", "target": "any"}
    for key, default in defaults.items():
        if scheme.get(key, default) != default:
            words += [f"--{key}", str(scheme[key])]
    for layer, fmt in scheme.get("layers", []):
        words += ["--layer", f"{layer}={fmt}"]
    words += ["--seed", str(recipe["seed"])] if recipe.get("seed") else []
    words += ["--keep", str(keep)] if keep else []
    return shlex.join(words)


def _figure(rungs: list[Words], shipped: int | None, keep: float | None) -> Any:
    """Points that would hide each other are moved aside by their own width, not along the axis: it is said below the figure."""
    with plot.figure() as (made, axes):
        if keep:
            axes.axhline(100 * keep, color=plot.COLOUR["soft"], linewidth=1, linestyle=(0, (4, 3)))
            axes.annotate(
                f"asked for: {percent(keep, 0)}", (0, 100 * keep), (4, -4), xycoords=("axes fraction", "data"),
                textcoords="offset points", va="top", color=plot.COLOUR["soft"], fontsize=9,
            )  # fmt: skip
        drawn = [(k, r.get("reported") or r["chosen_on"]) for k, r in enumerate(rungs)]
        drawn = [(k, found) for k, found in drawn if found.get("kept") is not None]
        widest = max(found["packed_bytes"] for _, found in drawn) / 1000 if drawn else 1.0
        axes.set_xlim(0, 1.3 * widest)
        aside = _aside([found["packed_bytes"] / 1000 / widest for _, found in drawn])
        for (k, found), points in zip(drawn, aside, strict=True):
            _point(made, axes, found, points, k, k == shipped)
        axes.set_xlabel("codes, KB")
        axes.set_ylabel("return kept, %")
        axes.margins(y=0.12)
        bottom, top = axes.get_ylim()
        axes.set_ylim(max(bottom, -25), min(top, 130))
        label = f"Return kept against bytes of the {len(rungs)} schemes that were tried; the table below holds the same numbers."
        return plot.svg(made, label)


def _point(made: Any, axes: Any, found: Words, aside: float, k: int, shipped: bool) -> None:
    x, y = found["packed_bytes"] / 1000, 100 * found["kept"]
    colour, where = plot.COLOUR["quantized" if shipped else "soft"], plot.moved(made, axes, aside)
    low, high = (100 * v for v in found["kept_ci95"])
    axes.plot([x, x], [low, high], color=colour, linewidth=2.4 if shipped else 1.4, transform=where)
    axes.update_datalim([(x, low), (x, high)])
    axes.plot(
        x, y, "o", markersize=9 if shipped else 6, color=colour, transform=where,
        markerfacecolor=colour if shipped else plot.COLOUR["card"], markeredgewidth=1.4,
    )  # fmt: skip
    axes.annotate(
        f"{k + 1}{' shipped' if shipped else ''}", (x, y), (8 + aside, 0), textcoords="offset points", va="center",
        color=colour, fontweight="bold" if shipped else "normal",
    )  # fmt: skip


def _aside(places: list[float], points: float = 18.0) -> list[float]:
    """How many points to the right each is moved, so that no two lie within 6% of the axis of each other."""
    taken: list[tuple[float, float]] = []
    for place in places:
        shift = 0.0
        while any(abs(place - other) < 0.06 and shift == theirs for other, theirs in taken):
            shift += points
        taken.append((place, shift))
    return [shift for _, shift in taken]
