"""C is compiled and run before it is written: what does not compile, or acts otherwise, leaves no file."""

import shutil

import corpus
import numpy as np
import pytest

from fewbit.errors import FewbitError
from fewbit.targets import c, c_check

needs_a_compiler = pytest.mark.skipif(not any(map(shutil.which, c_check.COMPILERS)), reason="needs a C compiler")


@pytest.fixture
def artifact(tmp_path):
    g = corpus.Graph(1)
    case = g.case("policy", g.gemm(g.entry("int16", 3, 0.5), 0.5, np.ones((2, 3), np.int8), np.ones(2), None))
    path = tmp_path / "policy.onnx"
    path.write_bytes(case.model.SerializeToString())
    return path


@needs_a_compiler
@pytest.mark.parametrize("layout", c.LAYOUTS)
def test_an_export_says_by_which_compiler_its_self_test_passed(artifact, tmp_path, layout):
    made = c.export(artifact, tmp_path / "firmware", layout=layout)
    assert "self-test passed" in made["executed"] and all(map(len, made["files"]))


@needs_a_compiler
def test_other_actions_than_the_references_are_refused_and_nothing_is_written(artifact, tmp_path, monkeypatch):
    right = c.array
    monkeypatch.setattr(c, "array", lambda values: right(values + (1 if values.dtype.kind == "i" else 0)))
    with pytest.raises(FewbitError, match="the compiled C gives other actions than the reference"):
        c.export(artifact, tmp_path / "firmware")
    assert not (tmp_path / "firmware").exists()


@needs_a_compiler
def test_c_that_does_not_compile_is_refused_with_the_compilers_line():
    with pytest.raises(FewbitError, match="does not compile .*error"):
        c_check.run({"a.c": "int a_self_test(void) { return nothing; }", "a.h": "int a_self_test(void);"}, "a")


def test_without_a_compiler_the_export_says_that_it_was_not_run(artifact, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert c.export(artifact, tmp_path / "firmware")["executed"] == "not run: no C compiler here"
