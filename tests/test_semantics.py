"""Clauses of docs/semantics.md against Python's Fraction and integers: other arithmetic than the code uses."""

import hashlib
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewbit.engine import reference
from fewbit.engine.program import Linear, Program
from fewbit.numerics import affine, unary
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


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


@pytest.mark.parametrize("range_", [8, 16, 32])
@pytest.mark.parametrize("name, function, worst, segments", [
    ("tanh", np.tanh, 1.26, 32),
    ("sigmoid", lambda x: 1 / (1 + np.exp(-x)), 1.05, 32),
    ("silu", lambda x: x / (1 + np.exp(-x)), 1.2, 32),
    ("elu", lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))), 1.05, 32),
    ("gelu", gelu, 2.05, 32),
    ("softplus", lambda x: np.logaddexp(0, x), 1.05, 32),
    ("leaky relu", lambda x: np.where(x > 0, x, 0.01 * x), 1.05, 32),
    ("clipped", lambda x: np.clip(x, -1.23, 4.56), None, 2048),
])  # fmt: skip
def test_s6_accuracy_over_every_16_bit_input(name, function, worst, segments, range_):
    """In output codes; the figures of docs/semantics.md. Squashing is asked for at +-8, where an int16 of 2^-12 ends."""
    if name in ("tanh", "sigmoid") and range_ > 8:
        return
    fitted = unary.fit(function, range_ / 32768)
    wanted = np.clip(function(unary.CODES * range_ / 32768) / fitted.scale, -32768, 32767)
    error = np.abs(unary.evaluate(unary.CODES, fitted) - wanted)
    if worst is None:  # a kink inside a segment of 32 input codes costs up to five of them
        worst = 0.5 + 5 * range_ / 32768 / float(fitted.scale)
    assert fitted.c.shape[1] == segments and error.max() <= worst and error.mean() < 0.5


def test_s6_coefficients_are_the_same_everywhere():
    first = unary.fit(np.tanh, 2.0**-12)
    assert first.guard == 2 and first.c[:, 16].tolist() == [8026, 30800, -1886, -515, 69]
    assert hashlib.sha256(first.c.astype("<i2").tobytes()).hexdigest().startswith("5a9560cdc1f5fa13")
    noise = np.random.default_rng(0)

    def shaken(x):
        return np.tanh(x) * (1 + 2.0**-52 * noise.integers(-2, 3, x.shape))

    assert all(np.array_equal(unary.fit(shaken, 2.0**-12).c, first.c) for _ in range(10))


codes = st.integers(-32768, 32767)
ratios = st.floats(1e-4, 1e3)


@given(codes, codes, ratios, ratios, st.integers(-128, 127), st.booleans())
def test_s5_add_is_one_rounding_on_one_shift(a, b, ratio_a, ratio_b, zero, minus):
    ratio_b = -ratio_b if minus else ratio_b
    m_a, m_b, shift = s.add_multipliers(ratio_a, ratio_b)
    got = s.add(np.array([a]), np.array([b]), m_a, m_b, shift, zero, INTEGERS["int16"])
    assert int(got[0]) == exact(a * m_a + b * m_b, 1, shift, zero, INTEGERS["int16"])
    largest = max(ratio_a, abs(ratio_b))
    for m, ratio in ((m_a, ratio_a), (m_b, ratio_b)):
        assert abs(Fraction(m, 1 << shift) - Fraction(ratio)) <= Fraction(largest) / 2**21


@given(st.integers(-65535, 65535), st.integers(-65535, 65535), st.floats(1e-9, 0.9), st.integers(-128, 127))
def test_s5_multiply_is_one_multiplier_of_19_bits(a, b, ratio, zero):
    m, shift = s.multiplier(ratio, s.PRODUCT_BOUND, s.PRODUCT_BITS)
    assert m < 2**19 and abs(a * b * m) < 2**53
    got = s.multiply(np.array([a]), np.array([b]), m, shift, zero, INTEGERS["int8"])
    assert int(got[0]) == exact(a * b, m, shift, zero, INTEGERS["int8"])


@given(st.floats(-1e6, 1e6, width=32), st.integers(-20, 4), codes)
def test_s1_a_power_of_two_divides_and_multiplies_alike(x, exponent, code):
    scale = np.float32(2.0**exponent)
    assert affine.quantize(np.float32(x), scale, 0, INTEGERS["int16"]) == affine.quantize(
        np.float32(x) * (np.float32(1) / scale) * scale, scale, 0, INTEGERS["int16"]
    )
    assert affine.quantize(affine.dequantize(np.array([code], np.int16), scale), scale, 0, INTEGERS["int16"])[0] == code


@given(st.integers(-(2**40), 2**40), st.floats(2.0**-30, 1, width=32))
def test_s7_exit_is_one_float32_multiplication(acc, scale):
    """The accumulator rounds to float32 once, the product once."""
    program = Program({}, {}, (), ())
    step = Linear("x", "y", np.array([[1]]), np.array([acc]), 0, 0, exit_scale=np.float32([scale]))
    got = reference.step(step, {"x": np.array([[0]]), "p": program})[0, 0]
    assert got.dtype == np.float32
    assert got == np.float32(Fraction(float(np.float32(acc))) * Fraction(float(np.float32(scale))))


def test_s8_a_state_survives_leaving_and_entering_the_graph():
    """Cell state int16: dequantize, hand over as float32, quantize; every code comes back, whatever the scale."""
    every = unary.CODES.astype(np.int16)
    for scale in np.float32([2.0**-12, 0.0123, 3.3e-4, 7.7]):
        assert np.array_equal(affine.quantize(affine.dequantize(every, scale), scale, 0, INTEGERS["int16"]), every)
