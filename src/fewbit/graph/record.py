"""An artifact's record as a reader may rely on it: a part or figure that is missing, or not of its kind, is left out."""

from collections.abc import Callable
from math import isfinite
from typing import Any

Words = dict[str, Any]


def number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(number, value))


def _mean(value: Any) -> bool:
    return isinstance(value, dict) and all(number(value.get(k)) for k in ("mean", "se", "n"))


def _counted(value: Any) -> bool:
    return isinstance(value, dict) and number(value.get("count")) and number(value.get("n")) and pair(value.get("ci95"))


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and all(map(number, value))


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _table(value: Any) -> bool:
    return isinstance(value, dict)


FIGURES: dict[str, Callable[[Any], bool]] = {
    "kept": number, "kept_ci95": pair, "keep": number, "seeds": pair, "packed_bytes": number, "size_bytes": number,
    "size_float_bytes": number, "latency_us": number, "latency_float_us": number, "action_rmse": number,
    "action_agreement": number, "rare_failure_share": number, "rare_failure_cost": number,
    "fidelity_states": number, "fidelity_noise_floor": number, "action_p999": number,
    "action_worst": number, "exact": lambda v: isinstance(v, bool),
    "return_float": _mean, "return_quantized": _mean,
    "return_random": _mean, "returns_float": _numbers, "returns_quantized": _numbers, "env": _text, "verdict": _text,
    "latency_executor": _text, "latency_float_executor": _text, "versions": _table, "fidelity_met": lambda v: isinstance(v, bool),
    "terminated_float": _counted, "terminated_quantized": _counted, "terminated_random": _counted,
    "success_float": _counted, "success_quantized": _counted,
}  # fmt: skip


# Figures that say something only beside others.
NEEDS: dict[str, tuple[str, ...]] = {
    "kept": ("kept_ci95", "verdict"), "rare_failure_share": ("rare_failure_cost", "return_quantized"),
    "size_float_bytes": ("packed_bytes",), "latency_us": ("latency_executor",), "latency_float_us": ("latency_float_executor",),
    "action_rmse": ("fidelity_states",), "action_agreement": ("fidelity_states",),
}  # fmt: skip


def known(record: Words) -> Words:
    """{"evidence", "recipe", "contract", "fidelity", "search"} with what can be relied on; all else as it stands."""
    found = dict(record) | {k: record[k] if isinstance(record.get(k), dict) else {} for k in ("evidence", "recipe", "contract")}
    if _scheme({"weights": "", "method": ""} | found["recipe"]) is None:
        found["recipe"] = {k: v for k, v in found["recipe"].items() if k != "layers"}
    found["evidence"] = _figures(found["evidence"])
    found["fidelity"] = _fidelity(record.get("fidelity"))
    rungs = record.get("search")
    found["search"] = [r for r in map(_rung, rungs if isinstance(rungs, list) else []) if r]
    return found


def _figures(given: Any) -> Words:
    found = {k: v for k, v in given.items() if k not in FIGURES or FIGURES[k](v)} if isinstance(given, dict) else {}
    return {k: v for k, v in found.items() if all(other in found for other in NEEDS.get(k, ()))}


def _fidelity(given: Any) -> Words:
    """What action_error measured, with its states; {} where it is not whole."""
    found = {k: v for k, v in given.items() if number(v)} if isinstance(given, dict) else {}
    whole = "states" in found and ("action_agreement" in found or {"action_rmse", "action_p999", "action_worst"} <= found.keys())
    return found if whole else {}


def _rung(given: Any) -> Words | None:
    """A rung of the search; None where its figures are not whole."""
    if not isinstance(given, dict):
        return None
    chosen, reported = _figures(given.get("chosen_on")), _figures(given.get("reported"))
    whole = {"verdict", "packed_bytes", "seeds"}
    if not whole <= chosen.keys():
        return None
    seconds = given.get("training_seconds")
    return {
        "tried": str(given.get("tried", "")),
        "chosen_on": chosen,
        "reported": reported if whole <= reported.keys() else None,
        "training_seconds": seconds if number(seconds) else None,
        "scheme": _scheme(given.get("scheme")),
    }


def _scheme(given: Any) -> Words | None:
    whole = isinstance(given, dict) and {"weights", "method"} <= given.keys()
    layers = given.get("layers", []) if whole else None
    pairs = isinstance(layers, list) and all(isinstance(v, list) and [*map(type, v)] == [str, str] for v in layers)
    return given if pairs else None
