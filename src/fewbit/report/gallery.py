"""The gallery: results of benchmarks/policies.py as one picture and its table, and links to report pages of single networks."""

import html
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewbit.files import write_whole
from fewbit.graph import metadata
from fewbit.graph.read import read
from fewbit.graph.record import known
from fewbit.report import plot
from fewbit.report.answer import answer
from fewbit.report.numbers import interval, percent, plain
from fewbit.report.page import TEMPLATES, page

OURS = "fewbit search"
TOOLS = {  # method: (what it is called, marker, colour)
    "onnxruntime static": ("ONNX Runtime static", "s", "peer"),
    "onnxruntime dynamic": ("ONNX Runtime dynamic", "D", "warn"),
    "torch dynamic": ("PyTorch dynamic", "^", "soft"),
    "nncf": ("NNCF", "v", "bad"),
}
LEAST, MOST = -12.0, 122.0  # percent; what kept less or more stands at the edge

Words = dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """One report page in the gallery's folder, what it shows, and the policy's artifact that it is of, if it is of one."""

    file: str
    what: str
    artifact: Path | None


def gallery(results: Path, entries: list[Entry], folder: Path) -> None:
    """Write folder/index.html, and folder/headline.svg for pages that show it as a picture."""
    rows = [json.loads(line) for line in results.read_text().splitlines() if line.strip()]
    agents = [a for a in dict.fromkeys(r["agent"] for r in rows) if any(_is(r, a, OURS) for r in rows)]
    picture = headline(rows, agents)
    table = [_row(rows, a) for a in agents]
    sections = [
        {"id": "headline", "title": "What int8 keeps", "figure": picture, "rows": table, "tools": [t[0] for t in TOOLS.values()]},
        {"id": "pages", "title": "Networks, one by one", "entries": [_card(e, folder) for e in entries], "script": "film"},
    ]
    write_whole(folder / "headline.svg", standalone(picture))
    write_whole(
        folder / "index.html",
        page("What int8 and fewer bits keep", sections, [], {"rows": [r for r in rows if r["method"] in (OURS, *TOOLS)]}),
    )


def _is(row: Words, agent: str, method: str) -> bool:
    return row["agent"] == agent and row["method"] == method and row.get("kept") is not None


def _row(rows: list[Words], agent: str) -> Words:
    ours = next(r for r in rows if _is(r, agent, OURS))
    found = {m: next((r for r in rows if _is(r, agent, m)), None) for m in TOOLS}
    kept = [percent(r["kept"]) if r else "-" for r in found.values()]
    mean = plain(ours["return_float"]["mean"])
    return {"agent": agent, "float": mean, "ours": percent(ours["kept"]), "interval": interval(ours["kept_ci95"]), "peers": kept}


def headline(rows: list[Words], agents: list[str]) -> Any:
    """A line a policy: what the search's artifact kept, with its interval, and what the common tools' int8 kept."""
    with plot.figure(width=6.2, height=0.9 + 0.27 * len(agents)) as (made, axes):
        axes.axvline(100, color=plot.COLOUR["soft"], linewidth=1, linestyle=(0, (4, 3)))
        for k, agent in enumerate(agents):
            for method, (name, marker, colour) in TOOLS.items():
                given = {"color": plot.COLOUR[colour], "markersize": 5, "markerfacecolor": "none", "label": None if k else name}
                for r in (r for r in rows if _is(r, agent, method)):
                    axes.plot(min(MOST, max(LEAST, 100 * r["kept"])), k, marker, **given)
            ours = next(r for r in rows if _is(r, agent, OURS))
            axes.hlines(k, *(100 * v for v in ours["kept_ci95"]), color=plot.COLOUR["quantized"], linewidth=2.2)
            axes.plot(
                100 * ours["kept"], k, "o", color=plot.COLOUR["quantized"], markersize=7, label="fewbit" if k == 0 else None
            )
        axes.set_yticks(range(len(agents)), agents)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlim(LEAST - 3, MOST + 3)
        axes.set_xlabel("share of the float policy's return that int8 keeps, %")
        made.legend(loc="outside upper center", ncols=3)
        return plot.svg(made, f"Return kept at int8 by fewbit and by the common tools, for {len(agents)} policies.")


def standalone(picture: str) -> str:
    """The same picture as a file of its own, which brings its colours and their dark ones along."""
    style = (TEMPLATES / "style.css").read_text()
    light, dark = re.findall(r":root \{(.*?)\}", style, re.S)[:2]
    rules = f":root{{{light}}}@media (prefers-color-scheme: dark){{:root{{{dark}}}}}text{{font-family:system-ui,sans-serif}}"
    rules += "svg{background:var(--paper)}"
    named = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
    wide, high = re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', picture)[0]
    named += f'width="{1.6 * float(wide):.0f}" height="{1.6 * float(high):.0f}" '
    return str(picture).replace("<svg ", named, 1).replace(">", f"><style>{rules}</style>", 1)


def _card(entry: Entry, folder: Path) -> Words:
    """What the entry's own page says first, and its film."""
    found: Words = {"file": entry.file, "what": entry.what, "sentence": "", "verdict": "none", "film": None}
    text = (folder / entry.file).read_text()
    film = re.search(
        r'data-still="(data:image/webp;base64,[^"]+)" data-film="(data:image/webp;base64,[^"]+)" alt="([^"]*)"', text
    )
    if film:
        names = re.findall(r"<span>([^<]*)", (re.findall(r'<div class="names"[^>]*>(.*?)</div>', text, re.S) or [""])[0])
        found["film"] = {
            "still": film[1],
            "film": film[2],
            "alt": html.unescape(film[3]),
            "names": [html.unescape(n) for n in names],
        }
    if entry.artifact is not None:
        record = known(metadata.read(read(entry.artifact)))
        said = answer(record, entry.artifact.name, [])
        found |= {"sentence": said["sentence"], "verdict": said["verdict"]}
    return found
