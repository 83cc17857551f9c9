"""The Python example of the README runs as it stands there."""

import re

from conftest import ROOT


def test_the_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").symlink_to(ROOT / "demo")
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S):
        exec(compile(block, "README.md", "exec"), {})
    assert 0.5 < float(capsys.readouterr().out.split()[0]) < 1.1 and (tmp_path / "policy.int8.onnx").stat().st_size < 100_000
