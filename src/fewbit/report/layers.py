"""Where the error comes in: each tensor's error alone and so far, and the histograms of weights and activations over the grid."""

from typing import Any

import numpy as np
import onnx_ir as ir

from fewbit import diff
from fewbit.engine.operands import scale_of
from fewbit.graph.edit import const
from fewbit.graph.layers import layers as layers_of
from fewbit.numerics.formats import INTEGERS, IntFormat
from fewbit.report import plot
from fewbit.report.numbers import percent

Words = dict[str, Any]
BINS, LINES = 96, 40  # at most so many bars; every code's line is drawn where there are no more than so many
WORTH_A_LOOK = 0.01  # share of an activation at the ends: calibration puts a few there by construction


def layers(original: ir.Model, artifact: ir.Model, recipe: Words, feeds: dict[str, np.ndarray]) -> Words:
    """{"rows", "figure", "weights", "activations", "states"}; feeds: observations [n, ...] by input name."""
    tensors = list({t.name: t for t in reversed(diff.compare(original, artifact, feeds))}.values())[
        ::-1
    ]  # codes, not their reading
    outputs = {v.name for v in artifact.graph.outputs}
    choices = {t.name for t in tensors if t.name in outputs and t.want.dtype.kind in "iu"}  # of an index decibels mean nothing
    rows = [diff.row(t) for t in tensors if t.name not in choices]
    worst = min(rows, key=lambda r: r.sqnr_local)
    return {
        "rows": [_row(r) for r in rows],
        "figure": _decibels(rows),
        "worst": worst.tensor,
        "worst_db": f"{worst.sqnr_local:.1f}",
        "weights": _weights(original, artifact, recipe),
        "activations": [a for a in map(_activation, tensors) if a],
        "states": len(next(iter(feeds.values()))),
    }


def _row(r: diff.Row) -> Words:
    marked = {"saturated": percent(r.saturated, 2), "dead": percent(r.dead)}
    return (
        vars(r) | marked | {"local": f"{r.sqnr_local:.1f}", "so_far": f"{r.sqnr_accumulated:.1f}", "error": f"{r.max_error:.3g}"}
    )


def _decibels(rows: list[diff.Row]) -> Any:
    """A line a tensor, from its error alone to its error so far: where the line is long, the error came from before."""
    with plot.figure(height=0.75 + 0.27 * len(rows)) as (made, axes):
        for k, r in enumerate(rows):
            alone, so_far = (float(np.clip(v, -10, 100)) for v in (r.sqnr_local, r.sqnr_accumulated))
            axes.plot([alone, so_far], [k, k], color=plot.COLOUR["rule"], linewidth=2.5, zorder=1)
            axes.plot(alone, k, "o", color=plot.COLOUR["float"], markersize=6, label=None if k else "this step alone")
            axes.plot(so_far, k, "o", color=plot.COLOUR["quantized"], markersize=6, label=None if k else "all so far")
        axes.set_yticks(range(len(rows)), [_short(r.tensor) for r in rows])
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("signal over error, dB (right is better)")
        made.legend(loc="outside upper right", ncols=2)
        return plot.svg(made, "Signal over error of every tensor, alone and accumulated; the table below holds the same numbers.")


def _short(name: str, limit: int = 22) -> str:
    return name if len(name) <= limit else f"…{name[1 - limit :]}"


def _activation(tensor: diff.Tensor) -> Words | None:
    """One tensor's codes over its float values; None where it is no tensor of codes, or of pixels that were codes before."""
    if tensor.reading is None or tensor.want.dtype.kind != "f":
        return None
    scale, zero, fmt = tensor.reading
    row = diff.row(tensor)
    floats = tensor.want.reshape(-1).astype(np.float64) / float(scale) + zero
    if not fmt.signed and zero == fmt.quant_min:
        floats = np.maximum(floats, fmt.quant_min)  # a ReLU is the saturation of its codes
    return {
        "name": tensor.name,
        "format": fmt.name,
        "figure": _histogram(floats, tensor.got.reshape(-1), fmt, f"Activations of {tensor.name}", float(scale), zero, True),
        "notes": [(row.saturated >= WORTH_A_LOOK, f"{percent(row.saturated, 2)} at the ends of the range")] * (row.saturated > 0)
        + [(False, f"{percent(row.dead)} of channels never change")] * (row.dead > 0),
    }


def _weights(original: ir.Model, artifact: ir.Model, recipe: Words) -> list[Words]:
    """Each layer's codes over its float weights, in steps of the grid: every row has its own scale."""
    floats = {layer.node.outputs[0].name: layer for layer in layers_of(original)}
    divided, found = diff.exponents(artifact), []
    for node in artifact.graph:
        name = node.outputs[0].name
        if name not in floats:
            continue
        weight = node.inputs[1]
        dequantize = weight.producer() if weight is not None else None
        codes = const(dequantize.inputs[0]) if dequantize is not None else None
        if dequantize is None or codes is None:
            continue
        fmt = _format(recipe, floats[name].node.name or "", codes)
        steps = _in_steps(floats[name], dequantize, divided, codes.shape)
        codes = codes.astype(np.int64).reshape(-1)
        outside = 0.0 if steps is None else float(((steps > fmt.quant_max + 0.5) | (steps < fmt.quant_min - 0.5)).mean())
        found.append({
            "name": name, "format": fmt.name, "count": f"{codes.size:,}",
            "notes": [(False, f"{percent(outside, 2)} of the weights beyond the largest code")] * (outside > 0),
            "figure": _histogram(steps, codes, fmt, f"Weights of {name}"),
        })  # fmt: skip
    return found


