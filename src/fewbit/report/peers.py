"""What the common tools made of the same policy: rows of `benchmarks/policies.py`, shown only where they are about it, and the
times of one run of `fewbit bench`."""

import json
from pathlib import Path
from typing import Any

from fewbit.errors import FewbitError

SHOWN = ("onnxruntime static", "onnxruntime dynamic", "torch dynamic", "nncf")


def peers(path: Path, agent: str | None, evidence: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of one agent, [{"method", "kept", "kept_ci95", …}]; refused if its float policy returned something else than ours."""
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
        agents = sorted({str(r["agent"]) for r in rows})
    except (ValueError, KeyError, TypeError):
        raise FewbitError(f"{path}: not the lines of benchmarks/policies.py; give its .jsonl file") from None
    if agent is None and len(agents) != 1:
        raise FewbitError(f"{path} holds {len(agents)} policies; add --agent, one of {', '.join(agents)}")
    of = [r for r in rows if r["agent"] == (agent or agents[0]) and r["method"] in SHOWN and r.get("kept") is not None]
    if not of:
        raise FewbitError(f"{path}: no row of the common tools about {agent or agents[0]}; it holds {', '.join(agents)}")
    _same_policy(of[0], evidence, str(path))
    return of


def timings(path: Path) -> list[tuple[str, float]]:
    """(runner, microseconds of one action) of what `fewbit bench --json` wrote, the quickest first; all of one run."""
    try:
        rows = [(str(t["name"]), float(t["us"]["1"])) for t in json.loads(path.read_text())["timings"] if t["right"]]
    except (ValueError, KeyError, TypeError):
        raise FewbitError(f"{path}: not what `fewbit bench ARTIFACT --json` prints, with a batch of 1") from None
    return sorted(rows, key=lambda r: r[1])


def _same_policy(row: dict[str, Any], evidence: dict[str, Any], where: str) -> None:
    theirs, ours = row.get("return_float"), evidence.get("return_float")
    if not (isinstance(theirs, dict) and isinstance(ours, dict)):
        raise FewbitError(
            f"{where}: nothing says that its rows are about the artifact's policy; evaluate it --against its source"
        )
    apart, scatter = abs(theirs["mean"] - ours["mean"]), (theirs["se"] ** 2 + ours["se"] ** 2) ** 0.5
    if apart > 4 * scatter + 1e-6 * abs(ours["mean"]):
        raise FewbitError(
            f"{where}: {row['agent']} returns {theirs['mean']:.1f} in float32, this artifact's source {ours['mean']:.1f}: "
            "not the same policy; give --agent the one it was made from"
        )
