"""Range estimators against brute force on the raw values, on distributions that are hard for them."""

import numpy as np
import pytest

from fewbit.errors import FewbitError
from fewbit.numerics import affine, metrics, ranges
from fewbit.numerics.formats import INTEGERS

RNG = np.random.default_rng(0)
HARD = {
    "normal": RNG.normal(size=40000),
    "heavy tails": RNG.standard_t(2, 40000),
    "one outlier": np.append(RNG.normal(size=40000), 1000.0),
    "one-sided": np.maximum(RNG.normal(size=40000), 0),
    "two humps": np.concatenate([RNG.normal(-5, 0.2, 20000), RNG.normal(3, 0.2, 20000)]),
    "negative": -RNG.exponential(size=20000),
    "constant": np.full(100, 3.7),
    "tiny": RNG.normal(size=20000) * 1e-30,
    "huge": RNG.normal(size=20000) * 1e37,
}


def fed(kind, x, pieces=7):
    estimator = ranges.RANGES[kind]()
    for part in np.array_split(x.astype(np.float32), pieces):
        estimator.observe(part)
    return estimator


def error(x, low, high, fmt, symmetric):
    if symmetric:
        scale, zero = affine.symmetric_scale(max(-low, high), fmt), 0
    else:
        scale, zero = affine.asymmetric_scale(low, high, fmt)
    x = x.astype(np.float32)
    return metrics.mse(x, affine.dequantize(affine.quantize(x, scale, zero, fmt), scale, zero))


@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize("kind", ranges.RANGES)
@pytest.mark.parametrize("symmetric", [True, False])
def test_every_estimator_on_every_distribution(kind, name, symmetric):
    x = HARD[name].astype(np.float32)
    low, high = fed(kind, x).range(INTEGERS["int8"], symmetric)
    assert np.isfinite([low, high]).all() and low <= high
    assert max(abs(low), abs(high)) <= np.abs(x).max() * 1.001
    assert low == -high or not symmetric
    if name == "one-sided" and not symmetric:
        assert low == 0


@pytest.mark.parametrize("name", HARD)
def test_minmax_is_minmax_and_moving_average_is_its_definition(name):
    x = HARD[name].astype(np.float32)
    assert fed("minmax", x).range(INTEGERS["int8"], False) == (x.min(), x.max())
    low = high = None
    for part in np.array_split(x, 7):
        low = float(part.min()) if low is None else 0.9 * low + 0.1 * float(part.min())
        high = float(part.max()) if high is None else 0.9 * high + 0.1 * float(part.max())
    np.testing.assert_allclose(fed("moving_average", x).range(INTEGERS["int8"], False), (low, high), rtol=1e-6)


@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize("percent", [99.99, 99.0, 90.0])
def test_percentile_is_numpys_within_a_bin(name, percent):
    x = HARD[name].astype(np.float32)
    estimator = ranges.Percentile(percent)
    for part in np.array_split(x, 5):
        estimator.observe(part)
    bin_ = estimator.width * 1.001
    low, high = estimator.range(INTEGERS["int8"], False)
    cut = (100 - percent) / 2
    assert abs(low - np.percentile(x, cut, method="inverted_cdf")) <= bin_
    assert abs(high - np.percentile(x, 100 - cut, method="inverted_cdf")) <= bin_
    top = estimator.range(INTEGERS["int8"], True)[1]
    assert abs(top - np.percentile(np.abs(x), percent, method="inverted_cdf")) <= bin_


