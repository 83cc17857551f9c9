"""Without an optional package: one line that names its extra, at every door, and no traceback."""

import json
import subprocess
import sys
import tomllib

import numpy as np
import pytest
from conftest import ROOT
from test_recorded import GOAL, OBS, network

from fewbit.errors import EXTRAS

RUN = """
import json, sys
sys.modules.update(dict.fromkeys({blocked}, None))
from fewbit.cli.main import main
for arguments in {commands}:
    sys.argv = ["fewbit", *arguments.split()]
    try:
        main()
    except SystemExit as end:
        print(json.dumps(end.code), file=sys.stderr)
"""


def lines(folder, blocked: list[str], commands: list[str]) -> list[tuple[str, int]]:
    """(what a command said, its exit status) of each, all in one process without these packages."""
    code = RUN.format(blocked=blocked, commands=commands)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder)
    said = done.stderr.splitlines()
    assert done.returncode == 0 and len(said) == 2 * len(commands), done.stderr
    return [(said[k], json.loads(said[k + 1])) for k in range(0, len(said), 2)]


@pytest.fixture
def folder(tmp_path):
    network(tmp_path / "policy.onnx")
    np.savez(tmp_path / "x.npz", obs=OBS, goal=GOAL)
    for name in ("a.pt", "a.txt"):
        (tmp_path / name).write_text("x")
    (tmp_path / "model").mkdir()
    return tmp_path


def test_without_torch(folder):
    demo = ROOT / "demo" / "halfcheetah.zip"
    commands = [
        "quantize a.pt --trust-torchscript -o q.onnx --observations x.npz",
        f"quantize {demo} -o q.onnx --observations x.npz",
        "quantize policy.onnx -o q.onnx --observations x.npz --method qat",
        "diff a.pt policy.onnx --trust-torchscript --observations x.npz",
        "plan a.pt --trust-torchscript",
        "llm quantize model -o out",
        "llm generate model hello",
        "llm perplexity model --text a.txt",
        "llm export model --to gguf -o out",
        "llm imatrix model -o out --calibration a.txt",
        "llm eval model --tasks a.txt",
        "report model -o r.html",
    ]
    for command, (said, status) in zip(commands, lines(folder, ["torch"], commands), strict=True):
        assert status == 2 and "torch is not installed; run: pip install " in said, (command, said)
        assert '-e ".[' in said


def test_without_the_others(folder):
    commands = ["evaluate policy.onnx --env CartPole-v1", "quantize policy.onnx -o q.onnx --env CartPole-v1"]
    for said, status in lines(folder, ["gymnasium"], commands):
        assert status == 2 and 'run: pip install "fewbit[rl]"' in said
    ((said, status),) = lines(folder, ["transformers"], ["llm generate model hello"])
    assert status == 2 and 'run: pip install "fewbit[llm]"' in said


def test_python_doors_without_torch():
    code = (
        "import sys; sys.modules['torch'] = None; import fewbit\n"
        "for door in (lambda: fewbit.amp.MixedPrecision, lambda: fewbit.llm.load('x'), lambda: fewbit.rl.accelerate,\n"
        "             lambda: fewbit.quantize('a.onnx', observations='x', scheme=fewbit.Scheme(method='qat'))):\n"
        "    try: door()\n"
        "    except fewbit.FewbitError as e: print(e)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.count(" is not installed; run: pip install ") == 4, done.stderr


def test_every_extra_that_is_named_brings_the_package():
    optional = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for package, extra in EXTRAS.values():
        assert any(r.startswith(package) or f"[{package}]" in r for r in optional[extra]), (package, extra)
