"""The same cases without Python: under sanitizers, fuzzed, and on 64-bit Arm in an emulator."""

import re
import shutil
import subprocess

import native_cases
import pytest
from conftest import ROOT
from test_native import network

ARM = ("aarch64-linux-gnu-g++", "qemu-aarch64")


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    path = tmp_path_factory.mktemp("cases") / "cases"
    kinds = [["int8"], ["uint8"], ["int16"], ["uint16"], ["int16", "uint8"]]
    weights = ["int8", "int6", "int2"]
    widths = [[first, 65, 16, 3] for first in (1, 17, 64, 33)]
    networks = [network(k, widths[k % 4], kinds[k % 5], weights[k % 3], 1 + 9 * (k % 4), k % 2 == 0) for k in range(40)]
    assert native_cases.write(path, networks) > 300
    return path


def build(folder, *options: str):
    def run(*command: str) -> None:
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

    run("cmake", "-S", str(ROOT), "-B", str(folder), "-G", "Ninja", "-DFEWBIT_RUNNER=ON", *options)
    run("cmake", "--build", str(folder), "--target", "runner")
    return str(folder / "runner")


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory):
    flags = "-DCMAKE_CXX_FLAGS=-fsanitize=address,undefined -fno-sanitize-recover=all -g1"
    return build(tmp_path_factory.mktemp("sanitized"), flags, "-DFEWBIT_OPTIMIZE=-O1")  # -O3 takes them many minutes


def test_sanitizers_find_nothing(sanitized, cases):
    done = subprocess.run([sanitized, str(cases)], capture_output=True, text=True)
    print(done.stdout)
    assert done.returncode == 0 and "portable" in done.stdout, done.stdout + done.stderr[-3000:]


def test_fuzzed_programs_are_run_or_refused(sanitized, cases):
    done = subprocess.run([sanitized, str(cases), "--fuzz", "7", "20000"], capture_output=True, text=True)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    ran, refused = map(int, re.findall(r"\d+", done.stdout))
    assert ran > 500 and refused > 5000


def grouped(*command: str) -> list[str]:
    """Grouped weights on every instruction set against a plain loop; the instruction sets."""
    done = subprocess.run([*command, "--grouped", "3", "150"], capture_output=True, text=True)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return done.stdout.rsplit("differ: ", 1)[1].split()


def test_sanitizers_find_nothing_in_grouped_weights(sanitized):
    assert grouped(sanitized)[-1] == "portable"


@pytest.mark.skipif(not all(map(shutil.which, ARM)), reason="NEON needs Debian's g++-aarch64-linux-gnu and qemu-user")
def test_arm_in_an_emulator(tmp_path, cases):
    arm = ("-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64", f"-DCMAKE_CXX_COMPILER={ARM[0]}")
    runner = build(tmp_path, *arm, "-DCMAKE_EXE_LINKER_FLAGS=-static")
    done = subprocess.run([ARM[1], "-cpu", "max", runner, str(cases)], capture_output=True, text=True)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["neondot", "neon", "portable"]
    assert grouped(ARM[1], "-cpu", "max", runner) == ["neondot", "neon", "portable"]
    plain = subprocess.run([ARM[1], "-cpu", "cortex-a53", runner, str(cases)], capture_output=True, text=True)
    assert plain.returncode == 0 and not plain.stdout.startswith("neondot"), plain.stdout + plain.stderr
