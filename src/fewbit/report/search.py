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
    """A place for each rung, in order, with the size of its codes below: rungs of one size do not hide each other."""
    with plot.figure() as (made, axes):
        if keep:
            axes.axhline(100 * keep, color=plot.COLOUR["soft"], linewidth=1, linestyle=(0, (4, 3)))
            axes.annotate(
                f"asked for: {percent(keep, 0)}", (0, 100 * keep), (4, -4), xycoords=("axes fraction", "data"),
                textcoords="offset points", va="top", color=plot.COLOUR["soft"], fontsize=9,
            )  # fmt: skip
        for k, rung in enumerate(rungs):
            found = rung.get("reported") or rung["chosen_on"]
            if found.get("kept") is not None:
                _point(axes, found, k, k == shipped)
        kilobytes = [f"{rung['chosen_on']['packed_bytes'] / 1000:.3g}" for rung in rungs]
        axes.set_xticks(range(len(rungs)), [f"{k + 1}\n{size}" for k, size in enumerate(kilobytes)], fontsize=8)
        axes.set_xlim(-0.6, len(rungs) - 0.4)
        axes.set_xlabel("rung, and KB of its codes")
        axes.set_ylabel("return kept, %")
        axes.margins(y=0.12)
        bottom, top = axes.get_ylim()
        axes.set_ylim(max(bottom, -25), min(top, 130))
        label = f"Return kept and bytes of the {len(rungs)} schemes that were tried; the table below holds the same numbers."
        return plot.svg(made, label)


def _point(axes: Any, found: Words, k: int, shipped: bool) -> None:
    kept, colour = 100 * found["kept"], plot.COLOUR["quantized" if shipped else "soft"]
    axes.plot([k, k], [100 * v for v in found["kept_ci95"]], color=colour, linewidth=2.4 if shipped else 1.4)
    axes.plot(
        k, kept, "o", markersize=9 if shipped else 6, color=colour, markerfacecolor=colour if shipped else plot.COLOUR["card"],
        markeredgewidth=1.4,
    )  # fmt: skip
    if shipped:
        axes.annotate("shipped", (k, kept), (-9, 0), textcoords="offset points", va="center", ha="right", color=colour,
                      fontweight="bold")  # fmt: skip
