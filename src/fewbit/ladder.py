"""The smallest scheme that keeps what was asked: try them in a fixed order, stop at the first that is shown to keep it.

What a scheme costs is measured by a function that is handed in. A rung that passes on the seeds it was chosen on is measured
again on others, and only that is reported: the best of several tries is flattered by luck.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fewbit.graph.qdq import Scheme

BEST = "smooth+gptq"
TRAINED = ("int4", "int3", "int2")  # widths that rounding alone seldom carries


@dataclass(frozen=True)
class Tried:
    """One rung: what it was, what it measured where it was chosen, and on the report's seeds if it got there."""

    what: str
    scheme: Scheme
    chosen: dict[str, Any]
    reported: dict[str, Any] | None = None


def rungs(scheme: Scheme, head: str, train: bool = True) -> Iterator[tuple[str, Scheme]]:
    """(what it changes, scheme) from the cheapest on, each scheme once.

    Args:
        scheme: what is fixed; weights "auto" are tried from int4 to int8.
        head: the name of the last layer.
        train: may a rung take minutes?
    """
    seen: set[Scheme] = set()
    for what, rung in _rungs(scheme, head, train):
        if rung not in seen:
            seen.add(rung)
            yield what, rung


def _rungs(scheme: Scheme, head: str, train: bool) -> Iterator[tuple[str, Scheme]]:
    start = [scheme.weights] if scheme.weights != "auto" else ["int4", "int6", "int8"]
    for weights in start:
        plain = replace(scheme, weights=weights, method="rtn")
        best = replace(plain, method=BEST)
        if weights == "int8" or weights in TRAINED:  # a network that was trained at that width has its codes already
            yield f"{weights}, rounded to nearest", plain
        yield f"{weights}, columns scaled, GPTQ", best
        if weights not in ("int8", "int16"):  # a head of 8 bits is wider than the rest
            yield f"{weights}, columns scaled, GPTQ, head int8", replace(best, layers=((head, "int8"),))
        if train and weights in TRAINED and scheme.weights == "auto":
            yield f"{weights}, trained", replace(plain, method="qat")
    wide = replace(best, activations="uint16")
    yield f"{weights}, columns scaled, GPTQ, hidden activations 16 bits", wide
    if weights != "int16":
        yield f"{weights}, the same, head int16", replace(wide, layers=((head, "int16"),))
    if train and weights in TRAINED:
        yield f"{weights}, trained", replace(plain, method="qat")
    yield "int16 weights and activations", replace(wide, weights="int16", method="rtn", layers=())
    yield "float16 weights, float32 arithmetic", Scheme("float16", method="rtn", target=scheme.target)


def climb(
    ladder: Iterator[tuple[str, Scheme]],
    choose: Callable[[Scheme], dict[str, Any]],
    report: Callable[[Scheme], dict[str, Any]],
) -> tuple[Tried, list[Tried]]:
    """(the rung to ship, all that were tried). choose and report measure a scheme on different seeds: see `reached`."""
    tried: list[Tried] = []
    for what, scheme in ladder:
        rung = Tried(what, scheme, choose(scheme))
        if reached(rung.chosen):
            rung = replace(rung, reported=report(scheme))
        tried.append(rung)
        if rung.reported is not None and reached(rung.reported):
            return rung, tried
    best = max(tried, key=lambda t: t.chosen["kept"] if t.chosen["kept"] is not None else -np.inf)
    if best.reported is None:
        shown = replace(best, reported=report(best.scheme))
        tried[tried.index(best)] = shown
        best = shown
    return best, tried


def reached(record: dict[str, Any]) -> bool:
    """Shown to keep it, or not decidable by returns and the actions are the same ("Evidence" in docs/design.md)."""
    return record["verdict"] == "pass" or (record["verdict"] == "undecided" and bool(record.get("fidelity_met")))


def allocate(errors: dict[str, dict[str, float]], sizes: dict[str, dict[str, int]], budget: int) -> tuple[tuple[str, str], ...]:
    """Formats by layer whose summed error is small within budget bytes: from the smallest up, the best error saved a byte first.

    errors, sizes: layer -> format -> squared action error of that layer alone, bytes. Greedy: within one layer's step of the
    optimum of the continuous problem.
    """
    chosen = {layer: min((size, f) for f, size in table.items())[1] for layer, table in sizes.items()}
    while True:
        spent = sum(sizes[layer][f] for layer, f in chosen.items())
        moves = [
            ((errors[layer][f] - errors[layer][g]) / (sizes[layer][g] - sizes[layer][f]), layer, g)
            for layer, f in chosen.items()
            for g in sizes[layer]
            if sizes[layer][f] < sizes[layer][g] <= sizes[layer][f] + budget - spent and errors[layer][g] < errors[layer][f]
        ]
        if not moves:
            return tuple(sorted(chosen.items()))
        _, layer, fmt = max(moves)
        chosen[layer] = fmt
