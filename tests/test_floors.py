"""A module imports from floors below its own and from its own folder; a robot's imports need no torch."""

import ast
import subprocess
import sys

from conftest import ROOT

FLOORS = [
    {"errors", "numerics", "devices", "checkpoint"},
    {"solvers"},
    {"graph"},
    {"sources", "engine", "train"},
    {"targets", "rl", "llm", "machine"},
    {"artifact", "ladder", "plan", "bench", "diff"},
    {"pipeline"},
    {"report"},
    {"cli"},
]
FLOOR = {room: k for k, rooms in enumerate(FLOORS) for room in rooms}


def test_no_import_climbs():
    source = ROOT / "src" / "fewbit"
    for path in source.rglob("*.py"):
        room = path.relative_to(source).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module] if node.module != "fewbit" else [f"fewbit.{a.name}" for a in node.names]
            for name in names:
                other = name.split(".")[1] if name.startswith("fewbit.") else None
                if other in FLOOR and room in FLOOR and other != room:
                    assert FLOOR[other] < FLOOR[room] or (FLOOR[other] == FLOOR[room] == 0), f"{path.name} imports {name}"


def test_the_engine_needs_no_torch():
    code = (
        "import sys; sys.modules['torch'] = sys.modules['gymnasium'] = None; import fewbit.engine.load, fewbit.numerics.semantics"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
