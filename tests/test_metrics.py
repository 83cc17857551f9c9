"""Metrics against sums in exact Python arithmetic, and the textbook's 6.02 dB a bit."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewbit.errors import FewbitError
from fewbit.numerics import affine, metrics
from fewbit.numerics.formats import INTEGERS

pairs = st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3)), min_size=1, max_size=30)


@given(pairs)
def test_against_exact_sums(values):
    a, b = (np.array(v) for v in zip(*values, strict=True))
    noise, signal = math.fsum((x - y) ** 2 for x, y in values), math.fsum(x * x for x, _ in values)
    assert metrics.mse(a, b) == pytest.approx(noise / len(values), rel=1e-9)
    assert metrics.max_error(a, b) == max(abs(x - y) for x, y in values)
    if noise > 1e-200 and signal > 1e-200:
        assert metrics.sqnr_db(a, b) == pytest.approx(10 * math.log10(signal / noise), abs=1e-6)
    lengths = math.sqrt(signal) * math.sqrt(math.fsum(y * y for _, y in values))
    if lengths > 1e-100:
        assert metrics.cosine(a, b) == pytest.approx(math.fsum(x * y for x, y in values) / lengths, abs=1e-9)


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(1, 100)), min_size=1, max_size=20))
def test_kl(values):
    p, q = (np.array(v, float) for v in zip(*values, strict=True))
    if p.sum():
        want = math.fsum(x / p.sum() * math.log(x / p.sum() / (y / q.sum())) for x, y in values if x)
        assert metrics.kl(p, q) == pytest.approx(want, abs=1e-9) and metrics.kl(p, q) > -1e-12


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_a_bit_is_six_decibels(bits):
    fmt = INTEGERS[f"uint{bits}"]
    x = np.random.default_rng(0).uniform(0, fmt.quant_max, 200_000).astype(np.float32) - fmt.quant_max / 2
    back = affine.dequantize(affine.quantize(x + fmt.quant_max / 2, 1.0, 0, fmt), 1.0) - fmt.quant_max / 2
    assert metrics.sqnr_db(x, back) == pytest.approx(20 * math.log10(fmt.quant_max), abs=0.05)


def test_edges():
    z, o = np.zeros(3), np.ones(3)
    assert metrics.sqnr_db(o, o) == math.inf and metrics.sqnr_db(z, o) == -math.inf and metrics.sqnr_db(z, z) == math.inf
    assert metrics.cosine(z, z) == 1 and metrics.cosine(z, o) == 0 and metrics.kl(o, np.array([1, 1, 0])) == math.inf
    with pytest.raises(FewbitError, match=r"\[3\] and \[2\]"):
        metrics.mse(z, np.zeros(2))
    with pytest.raises(FewbitError, match="no negative count"):
        metrics.kl(-o, o)
