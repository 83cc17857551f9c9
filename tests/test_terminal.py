"""The command line in every terminal: help by each spelling, narrow and ASCII terminals, full disks, closed streams."""

import os
import subprocess
import sys

import pytest

from fewbit.cli.main import main

FEWBIT = [sys.executable, "-m", "fewbit"]
FULL = "/dev/full"
full_disk = pytest.mark.skipif(not os.path.exists(FULL), reason="no /dev/full here")


def run(monkeypatch, capsys, *arguments: str) -> tuple[int, str, str]:
    """(exit status, standard output, standard error) of the command line, in this process."""
    monkeypatch.setattr(sys, "argv", ["fewbit", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    return (end.value.code, *capsys.readouterr())


def test_help_comes_by_every_spelling(monkeypatch, capsys):
    for arguments in ((), ("-h",), ("--help",), ("help",)):
        status, out, err = run(monkeypatch, capsys, *arguments)
        assert status == 0 and "quantize" in out and "Usage" in out and err == ""
    for arguments in (("help", "llm", "generate"), ("llm", "generate", "-h")):
        status, out, err = run(monkeypatch, capsys, *arguments)
        assert status == 0 and "--max-tokens" in out and err == ""
    status, out, err = run(monkeypatch, capsys, "llm")
    assert status == 0 and "perplexity" in out and err == ""
    assert run(monkeypatch, capsys, "help", "nope")[::2] == (2, "fewbit: No such command 'nope'.\n")


@pytest.mark.parametrize("columns", ["40", "60", "80"])
def test_help_names_every_option_whole_at_any_width(monkeypatch, capsys, columns):
    monkeypatch.setenv("COLUMNS", columns)
    for verb, option in (("quantize", "--trust-torchscript"), ("export", "--raw-factors"), ("report", "--film-seconds")):
        out = run(monkeypatch, capsys, verb, "--help")[1]
        assert option in out and "…" not in out and out.isascii()


@pytest.mark.parametrize("arguments", [("formats",), ("plan", "7B", "--device", "H100"), ("formats", "int4", "--value", "0.3")])
def test_a_narrow_terminal_cuts_no_figure(monkeypatch, capsys, arguments):
    monkeypatch.setenv("COLUMNS", "200")
    wide = run(monkeypatch, capsys, *arguments)[1]
    monkeypatch.setenv("COLUMNS", "40")
    narrow = run(monkeypatch, capsys, *arguments)[1]
    assert "…" not in narrow and sorted(narrow.split()) == sorted(wide.split())


def test_every_verb_has_an_example(monkeypatch, capsys):
    from fewbit.cli.main import VERBS

    for verb, _, example in VERBS:
        out = " ".join(run(monkeypatch, capsys, verb.__name__, "-h")[1].split())
        assert f"Example: fewbit {example}" in out


def test_the_package_runs_as_a_module():
    done = subprocess.run([*FEWBIT, "--version"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip().count(".") == 2 and done.stderr == ""


def test_a_shell_can_complete_a_verb():
    words = os.environ | {"COMP_WORDS": "fewbit qua", "COMP_CWORD": "1", "_FEWBIT_COMPLETE": "complete_bash"}
    code = "import sys; sys.argv = ['fewbit']; from fewbit.cli import start; start()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=words)
    assert done.stdout.split() == ["quantize"]


@pytest.mark.parametrize("given", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}])
def test_a_terminal_without_unicode_gets_ascii(given):
    code = (
        "from fewbit.cli import common, streams; streams.prepare();"
        "common.show({'return_float': {'mean': 1.0, 'se': 2.0, 'n': 3}}, False); common.say('3 \\xd7 4\\u2026 \\u4f60')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | given)
    assert "1.0 +- 2.0" in done.stdout and done.stderr == "3 x 4... \\u4f60\n"


@full_disk
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_full_disk_behind_standard_output_is_one_line(options):
    with open(FULL, "w") as full:
        done = subprocess.run([*FEWBIT, "formats", *options], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2 and done.stderr.startswith("fewbit: standard output") and done.stderr.count("\n") == 1


@full_disk
def test_a_full_disk_behind_standard_error_stops_nothing():
    with open(FULL, "w") as full:
        done = subprocess.run([*FEWBIT, "inspect", "no.onnx"], stdout=subprocess.PIPE, stderr=full)
    assert done.returncode == 2


def test_a_reader_that_goes_away_and_a_closed_stream_end_quietly():
    done = subprocess.run(f"{sys.executable} -m fewbit formats | true", shell=True, capture_output=True, text=True)
    assert done.stderr == ""
    done = subprocess.run(f"{sys.executable} -m fewbit formats >&-", shell=True, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_progress_is_a_line_now_and_then_where_there_is_no_terminal(monkeypatch, capsys):
    from fewbit.cli import common

    now = [0.0]
    monkeypatch.setattr(common.time, "monotonic", lambda: now[0])
    with common.Bar() as bar:
        for k in range(100):
            now[0] += 1.0
            bar("training", 300 * k, 30_000)
    assert capsys.readouterr().err.splitlines() == [f"fewbit: training: {300 * k} of 30000 steps" for k in (29, 59, 89)]


def test_an_interrupted_language_model_says_that_it_can_go_on(tmp_path, monkeypatch, capsys):
    from fewbit.llm import quantize

    def stopped(*arguments):
        (tmp_path / ".out.part").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(quantize, "quantize", stopped)
    status, _, err = run(monkeypatch, capsys, "llm", "quantize", str(tmp_path), "-o", str(tmp_path / "out"))
    assert status == 130 and ".out.part; the same command goes on from there" in err and "interrupted" in err