def _format(recipe: Words, layer: str, codes: np.ndarray) -> IntFormat:
    """What the recipe says, if the codes are of it (int6 codes are stored as int8), else what they are stored as."""
    apart = dict(recipe.get("layers", []))
    fmt, values = INTEGERS.get(str(apart.get(layer, recipe.get("weights")))), codes.astype(np.int64)
    fits = fmt is not None and fmt.quant_min <= values.min() and values.max() <= fmt.quant_max
    return fmt if fmt is not None and fits else INTEGERS[str(codes.dtype)]


def _in_steps(layer: Any, dequantize: ir.Node, divided: dict[str, np.ndarray], shape: tuple[int, ...]) -> np.ndarray | None:
    """The float weights [out, in] moved as equalization moved them, in steps of their row's grid; None where shapes differ."""
    weight = const(layer.node.inputs[1])
    if weight is None:
        return None
    turned = layer.node.attributes.get("transB")
    weight = (
        weight.astype(np.float64) if layer.node.op_type != "Gemm" or (turned and turned.value) else weight.T.astype(np.float64)
    )
    scale, zero = scale_of(dequantize)
    if weight.shape != shape:
        return None
    rows, columns = divided.get(layer.node.outputs[0].name or "", np.zeros(1)), divided.get(layer.x.name or "", np.zeros(1))
    rest = (1,) * (weight.ndim - 2)
    if rows.size not in (1, shape[0]) or columns.size not in (1, shape[1]):
        return None
    moved = weight * 2.0 ** columns.reshape(1, -1, *rest) / 2.0 ** rows.reshape(-1, 1, *rest)
    return (moved / np.reshape(scale, (-1, 1, *rest)) + np.reshape(zero, (-1, 1, *rest))).reshape(-1)


def _histogram(
    floats: np.ndarray | None, codes: np.ndarray, fmt: IntFormat, label: str, scale: float = 1.0, zero: int = 0, log: bool = False
) -> Any:
    """Bars: codes, the smallest and the largest marked; line: the float values; both in shares of one bar's width."""
    low, high = fmt.quant_min, fmt.quant_max
    per = max(1, -(-(high - low + 1) // BINS))
    bars = -(-(high - low + 1) // per)
    edges = low - (bars * per - (high - low + 1)) // 2 + per * np.arange(bars + 1) - 0.5  # equally wide, the rest at both ends
    share = np.histogram(codes, edges)[0] / max(1, codes.size) * 100
    with plot.figure(width=4.4, height=2.2) as (made, axes):
        places = (edges - zero) * scale
        bottom = 1e-3 if log else 0.0
        if len(edges) <= LINES:
            axes.vlines((np.arange(low, high + 1) - zero) * scale, 0, 1, transform=axes.get_xaxis_transform(),
                        color=plot.COLOUR["rule"], linewidth=0.7)  # fmt: skip
        axes.grid(axis="x", visible=False)
        axes.stairs(np.maximum(share, bottom), places, baseline=bottom, fill=True, color=plot.COLOUR["quantized"], alpha=0.45)
        for code in (int(codes.min()) if codes.min() <= low + 1 else low, high):  # symmetric weights leave one code out
            at_end = float((codes == code).mean()) * 100
            if at_end and not code == low == zero:  # a ReLU's zero is no end
                bar = int(np.searchsorted(edges, code)) - 1
                one = places[bar : bar + 2]  # drawn above the float line
                axes.stairs([at_end], one, baseline=bottom, fill=True, color=plot.COLOUR["bad"], zorder=4)
        if floats is not None:
            wide = np.concatenate([edges[0] - per * np.arange(4, 0, -1), edges, edges[-1] + per * np.arange(1, 5)])
            lines = np.histogram(np.clip(floats, wide[0], wide[-1]), wide)[0] / max(1, floats.size) * 100
            axes.stairs(np.maximum(lines, bottom), (wide - zero) * scale, color=plot.COLOUR["ink"], linewidth=0.9, baseline=None)
        _window(axes, share, floats, edges, scale, zero)
        if log:
            axes.set_yscale("log")
            axes.set_ylim(bottom, 200)
            axes.set_yticks([0.01, 0.1, 1, 10, 100], ["0.01%", "0.1%", "1%", "10%", "100%"])
            axes.minorticks_off()
        else:
            axes.yaxis.set_major_formatter(lambda v, _: f"{v:g}%")
        axes.set_xlabel("value" if scale != 1.0 else "code")
        return plot.svg(made, f"{label}: histogram of {codes.size} {fmt.name} codes over the float values.")


def _window(axes: Any, share: np.ndarray, floats: np.ndarray | None, edges: np.ndarray, scale: float, zero: int) -> None:
    """The part of the grid that holds something, with a margin: most of an int16's is empty."""
    used = np.flatnonzero(share)
    low, high = edges[used[0]], edges[used[-1] + 1]
    margin = 0.06 * (high - low)
    axes.set_xlim((low - margin - zero) * scale, (high + margin - zero) * scale)
