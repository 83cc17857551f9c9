"""A policy's artifact as a page: the sections that its record and what lies at hand can fill, and what the others would need."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from fewbit.graph import metadata
from fewbit.graph.read import read
from fewbit.report.answer import answer
from fewbit.report.page import page
from fewbit.report.peers import peers
from fewbit.report.record import known
from fewbit.report.search import search

Section = dict[str, Any]
Missing = dict[str, str]


@dataclass(frozen=True)
class Options:
    """What a page may use besides the artifact. peers: a file of benchmarks/policies.py, agent: the policy in it."""

    peers: Path | None = None
    agent: str | None = None


def policy(artifact: Path, options: Options) -> str:
    """The page's text."""
    model = read(artifact)
    record = metadata.read(model)
    sections, missing = _sections(model, known(record), artifact, options)
    return page(f"{artifact.name}", sections, missing, record)


def _sections(model: ir.Model, record: dict[str, Any], artifact: Path, options: Options) -> tuple[list[Section], list[Missing]]:
    beside = peers(options.peers, options.agent, record["evidence"]) if options.peers else []
    sections: list[Section] = [{"id": "answer", "title": "The answer"} | answer(record, artifact.name, beside)]
    missing: list[Missing] = []
    found = search(record)
    if found:
        sections.append({"id": "search", "title": "The search"} | found)
    else:
        how = "" if record["recipe"].get("env") else "fewbit quantize SOURCE -o OUT.onnx --env ID"
        missing.append(_lack("The search", "One scheme was asked for, or nothing was measured: no search took place.", how))
    return sections, missing


def _lack(what: str, why: str, how: str = "") -> Missing:
    return {"what": what, "why": why, "how": how}
