"""What language models leave on disk: readable by others, whole or not there, and by one process at a time."""

import os
import resource
import stat
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import tiny_llm  # noqa: E402

from fewbit import files  # noqa: E402
from fewbit.errors import FewbitError  # noqa: E402
from fewbit.llm import export, imatrix, quantize  # noqa: E402
from fewbit.llm.options import Options  # noqa: E402

SYMMETRIC = Options("int4", 32, True, "rtn")
WAYS = {
    "quantize": lambda home, out: quantize.quantize(home / "m", out, SYMMETRIC),
    "rounded": lambda home, out: export.export(home / "m", out, "compressed-tensors", "fp8"),
    "compressed-tensors": lambda home, out: export.export(home / "a", out, "compressed-tensors"),
    "gptq": lambda home, out: export.export(home / "a", out, "gptq"),
    "gguf": lambda home, out: export.export(home / "a", out, "gguf"),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    tiny_llm.save(folder / "m")
    quantize.quantize(folder / "m", folder / "a", SYMMETRIC)
    return folder


@contextmanager
def no_file_above(size: int):
    """The system refuses to write further, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_files_are_as_readable_as_the_user_wants_them(home, tmp_path, umask):
    before = os.umask(umask)
    try:
        for name, way in WAYS.items():
            way(home, tmp_path / name)
    finally:
        os.umask(before)
    found = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert len([p for p in found if p.suffix == ".safetensors"]) >= 7
    assert {stat.S_IMODE(p.stat().st_mode) for p in found} == {0o666 & ~umask}


@pytest.mark.parametrize("size", [4096, 16384, 40000])
@pytest.mark.parametrize("way", WAYS)
def test_a_full_disk_is_one_line_and_leaves_nothing_whole(home, tmp_path, way, size):
    with no_file_above(size), pytest.raises(FewbitError, match="cannot be written") as caught:
        WAYS[way](home, tmp_path / "out")
    assert "\n" not in str(caught.value) and "out" in str(caught.value) and not (tmp_path / "out").exists()
    WAYS[way](home, tmp_path / "out")  # with room again
    assert (tmp_path / "out").exists() and [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("way", WAYS)
def test_a_second_run_into_one_place_is_refused_while_the_first_is_at_it(home, tmp_path, way):
    out = tmp_path / "out"
    with files.alone(out), pytest.raises(FewbitError, match="another run is writing it"):
        WAYS[way](home, out)
    WAYS[way](home, out)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_killed_run_holds_no_place(tmp_path):
    code = "import os, sys; from pathlib import Path; from fewbit import files\nwith files.alone(Path(sys.argv[1])): os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code, tmp_path / "out"]).returncode == 9
    assert (tmp_path / ".out.lock").exists()
    with files.alone(tmp_path / "out"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_place_belongs_to_one_process(tmp_path):
    code = "import sys; from pathlib import Path; from fewbit import files\nwith files.alone(Path(sys.argv[1])): pass"
    with files.alone(tmp_path / "out"):
        other = subprocess.run([sys.executable, "-c", code, tmp_path / "out"], capture_output=True, text=True)
    assert other.returncode == 1 and "another run is writing it" in other.stderr


def test_an_importance_matrix_on_a_full_disk_is_one_line(tmp_path):
    with no_file_above(1024), pytest.raises(FewbitError, match=r"a.gguf: cannot be written"):
        imatrix.write(tmp_path / "a.gguf", {"blk.0.attn_q.weight": torch.ones(4096).numpy()}, 64, "t", 32)
    assert not list(tmp_path.iterdir())
