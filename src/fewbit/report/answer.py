"""The answer first: one sentence, three figures with what they are compared with, and what to do next. Record in, words out."""

from typing import Any

from fewbit.report.numbers import interval, microseconds, percent, plain, ratio, size

FEWER = {"int16": "int8", "int8": "int4", "int6": "int4", "int4": "int3", "int3": "int2"}

Words = dict[str, Any]


def answer(
    record: dict[str, Any], name: str, peers: list[dict[str, Any]], timings: list[tuple[str, float]] | None = None
) -> Words:
    """Of an artifact's record; peers: rows of benchmarks/policies.py about the same policy; timings: of `fewbit bench`."""
    evidence, recipe, fidelity = record["evidence"], record["recipe"], record["fidelity"]
    first = _actions(fidelity) if fidelity and "return_quantized" not in evidence else _kept(evidence, peers)
    figures = [first, _size(evidence), _latency(evidence, timings or [])]
    return {
        "verdict": verdict(evidence),
        "sentence": _sentence(evidence, recipe, fidelity),
        "figures": [f for f in figures if f["key"] != "latency" or f["rows"]],
        "next": _next(evidence, recipe, name),
        "about": _about(record, evidence, recipe),
    }


def verdict(evidence: Words) -> str:
    """pass, fail, undecided, alike (undecided by returns, the actions are the same) or none."""
    found = evidence.get("verdict")
    if found not in ("pass", "fail", "undecided"):
        return "none"
    return "alike" if found == "undecided" and evidence.get("fidelity_met") else str(found)


def _sentence(evidence: Words, recipe: Words, fidelity: Words) -> str:
    what = f"With {recipe['weights']} weights" if "weights" in recipe else "Quantized"
    kind, keep = verdict(evidence), percent(evidence.get("keep"), 0)
    if kind == "none" or evidence.get("kept") is None:
        if kind == "none" and fidelity:
            return f"{what} {_differ(fidelity)}; what this policy keeps of its return is not known: nobody measured it."
        why = (
            "nobody measured it beside its float original" if kind == "none" else "the float policy is no better than chance here"
        )
        return f"{what}, what this policy keeps of its return is not known: {why}."
    kept = f"{percent(evidence['kept'])} of the float policy's return"
    return {
        "pass": f"{what} this policy keeps {kept}, and these episodes show that it is at least {keep}.",
        "fail": f"{what} this policy keeps {kept}: less than the {keep} that was asked for.",
        "undecided": f"{what} this policy seems to keep {kept}, but these episodes do not show {keep}.",
        "alike": f"{what} this policy acts as the float one does; its return, {kept}, is too noisy to show {keep}.",
    }[kind]


def _differ(fidelity: Words) -> str:
    states = f"{fidelity['states']:,.0f} states"
    if "action_agreement" in fidelity:
        return f"this policy takes the float policy's action in {percent(fidelity['action_agreement'], 2)} of {states}"
    error, worst = (percent(fidelity[k], 2) for k in ("action_rmse", "action_worst"))
    return f"this policy's actions are {error} of their range away from the float policy's, at worst {worst}, on {states}"


def _actions(fidelity: Words) -> Words:
    """The first figure where no return was measured."""
    states = [("states compared", f"{fidelity['states']:,.0f}")]
    if "action_agreement" in fidelity:
        value = percent(fidelity["action_agreement"], 2)
        return {"key": "actions", "title": "Same action", "value": value, "note": "as the float policy", "rows": states}
    value, note = percent(fidelity["action_rmse"], 2), "of the actions' range, root mean square"
    ends = (("99.9% of the states within", "action_p999"), ("the worst", "action_worst"))
    rows = [(what, percent(fidelity[k], 2)) for what, k in ends]
    return {"key": "actions", "title": "Action error", "value": value, "note": note, "rows": rows + states}


def _kept(evidence: Words, peers: list[Words]) -> Words:
    if evidence.get("kept") is None:
        rows = [("this policy", _mean(evidence, "return_quantized"))]
        return {"key": "kept", "title": "Return kept", "value": "not known", "note": "", "rows": [r for r in rows if r[1]]}
    rows = [
        ("float32", _mean(evidence, "return_float")),
        ("this policy", _mean(evidence, "return_quantized")),
        ("random", _mean(evidence, "return_random")),
    ]
    rows += [(p["method"], f"{percent(p['kept'])} kept ({interval(p.get('kept_ci95'))})") for p in peers]
    note = f"95% interval {interval(evidence.get('kept_ci95'))}"
    if "rare_failure_share" in evidence:
        note += f", with failures in up to {percent(evidence['rare_failure_share'])} of episodes that these cannot show"
    value = percent(evidence["kept"])
    return {"key": "kept", "title": "Return kept", "value": value, "note": note, "rows": [r for r in rows if r[1]]}


