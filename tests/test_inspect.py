"""`fewbit inspect` and `fewbit diff` in words: what a step is, what went in, and how far the actions are off, first."""

import json
import sys

import numpy as np
import pytest
from test_recorded import GOAL, OBS, network

import fewbit
from fewbit import pipeline
from fewbit.cli.inspect import LEGEND
from fewbit.cli.main import main
from fewbit.fidelity import action_error


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """policy.onnx, x.npz and q.onnx, the artifact, whose record holds an action error."""
    path = tmp_path_factory.mktemp("inspect")
    network(path / "policy.onnx")
    np.savez(path / "x.npz", obs=OBS, goal=GOAL)
    artifact = fewbit.quantize(path / "policy.onnx", observations=path / "x.npz", scheme=fewbit.Scheme("int4", method="rtn"))
    artifact.record["fidelity"] = {"action_rmse": 0.0123, "action_p999": 0.0345, "action_worst": 0.0567, "states": 40}
    artifact.save(path / "q.onnx")
    return path


@pytest.fixture
def show(folder, monkeypatch, capsys):
    """show(arguments) -> the lines that the command line prints in that folder."""
    monkeypatch.chdir(folder)
    monkeypatch.delenv("COLUMNS", raising=False)

    def run(*arguments: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["fewbit", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        assert not end.value.code
        return capsys.readouterr().out.splitlines()

    return run


def test_inspect_explains_its_steps_and_says_what_went_in(show):
    text = "\n".join(show("inspect", "q.onnx"))
    for line in ("S2-S4 linear", LEGEND["S2-S4 linear"], LEGEND["S1 entry"], "docs/semantics.md", "policy.onnx (SHA-256 "):
        assert line in text
    assert "{" not in text and "action error" in text
    assert "1.230% of the range, RMSE over 40 states; 99.9% of them within 3.45%, the worst 5.67%" in text


def test_inspect_as_json_has_the_whole_record(show):
    found = json.loads(show("inspect", "q.onnx", "--json")[0])
    assert len(found["recipe"]["source_sha256"]) == 64 and found["fidelity"]["states"] == 40
    assert found["inputs"].keys() == {"obs", "goal"} and found["exact"] and len(found["steps"]) > 4


def test_diff_says_the_action_error_first(folder, show):
    lines = show("diff", "policy.onnx", "q.onnx", "--observations", "x.npz")
    given = {"obs": OBS, "goal": GOAL}
    floats = fewbit.load(folder / "policy.onnx", executor="onnxruntime")(given)
    want = action_error(floats, fewbit.load(folder / "q.onnx")(given))
    assert lines[0].startswith(f"action error: {want['action_rmse']:.3%} of the range, RMSE over 40 states")
    rows = [line.split()[0] for line in lines[3:]]
    assert rows[0] == "act" and {"x.gemm_out", "both"} <= set(rows)
    found = pipeline.compare(folder / "policy.onnx", folder / "q.onnx", folder / "x.npz")
    assert found.actions == want | {"states": 40} and found.outputs == ("act",)
    assert [r.sqnr_local for r in found.tensors] == sorted(r.sqnr_local for r in found.tensors)


def test_a_narrow_terminal_shows_whole_names(show, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    lines = show("diff", "policy.onnx", "q.onnx", "--observations", "x.npz")
    assert not any("\u2026" in line for line in lines) and max(map(len, lines)) <= 60
    assert any(line.split()[:1] == ["x.gemm_out"] for line in lines)


def test_few_observations_are_said_to_be_few(folder, capsys):
    from fewbit.artifact import Artifact
    from fewbit.cli.quantize import FEW, _unmeasured
    from fewbit.graph.read import read

    for states, warned in ((1, True), (FEW - 1, True), (FEW, False)):
        record = {"fidelity": {"action_agreement": 1.0, "states": states}}
        found = _unmeasured(Artifact(read(folder / "q.onnx"), record), folder / "q.onnx")
        assert found["fidelity"]["states"] == states
        assert (f"of {states} observations only" in capsys.readouterr().err) is warned