@pytest.mark.parametrize("name", [n for n in HARD if n != "one outlier"])
@pytest.mark.parametrize("bits", ["int8", "int4"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_mse_is_within_two_percent_of_brute_force_on_the_raw_values(name, bits, symmetric):
    x, fmt = HARD[name].astype(np.float32)[::10], INTEGERS[bits]
    found = error(x, *fed("mse", x).range(fmt, symmetric), fmt, symmetric)
    low, high = float(x.min()), float(x.max())
    grid = np.linspace(0.01, 1, 100)
    if symmetric:
        tries = [(-max(-low, high) * g, max(-low, high) * g) for g in grid]
    else:
        rough = np.linspace(0.02, 1, 50)
        tries = [(min(low, 0) * a, max(high, 0) * b) for a in rough for b in rough]
    best = min(error(x, *t, fmt, symmetric) for t in tries)
    assert found <= 1.02 * best + 1e-12 * float(np.mean(x.astype(np.float64) ** 2))
    assert found <= error(x, low, high, fmt, symmetric) * 1.001 + 1e-90


def test_an_outlier_is_clipped_by_all_that_should():
    x = HARD["one outlier"]
    for kind, most in [("percentile", 10), ("entropy", 100)]:
        assert fed(kind, x).range(INTEGERS["int8"], True)[1] < most
    assert fed("mse", x).range(INTEGERS["int4"], True)[1] == 1000  # losing it would cost more than all the others together
    assert fed("minmax", x).range(INTEGERS["int8"], True)[1] == 1000


def slow_divergence(counts, k, levels):
    """Migacz's procedure with loops."""
    p = list(counts[:k])
    if sum(p) < sum(counts) / 2:
        return np.inf
    p[-1] += sum(counts[k:])
    q = [0.0] * k
    for level in range(min(levels, k)):
        bins = [j for j in range(k) if j * min(levels, k) // k == level]
        held = [j for j in bins if counts[j] > 0]
        for j in held:
            q[j] = sum(counts[i] for i in bins) / len(held)
    p, q = np.array(p), np.array(q)
    q = np.where(p > 0, np.maximum(q / max(q.sum(), 1), 1e-6), 0)
    return metrics.kl(p, q)


@pytest.mark.parametrize("name", ["normal", "heavy tails", "one-sided"])
def test_entropy_is_the_least_divergence(name):
    estimator = fed("entropy", HARD[name])
    counts = estimator.magnitudes.astype(float)
    for k in (200, 777, 1500):
        np.testing.assert_allclose(ranges.Entropy.divergence(counts, k, 128), slow_divergence(counts, k, 128), rtol=1e-9)
    chosen = estimator.threshold(128)
    last = int(np.flatnonzero(counts)[-1]) + 1
    every = {k: ranges.Entropy.divergence(counts, k, 128) for k in range(128, last + 1)}
    assert every[chosen] == min(every.values())


def test_batches_and_order_do_not_matter_and_memory_does_not_grow():
    x = np.concatenate([HARD["normal"], HARD["normal"] * 1e10, HARD["normal"] * 1e25, [0.0]])
    for kind in ("percentile", "mse", "entropy"):
        one, many = fed(kind, x, 1), fed(kind, x, 50)
        assert np.array_equal(one.counts, many.counts) and one.counts.sum() == len(x) and len(one.counts) == 2 * ranges.BINS


def test_asymmetric_wins_a_full_bit_behind_a_relu():
    """6.02 dB is one bit (Widrow): half of a symmetric range stays empty."""
    x = HARD["one-sided"].astype(np.float32)
    estimator = fed("minmax", x)
    results = []
    for fmt, symmetric in ((INTEGERS["int8"], True), (INTEGERS["uint8"], False)):
        low, high = estimator.range(fmt, symmetric)
        scale, zero = (affine.symmetric_scale(high, fmt), 0) if symmetric else affine.asymmetric_scale(low, high, fmt)
        results.append(metrics.sqnr_db(x, affine.dequantize(affine.quantize(x, scale, zero, fmt), scale, zero)))
    assert 5.5 < results[1] - results[0] < 6.5


def test_refusals_and_nothing_seen():
    for kind in ranges.RANGES:
        estimator = ranges.RANGES[kind]()
        estimator.observe(np.zeros((0, 3)))
        with pytest.raises(FewbitError, match="before anything was observed"):
            estimator.range(INTEGERS["int8"], True)
        with pytest.raises(FewbitError, match=r"element \(1, 0\) is nan"):
            estimator.observe(np.array([[1.0], [np.nan]]))
        estimator.observe(np.zeros(5))
        assert estimator.range(INTEGERS["int8"], True) == (0, 0)