def _mean(evidence: Words, name: str) -> str:
    found = evidence.get(name)
    return "" if found is None else f"{plain(found['mean'])} ± {found['se']:.2g} (n = {found['n']})"


def _size(evidence: Words) -> Words:
    have, of = evidence.get("size_bytes"), evidence.get("size_float_bytes")
    rows = [("float32", size(of) if of else ""), ("this file", size(have) if have else "")]
    rows.append(("codes alone", size(evidence["packed_bytes"]) if "packed_bytes" in evidence else ""))
    note = f"{ratio(have, of)} times smaller than float32" if have and of else ""
    value = size(have) if have else "not known"
    return {"key": "size", "title": "Size", "value": value, "note": note, "rows": [r for r in rows if r[1]]}


def _latency(evidence: Words, timings: list[tuple[str, float]]) -> Words:
    have, of = evidence.get("latency_us"), evidence.get("latency_float_us")
    ours, theirs = (str(evidence.get(k, "")) for k in ("latency_executor", "latency_float_executor"))
    rows = [(f"float32, {theirs}", microseconds(of) if of else ""), (f"this policy, {ours}", microseconds(have) if have else "")]
    rows += [(f"{runner}, one run", microseconds(us)) for runner, us in timings]
    note = "" if not (have and of) else f"{ratio(have, of)} times faster" if have < of else f"{ratio(of, have)} times slower"
    value = microseconds(have) if have else "not known"
    return {"key": "latency", "title": "One action", "value": value, "note": note, "rows": [r for r in rows if r[1]]}


def _next(evidence: Words, recipe: Words, name: str) -> list[tuple[str, str]]:
    """(what, the command)."""
    kind, env = verdict(evidence), evidence.get("env") or recipe.get("env") or "ENV"
    source, keep = recipe.get("source", "SOURCE"), evidence.get("keep", 0.95)
    again = f"fewbit quantize {source} -o OUT.onnx --env {env} --keep {keep}"
    ship = [
        ("Put it on a microcontroller", f"fewbit export {name} --to c -o firmware/policy"),
        ("See how fast it is here", f"fewbit bench {name}"),
    ]
    if kind in ("pass", "alike"):
        fewer = FEWER.get(str(recipe.get("weights")))
        smaller = (
            [(f"Go smaller: train at {fewer}, no reward needed", f"{again} --weights {fewer} --method qat")] if fewer else []
        )
        return [*ship, *smaller]
    if kind == "undecided":
        n = evidence.get("return_quantized", {}).get("n", 100)
        more = f"fewbit evaluate {name} --env {env} --against {source} --episodes {4 * int(n)} --keep {keep}"
        return [("Decide it: four times the episodes halve the interval", more)]
    if kind == "fail":
        return [
            ("Let the search find the smallest that keeps it", f"{again} --method auto"),
            ("Or train at these bits", f"{again} --weights {recipe.get('weights', 'int4')} --method qat"),
        ]
    return [("Measure it", f"fewbit evaluate {name} --env {env} --against {source}")]


def _about(record: Words, evidence: Words, recipe: Words) -> list[tuple[str, str]]:
    scheme = [f"{k} {recipe[k]}" for k in ("weights", "activations", "inputs") if k in recipe]
    seeds, versions = evidence.get("seeds"), evidence.get("versions", {})
    rows = [
        ("made from", str(recipe.get("source", ""))),
        ("policy", str(record["contract"].get("policy") or "")),
        ("environment", str(evidence.get("env") or recipe.get("env") or "")),
        ("scheme", ", ".join(scheme)),
        ("method", str(recipe.get("method", ""))),
        ("evaluation seeds", f"{seeds[0]} to {seeds[1]}" if seeds else ""),
        ("episodes that terminated", _ended(evidence, "terminated")),
        ("episodes that succeeded", _ended(evidence, "success")),
        ("actions beside float", _alike(evidence)),
        ("measured with", ", ".join(f"{k} {v}" for k, v in versions.items())),
    ]
    return [r for r in rows if r[1]]


def _ended(evidence: Words, what: str) -> str:
    """How many of each policy's episodes, with the 95% interval of the probability."""
    found = [(who, evidence[f"{what}_{who}"]) for who in ("float", "quantized", "random") if f"{what}_{who}" in evidence]
    return "; ".join(f"{who} {r['count']} of {r['n']} ({interval(r['ci95'])})" for who, r in found)


def _alike(evidence: Words) -> str:
    states = evidence.get("fidelity_states")
    if "action_rmse" in evidence:
        worst = ""
        if "action_p999" in evidence and "action_worst" in evidence:
            worst = f", 99.9% within {percent(evidence['action_p999'], 2)}, the worst {percent(evidence['action_worst'], 2)}"
        return f"RMSE {percent(evidence['action_rmse'], 2)} of their range{worst}, on {states:,} of the float policy's states"
    if "action_agreement" in evidence:
        return f"{percent(evidence['action_agreement'], 2)} the same, on {states:,} of the float policy's states"
    return ""
