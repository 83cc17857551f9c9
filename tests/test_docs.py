"""The learning pages do what they say: their Python runs, prints what they show, and every link leads somewhere.

Blocks of one page share a namespace. A ```text block after a ```python block is its output, a ```console block a command and
its output: the same words, numbers within 5%. What depends on the machine (a time, a training run) is marked `varies`.
"""

import contextlib
import io
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from conftest import ROOT

LEARN = sorted((ROOT / "docs" / "learn").glob("*.md"))
LINKED = [*LEARN, *sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"]
FENCE = re.compile(r"^```(\w+)( varies)?\n(.*?)^```$", re.M | re.S)
NUMBER = re.compile(r"[-+]?\d[\d,]*\.?\d*(?:e[-+]?\d+)?")
COMMAND = "from fewbit.cli.main import main; main()"
DRAWING = re.compile(r"[─━═╭╮╰╯│]+")


def blocks(page: Path, *kinds: str) -> list[tuple[str, bool, str, int]]:
    """(kind, varies, text, line of the text) of every fenced block of these kinds, in order."""
    text = page.read_text()
    found = FENCE.finditer(text)
    return [(m[1], bool(m[2]), m[3], text[: m.start(3)].count("\n") + 1) for m in found if m[1] in kinds]


def differ(shown: str, came: str) -> str | None:
    """The first word that is not as shown; None where only numbers differ, by up to 5%."""
    words = [DRAWING.sub(" ", t).split() for t in (shown, came)]
    for a, b in zip(*words, strict=False):
        numbers = [[float(n.replace(",", "")) for n in NUMBER.findall(w)] for w in (a, b)]
        if NUMBER.sub("#", a) != NUMBER.sub("#", b) or numbers[0] != pytest.approx(numbers[1], rel=0.05):
            return f"shows {a!r}, came {b!r}"
    return None if len(words[0]) == len(words[1]) else f"shows {len(words[0])} words, {len(words[1])} came"


@pytest.mark.parametrize("page", LEARN, ids=lambda p: p.stem)
def test_python_runs_and_prints_what_the_page_shows(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    space, came = {"__name__": "page"}, ""
    threads = sys.modules["torch"].get_num_threads() if "torch" in sys.modules else None
    try:
        for kind, varies, text, line in blocks(page, "python", "text"):
            if kind == "python":
                with contextlib.redirect_stdout(io.StringIO()) as out, warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    exec(compile("\n" * (line - 1) + text, str(page), "exec"), space)  # errors name the page's line
                came = out.getvalue()
            else:
                problem = None if varies else differ(text, came)
                assert not problem, f"{page.name}:{line} {problem}; all of it:\n{came}"
    finally:
        if threads:
            sys.modules["torch"].set_num_threads(threads)


@pytest.mark.parametrize("page", LEARN, ids=lambda p: p.stem)
def test_commands_run(page, tmp_path):
    for _, varies, text, line in blocks(page, "console"):
        for command, shown in re.findall(r"^\$ fewbit (.*)\n((?:(?!\$ ).*\n)*)", text, re.M):
            import shlex

            run = subprocess.run(
                [sys.executable, "-c", COMMAND, *shlex.split(command)],
                capture_output=True,
                text=True,
                cwd=tmp_path,
                env=os.environ | {"COLUMNS": "120"},
            )
            assert run.returncode == 0, f"{page.name}:{line} fewbit {command}: {run.stderr}"
            problem = None if varies or not shown else differ(shown, run.stdout)
            assert not problem, f"{page.name}:{line} {problem}; all of it:\n{run.stdout}"


@pytest.mark.parametrize("page", LINKED, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    dead = [t for t in targets if "://" not in t and t[0] != "#" and not (page.parent / t.split("#")[0]).exists()]
    assert not dead, f"{page.name} links to {', '.join(dead)}"


def test_pages_are_short_and_listed():
    index = (ROOT / "docs" / "learn" / "README.md").read_text()
    for page in LEARN:
        assert len(page.read_text().splitlines()) <= 140, f"{page.name} is longer than 140 lines"
        assert page.name == "README.md" or f"]({page.name})" in index, f"{page.name} is not in the index"
