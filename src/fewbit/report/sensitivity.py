"""What each layer alone costs: the closed loop beside the per-layer error (rows of pipeline.sensitivity)."""

from typing import Any

from fewbit.report import plot
from fewbit.report.numbers import interval, percent

Words = dict[str, Any]


def sensitivity(rows: list[Words]) -> Words:
    """{"weights", "rows", "figure"}."""
    return {"weights": rows[0]["weights"], "rows": [_row(r) for r in rows], "figure": _figure(rows)}


def _row(r: Words) -> Words:
    action = percent(r["action_rmse"], 2) if "action_rmse" in r else f"{percent(1 - r['action_agreement'], 2)} differ"
    local = "-" if r["sqnr_local"] is None else f"{r['sqnr_local']:.1f}"
    return {
        "layer": r["layer"],
        "kept": percent(r["kept"]),
        "interval": interval(r["kept_ci95"]),
        "action": action,
        "local": local,
    }


def _figure(rows: list[Words]) -> Any:
    with plot.figure(height=0.75 + 0.3 * len(rows)) as (made, axes):
        for k, r in enumerate(rows):
            if r["kept"] is None:
                continue
            axes.hlines(k, *(100 * v for v in r["kept_ci95"]), color=plot.COLOUR["quantized"], linewidth=2)
            axes.plot(100 * r["kept"], k, "o", color=plot.COLOUR["quantized"], markersize=7)
        axes.set_yticks(range(len(rows)), [r["layer"] for r in rows])
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("return kept with this layer alone quantized, %")
        return plot.svg(made, "Return kept with one layer at a time quantized; the table below holds the same numbers.")
