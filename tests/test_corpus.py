"""The corpus: every executor of this machine gives the oracle's codes; faults put in by hand are caught.

`python tests/test_corpus.py` rewrites corpus.sha256: only after a clause of docs/semantics.md has changed, and says so.
"""

import hashlib
from pathlib import Path

import corpus
import numpy as np
import oracle
import pytest

from fewbit.engine import reference
from fewbit.engine.lower import lower
from fewbit.graph.read import prepare
from fewbit.numerics import affine, semantics

CASES = list(corpus.cases())
FROZEN = Path(__file__).with_name("corpus.sha256")


def digest(found: dict[str, np.ndarray]) -> str:
    """Of the graph's outputs and of every QuantizeLinear's codes, in the order of their names."""
    sha = hashlib.sha256()
    for name in sorted(found):
        sha.update(name.encode() + np.ascontiguousarray(found[name]).tobytes())
    return sha.hexdigest()[:16]


def wrong(case: corpus.Case, expected: dict[str, np.ndarray]) -> list[str]:
    """Names of the registers in which the reference differs from what is expected."""
    program = lower(prepare(case.model))
    assert program.exact, case.name
    registers = reference.run(program, case.feeds)
    bad = [k for k, v in expected.items() if k in registers and not np.array_equal(registers[k], v)]
    return bad + [o for o in program.outputs if o not in expected]


@pytest.fixture(scope="module")
def expected() -> dict[str, dict[str, np.ndarray]]:
    return {c.name: oracle.run(c.model, c.feeds) for c in CASES}


def test_there_are_about_300_with_names_of_their_own():
    assert 270 <= len(CASES) == len({c.name for c in CASES})


def test_what_is_expected_has_not_changed(expected):
    frozen = dict(line.split("  ", 1)[::-1] for line in FROZEN.read_text().splitlines())
    assert {c.name: digest(expected[c.name]) for c in CASES} == frozen


def test_the_reference_gives_the_oracles_codes(expected):
    assert {c.name: bad for c in CASES if (bad := wrong(c, expected[c.name]))} == {}


def test_the_corpus_saturates_and_reaches_every_output_code_range(expected):
    """Not all codes at one end: of the integer outputs most lie strictly inside their range, and some at its ends."""
    codes = np.concatenate([v.reshape(-1) for found in expected.values() for v in found.values() if v.dtype.kind == "i"])
    ends = np.isin(codes, [-128, 127, 0, 255, -32768, 32767, 65535]).mean()
    assert 0.05 < ends < 0.6


def caught(monkeypatch, expected, where, name, broken) -> int:
    monkeypatch.setattr(where, name, broken)
    return sum(bool(wrong(c, expected[c.name])) for c in CASES)


def test_a_wrong_tie_rule_is_caught(monkeypatch, expected):
    def half_up(acc, m, shift):
        shift = np.asarray(shift, np.int64)
        return (acc.astype(np.int64) * np.asarray(m, np.int64) + (np.int64(1) << (shift - 1))) >> shift

    assert caught(monkeypatch, expected, semantics, "rescale", half_up) >= 10


def test_ties_away_from_zero_at_the_entry_are_caught(monkeypatch, expected):
    def quantize(x, scale, zero, fmt):
        with np.errstate(over="ignore"):
            q = np.trunc(x / np.float32(scale) + np.copysign(np.float32(0.5), x)).astype(np.float64) + zero
        return np.clip(q, fmt.quant_min, fmt.quant_max).astype(fmt.dtype)

    assert caught(monkeypatch, expected, affine, "quantize", quantize) >= 1


def test_a_dropped_zero_point_is_caught(monkeypatch, expected):
    accumulate = semantics.accumulate
    assert caught(monkeypatch, expected, semantics, "accumulate", lambda x, zx, w, zw, b: accumulate(x, 0, w, zw, b)) >= 30


def test_a_zero_point_added_before_rounding_is_caught(monkeypatch, expected):
    def requantize(acc, m, shift, zero, fmt):
        acc = acc.astype(np.int64) * np.asarray(m, np.int64) + (np.int64(zero) << np.asarray(shift, np.int64))
        return np.clip(semantics.rescale(acc, 1, shift), fmt.quant_min, fmt.quant_max).astype(fmt.dtype)

    assert caught(monkeypatch, expected, semantics, "requantize", requantize) >= 3


def test_an_int32_overflow_is_caught(monkeypatch, expected):
    accumulate = semantics.accumulate

    def narrow(*arguments):
        return accumulate(*arguments).astype(np.int32).astype(np.int64)

    assert caught(monkeypatch, expected, semantics, "accumulate", narrow) >= 3


def test_a_reciprocal_at_the_entry_is_caught(monkeypatch, expected):
    def quantize(x, scale, zero, fmt):
        with np.errstate(over="ignore"):
            q = np.rint(np.asarray(x, np.float32) * (np.float32(1) / np.float32(scale))).astype(np.float64) + zero
        return np.clip(q, fmt.quant_min, fmt.quant_max).astype(fmt.dtype)

    assert caught(monkeypatch, expected, affine, "quantize", quantize) >= 1


if __name__ == "__main__":
    FROZEN.write_text("".join(f"{digest(oracle.run(c.model, c.feeds))}  {c.name}\n" for c in CASES))
