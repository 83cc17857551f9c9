"""A module imports from floors below its own and from its own folder; a robot's imports need no torch."""

import ast
import subprocess
import sys

import corpus
import numpy as np
from conftest import ROOT

FLOORS = [
    {"errors", "escape", "files", "fidelity", "recorded", "numerics", "devices", "checkpoint", "gguf_file"},
    {"solvers"},
    {"graph"},
    {"sources", "engine"},
    {"train", "targets", "rl", "llm", "machine", "peers"},
    {"artifact", "checks", "ladder", "plan", "bench", "diff", "observations", "verification"},
    {"training"},
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


def test_the_engine_needs_numpy_ml_dtypes_and_onnx_alone(tmp_path):
    """And onnx_ir, which is made of these: no torch, no gymnasium, no other runtime, nothing of the command line."""
    path = tmp_path / "policy.onnx"
    g = corpus.Graph(1)
    weight = np.ones((2, 3), np.int8)
    path.write_bytes(g.case("policy", g.gemm(g.entry("int16", 3, 0.5), 0.5, weight, np.ones(2), None)).model.SerializeToString())
    code = (
        "import sys\n"
        "for name in ('torch', 'gymnasium', 'onnxruntime', 'typer', 'rich', 'scipy'): sys.modules[name] = None\n"
        "import fewbit, numpy\n"
        f"print(fewbit.load({str(path)!r})(numpy.ones(3, numpy.float32)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[3. 3.]", done.stderr
