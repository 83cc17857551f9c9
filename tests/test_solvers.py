"""Solvers against exhaustive search on tiny layers, against the objective they minimise, and against each other's promises."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbit import solvers
from fewbit.errors import FewbitError
from fewbit.numerics.formats import INTEGERS
from fewbit.solvers import clip, gptq, rtn, scaling
from fewbit.solvers.statistics import Statistics, output_error


def layer(seed, n_out, n_in, correlated=True):
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(n_out, n_in)).astype(np.float32)
    mix = rng.normal(size=(n_in, n_in)) if correlated else np.eye(n_in)
    x = rng.normal(size=(400, n_in)) @ mix * 10.0 ** rng.uniform(-1, 1, n_in)
    seen = Statistics(n_in)
    for part in np.array_split(x, 3):
        seen.observe(part)
    return weight, x, seen


def cost(weight, codes, scale, x):
    """Mean squared output error, from the inputs themselves."""
    d = weight.astype(np.float64) - codes * rtn.columns(scale, weight.shape[1])
    return ((x @ d.T) ** 2).mean(axis=0)


def test_statistics_streamed_are_those_of_the_whole():
    _, x, seen = layer(0, 3, 8)
    np.testing.assert_allclose(seen.gram, x.T @ x / len(x), rtol=1e-10)
    np.testing.assert_allclose(seen.mean, x.mean(axis=0), rtol=1e-10)
    assert np.array_equal(seen.peak, np.abs(x).max(axis=0)) and seen.count == len(x)


@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 40), st.sampled_from(["int8", "int4", "int3", "int2"]))
@settings(max_examples=40, deadline=None)
@pytest.mark.parametrize("name", ["gptq", "adaround"])
def test_never_above_rounding_to_nearest(name, seed, n_out, n_in, bits):
    weight, x, seen = layer(seed, n_out, n_in)
    fmt = INTEGERS[bits]
    scale = rtn.channel_scale(weight, fmt)
    codes = solvers.solve(name, weight, scale, fmt, seen)
    assert codes.dtype == fmt.dtype and np.abs(codes.astype(int)).max() <= fmt.quant_max
    nearest = cost(weight, rtn.solve(weight, scale, fmt), scale, x)
    assert (cost(weight, codes, scale, x) <= nearest * (1 + 1e-6) + 1e-12).all()


@pytest.mark.parametrize("name, share", [("gptq", 0.3), ("adaround", 0.8)])
def test_well_below_rounding_to_nearest_where_inputs_are_correlated(name, share):
    ratios = []
    for seed in range(5):
        weight, x, seen = layer(seed, 16, 48)
        fmt = INTEGERS["int4"]
        scale = rtn.channel_scale(weight, fmt)
        codes = solvers.solve(name, weight, scale, fmt, seen)
        ratios.append(cost(weight, codes, scale, x).sum() / cost(weight, rtn.solve(weight, scale, fmt), scale, x).sum())
    print(f"{name}: output error {np.mean(ratios):.1%} of rounding to nearest's")
    assert np.mean(ratios) < share


@pytest.mark.parametrize("bits, n_in", [("int3", 4), ("int2", 7), ("int4", 3), ("int8", 2)])
def test_gptq_equals_exhaustive_search_on_layers_tiny_enough_for_one(bits, n_in):
    fmt = INTEGERS[bits]
    every = np.array(list(itertools.product(range(-fmt.quant_max, fmt.quant_max + 1), repeat=n_in)))
    for seed in range(25):
        weight, x, seen = layer(seed, 1, n_in)
        scale = rtn.channel_scale(weight, fmt)
        best = cost(np.repeat(weight, len(every), 0), every, np.repeat(scale, len(every)), x).min()
        got = cost(weight, gptq.solve(weight, scale, fmt, seen), scale, x)[0]
        assert got <= best * (1 + 1e-9)


def test_polishing_only_helps(monkeypatch):
    ratios = []
    for seed in range(5):
        weight, x, seen = layer(seed, 16, 48)
        scale = rtn.channel_scale(weight, INTEGERS["int4"])
        with monkeypatch.context() as m:
            m.setattr(gptq, "SWEEPS", 0)
            plain = cost(weight, gptq.solve(weight, scale, INTEGERS["int4"], seen), scale, x)
        polished = cost(weight, gptq.solve(weight, scale, INTEGERS["int4"], seen), scale, x)
        assert (polished <= plain * (1 + 1e-9)).all()
        ratios.append(polished.sum() / plain.sum())
    print(f"polishing leaves {np.mean(ratios):.1%} of GPTQ's error")


def test_uncorrelated_inputs_leave_nothing_to_gain():
    """With a diagonal H every column is on its own, and nearest is the optimum: gptq must find exactly it."""
    weight, _, _ = layer(0, 8, 12)
    seen = Statistics(12)
    seen.observe(np.eye(12) * 5)
    scale = rtn.channel_scale(weight, INTEGERS["int4"])
    assert np.array_equal(gptq.solve(weight, scale, INTEGERS["int4"], seen), rtn.solve(weight, scale, INTEGERS["int4"]))


def test_blocks_and_dead_inputs_do_not_change_gptq(monkeypatch):
    weight, x, _ = layer(1, 8, 60)
    x[:, [3, 17]] = 0
    seen = Statistics(60)
    seen.observe(x)
    scale = rtn.channel_scale(weight, INTEGERS["int4"])
    whole = gptq.solve(weight, scale, INTEGERS["int4"], seen)
    monkeypatch.setattr(gptq, "BLOCK", 7)
    assert np.array_equal(gptq.solve(weight, scale, INTEGERS["int4"], seen), whole)
    nearest = rtn.solve(weight, scale, INTEGERS["int4"])
    assert np.array_equal(whole[:, [3, 17]], nearest[:, [3, 17]])


def test_groups_have_their_own_scales():
    weight, x, seen = layer(2, 6, 40)
    weight[:, 10:20] *= 20
    fmt = INTEGERS["int4"]
    scale = np.stack([rtn.channel_scale(weight[:, k : k + 10], fmt) for k in range(0, 40, 10)], axis=1)
    for name in ("rtn", "gptq", "adaround"):
        codes = solvers.solve(name, weight, scale, fmt, seen)
        assert (
            cost(weight, codes, scale, x).sum()
            < cost(weight, rtn.solve(weight, s := rtn.channel_scale(weight, fmt), fmt), s, x).sum()
        )


def test_clip_is_the_best_of_its_shares():
    weight, x, seen = layer(3, 10, 30)
    weight[:, 0] *= 8
    fmt = INTEGERS["int4"]
    found, full = clip.channel_scale(weight, fmt, seen), rtn.channel_scale(weight, fmt)
    best = np.min([cost(weight, rtn.solve(weight, s, fmt), s, x) for s in (full * np.float32(k) for k in clip.SHARES)], axis=0)
    np.testing.assert_allclose(cost(weight, rtn.solve(weight, found, fmt), found, x), best, rtol=1e-6)
    assert (found < full).any()


def test_awq_equals_the_exhaustive_search_of_its_exponents():
    weight, x, seen = layer(4, 10, 30)
    fmt = INTEGERS["int4"]

    def error(s):
        step = rtn.channel_scale(weight * s, fmt)
        d = weight - rtn.solve(weight * s, step, fmt) * step[:, None].astype(np.float64) / s
        return ((x @ d.T) ** 2).mean()

    rms = np.sqrt((x**2).mean(axis=0))
    rms = np.maximum(rms, rms.max() / 256)
    tried = [error(scaling.power_of_two(rms**a)) for a in scaling.EXPONENTS]
    assert error(scaling.awq(weight, seen, fmt)) == pytest.approx(min(tried)) and min(tried) <= tried[0]


def test_scalings_are_powers_of_two_and_survive_dead_channels():
    weight, _, seen = layer(5, 4, 6)
    weight[:, 2] = 0
    silent = Statistics(6)
    silent.observe(np.zeros((10, 6)))
    for statistics in (seen, silent):
        for s in (scaling.smooth(weight, statistics), scaling.awq(weight, statistics, INTEGERS["int8"]),
                  scaling.cross_layer(weight, np.zeros((6, 3)))):  # fmt: skip
            assert np.isfinite(s).all() and (s > 0).all() and np.array_equal(np.log2(s), np.rint(np.log2(s)))


@pytest.mark.parametrize("text, want", [
    ("rtn", ("", False, "rtn")), ("gptq", ("", False, "gptq")), ("awq", ("awq", False, "rtn")),
    ("smooth+clip+gptq", ("smooth", True, "gptq")), ("clip", ("", True, "rtn")), ("gptq+bias", ("", False, "gptq", True)),
])  # fmt: skip
def test_methods_are_words_joined(text, want):
    assert solvers.method(text) == solvers.Method(*want)


@pytest.mark.parametrize("text", ["", "gptq+rtn", "smooth+awq", "magic", "gptq,awq"])
def test_unknown_methods_are_refused(text):
    with pytest.raises(FewbitError, match="joined by"):
        solvers.method(text)


def test_solvers_without_inputs_are_refused():
    weight, _, _ = layer(0, 2, 3)
    for name in ("gptq", "adaround"):
        with pytest.raises(FewbitError, match="calibrate first"):
            solvers.solve(name, weight, np.ones(2, np.float32), INTEGERS["int4"], None)


def test_output_error_is_the_mean_over_the_inputs():
    weight, x, seen = layer(7, 5, 9)
    scale = rtn.channel_scale(weight, INTEGERS["int4"])
    codes = rtn.solve(weight, scale, INTEGERS["int4"])
    np.testing.assert_allclose(
        output_error(weight, codes * scale[:, None].astype(float), seen.gram), cost(weight, codes, scale, x)
    )


def test_bias_correction_takes_back_the_mean_error_of_each_output():
    import torch

    from fewbit import sources
    from fewbit.engine.load import load
    from fewbit.graph.qdq import Scheme
    from fewbit.graph.quantize import quantize

    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(12, 40), torch.nn.ReLU(), torch.nn.Linear(40, 5))
    x = np.random.default_rng(0).normal(1, 1, (3000, 12)).astype(np.float32)
    want, model = net(torch.tensor(x)).detach().numpy(), sources.load(net).model
    means = []
    for text in ("rtn", "rtn+bias"):
        got = load(quantize(model, {"observation": x}, Scheme("int3", "uint16", method=text))[0])(x)
        means.append(np.abs((got - want).mean(axis=0)).max())
    print(f"largest mean error {means[0]:.4f}, corrected {means[1]:.4f}")
    assert means[1] < 0.35 * means[0]
