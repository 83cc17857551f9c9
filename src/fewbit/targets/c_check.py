"""Exported C, compiled and run here before it is written, where this machine has a compiler: its self-test must give 0."""

import shutil
import subprocess
import tempfile
from pathlib import Path

from fewbit.errors import FewbitError, first_line

COMPILERS = ("cc", "gcc", "clang")
SECONDS = 300  # a network of millions of weights is megabytes of text


def run(files: dict[str, str], name: str) -> str:
    """Compile NAME.c with a main that calls its self-test, and run it.

    Args:
        files: what is to be written, {path: text}; the network's own two are found by their names.
        name: the network's.

    Returns:
        Which compiler it was run with, or why it was not run.

    Raises:
        FewbitError: it does not compile, or gives other actions than the reference.
    """
    compiler = next((path for path in map(shutil.which, COMPILERS) if path), None)
    if compiler is None:
        return "not run: no C compiler here"
    with tempfile.TemporaryDirectory() as folder:
        for path, text in files.items():
            if Path(path).name in (f"{name}.c", f"{name}.h"):
                (Path(folder) / Path(path).name).write_text(text, encoding="utf-8")
        main = f'#include "{name}.h"\nint main(void) {{ return {name}_self_test(); }}\n'
        (Path(folder) / "self_test_main.c").write_text(main)
        command = [compiler, "-std=c99", "-O0", "-o", "self_test", f"{name}.c", "self_test_main.c"]
        try:
            built = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SECONDS)
            if built.returncode:
                raise FewbitError(f"the C does not compile ({_first_error(built.stderr)}), nothing is written; please report it")
            wrong = subprocess.run([str(Path(folder) / "self_test")], timeout=SECONDS).returncode
        except (subprocess.TimeoutExpired, OSError) as e:
            return f"not run: {Path(compiler).name}: {first_line(e)}"
    if wrong:
        raise FewbitError("the compiled C gives other actions than the reference, so nothing is written; please report it")
    return f"self-test passed, compiled by {Path(compiler).name}"


def _first_error(text: str) -> str:
    return next((line for line in text.splitlines() if "error" in line), text.strip())[:200]
