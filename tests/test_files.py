"""Files appear whole or not at all, with the mode that the umask gives, whoever else writes them at the same time."""

import os
import stat
from pathlib import Path

import pytest

from fewbit import files
from fewbit.errors import FewbitError


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_a_file_has_the_mode_of_the_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        files.write_whole(tmp_path / "a", b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~mask


def test_a_file_that_is_there_is_replaced(tmp_path):
    (tmp_path / "a").write_text("old")
    assert files.write_whole(tmp_path / "a", "new") == 3 and (tmp_path / "a").read_text() == "new"


def test_two_processes_write_one_file_and_one_of_them_is_whole(tmp_path):
    children = []
    for letter in "xy":
        children.append(os.fork())
        if children[-1] == 0:
            status = 1
            try:
                for _ in range(50):
                    files.write_whole(tmp_path / "a", letter * 100_000)
                status = 0
            finally:
                os._exit(status)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]
    text = (tmp_path / "a").read_text()
    assert text in ("x" * 100_000, "y" * 100_000) and [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("old")

    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as f:
            f.write(data[:1])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(FewbitError, match="cannot be written .No space left on device"):
        files.write_whole(tmp_path / "a", b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_text() == "old"
