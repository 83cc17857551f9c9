"""Clauses of docs/semantics.md against Python's Fraction and integers: other arithmetic than the code uses."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewbit.numerics import semantics as s
from fewbit.numerics.formats import INTEGERS


def exact(acc: int, m: int, shift: int, zero: int, fmt) -> int:
    return max(fmt.quant_min, min(fmt.quant_max, round(Fraction(acc * m, 1 << shift)) + zero))


@given(st.integers(-(2**31) + 1, 2**31 - 1), st.integers(2**21, 2**22 - 1), st.integers(1, 62), st.integers(-128, 127))
def test_s4_is_round_half_even_then_zero_point_then_saturate(acc, m, shift, zero):
    got = s.requantize(np.array([acc]), m, shift, zero, INTEGERS["int16"])
    assert int(got[0]) == exact(acc, m, shift, zero, INTEGERS["int16"])


@given(st.integers(-(2**24), 2**24), st.integers(1, 22))
def test_s4_constructed_ties_go_to_even(k, shift):
    acc = np.array([2 * k + 1])
    assert int(s.rescale(acc, 1 << (shift - 1), shift)[0]) == round(Fraction(2 * k + 1, 2))


@given(st.floats(1e-9, 0.9), st.integers(1, 2**45))
def test_s3_multiplier_is_nearest_and_its_product_fits(ratio, bound):
    m, shift = s.multiplier(ratio, bound)
    if m == 0:
        return
    precision = 22 if bound.bit_length() <= 31 else 53 - bound.bit_length()
    assert abs(Fraction(m, 1 << shift) - Fraction(ratio)) <= Fraction(ratio) / (1 << precision)
    assert bound * m < 2**53 or bound.bit_length() <= 31 and bound * m < 2**53


def test_s3_edges():
    assert s.multiplier(math.nextafter(1.0, 0.0), 100) == (1 << 21, 21)  # rounds up to a power of two
    assert s.multiplier(2.0**-60, 100)[0] == 0
    with pytest.raises(s.FewbitError, match="left shift"):
        s.multiplier(2.0**23, 100)


@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(0, 2**32 - 1),
    st.sampled_from(["int8", "uint8", "int16"]),
    st.integers(-3, 3),
)
def test_s2_accumulates_exactly(n_in, n_out, seed, name, zero):
    rng, fmt = np.random.default_rng(seed), INTEGERS[name]
    x = rng.choice([fmt.quant_min, fmt.quant_max, 0, 1], (3, n_in)).astype(fmt.dtype)
    w = rng.choice([-128, 127, 0, -1], (n_out, n_in)).astype(np.int8)
    b = rng.integers(-(2**30), 2**30, n_out)
    got = s.accumulate(x, zero, w, 0, b)
    want = [
        [sum(int(wi) * (int(xi) - zero) for wi, xi in zip(row, obs, strict=True)) + int(bi) for row, bi in zip(w, b, strict=True)]
        for obs in x
    ]
    assert got.tolist() == want
    assert np.abs(got).max() <= s.accumulator_bound(w, 0, b, fmt, zero)


def test_s2_bound_of_600_inputs_at_16_bits_leaves_int32():
    assert s.accumulator_bound(np.full((1, 600), 127), 0, np.zeros(1, int), INTEGERS["int16"], 0).bit_length() == 32


def test_s2_dead_channel_raises_its_scale_until_the_bias_fits():
    bias, sx, sw = np.array([3.0], np.float32), np.float32(2**-11), np.array([1e-12], np.float32)
    raised = s.raised_scale(bias, sx, sw)
    assert 0 < abs(int(s.bias_codes(bias, sx, raised)[0])) <= 2**30


@pytest.mark.parametrize("function", [np.tanh, lambda x: 1 / (1 + np.exp(-x)), lambda x: x / (1 + np.exp(-x))])
def test_s6_every_16_bit_input_within_one_code_of_the_knots_scale_and_a_half_of_8_bits(function):
    codes = np.arange(-32768, 32768).astype(np.int16)
    knots, scale = s.table(function((np.arange(s.TABLE_KNOTS) * s.TABLE_STEP - 32768) * 2.0**-12))
    got = s.look_up(codes, knots) * (float(scale) / s.TABLE_STEP)
    assert np.abs(got - function(codes * 2.0**-12)).max() <= 1.01 * float(scale)
