"""Where the real policies are: FEWBIT_ZOO (default ../shared/zoo) and ../shared/robots; tests say so when they skip."""

import os
import signal
import sys
from pathlib import Path

import chromium
import float_graphs
import pytest

ROOT = Path(__file__).parents[1]
ZOO = Path(os.environ.get("FEWBIT_ZOO", ROOT.parent / "shared" / "zoo"))
ROBOTS = ZOO.parent / "robots"
sys.path.append(str(ROBOTS))

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in a shell's background; children that a test interrupts would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_terminal_summary(terminalreporter):
    """The table of every real policy: what the tests measured, not only that they passed."""
    reports = [r for group in ("passed", "failed") for r in terminalreporter.stats.get(group, [])]
    rows = sorted(str(v) for r in reports for k, v in getattr(r, "user_properties", []) if k == "measured")
    if rows:
        terminalreporter.section("measured")
        terminalreporter.write_line("\n".join(rows))


@pytest.fixture(autouse=True)
def the_same_numbers_whatever_ran_before():
    float_graphs.RNG.bit_generator.state = float_graphs.FIRST


@pytest.fixture
def zoo() -> Path:
    if not ZOO.is_dir():
        pytest.skip(f"no policy zoo at {ZOO}; set FEWBIT_ZOO")
    return ZOO


@pytest.fixture
def robots() -> Path:
    if not ROBOTS.is_dir():
        pytest.skip(f"no robots at {ROBOTS}")
    return ROBOTS


@pytest.fixture(scope="module")
def browser():
    if chromium.PROGRAM is None:
        pytest.skip("needs chromium")
    with chromium.Browser() as found:
        yield found
