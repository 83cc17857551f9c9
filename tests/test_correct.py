"""Importance weights: unbiased by exact enumeration, and equal to verl's published formulas on random tensors.

The oracle below states those formulas (verl, docs/algo/rollout_corr_math.md and its helper) in plain loops over sequences.
"""

import itertools
import math

import numpy as np
import pytest
import torch

from fewbit.errors import FewbitError
from fewbit.rl import correct

KINDS = [np.asarray, torch.tensor]


def random_batch(seed, sequences=7, steps=11, spread=0.4):
    rng = np.random.default_rng(seed)
    behaviour = -rng.exponential(1.0, (sequences, steps))
    log_prob = behaviour + spread * rng.standard_normal((sequences, steps))
    mask = (np.arange(steps) < rng.integers(1, steps + 1, sequences)[:, None]).astype(np.float64)
    return log_prob, behaviour, mask


def rows(log_prob, behaviour, mask):
    """The log-ratios of each sequence's tokens, as lists."""
    return [[a - b for a, b, m in zip(*row, strict=True) if m] for row in zip(log_prob, behaviour, mask, strict=True)]


def spread_out(values, mask):
    """One value a sequence, or a list of them, onto the sequence's tokens."""
    out = np.zeros(mask.shape)
    for k, v in enumerate(values):
        out[k, mask[k] != 0] = v
    return out


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("seed", range(3))
def test_truncated_weights_are_verls(kind, level, normalise, seed):
    batch = random_batch(seed)
    ratios = rows(*batch)
    if level == "token":
        want = [[min(math.exp(r), 1.5) for r in row] for row in ratios]
        mean = np.mean(list(itertools.chain(*want)))
    else:
        want = [min(math.exp(sum(row)), 1.5) for row in ratios]
        mean = np.mean(want)
    expected = spread_out(want, batch[2]) / (mean if normalise else 1)
    got = correct.weights(*map(kind, batch), level=level, truncate=1.5, normalise=normalise)
    assert isinstance(got, torch.Tensor if kind is torch.tensor else np.ndarray)
    np.testing.assert_allclose(np.asarray(got), expected, rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", correct.LEVELS)
def test_the_band_is_verls(kind, level):
    batch = random_batch(5)
    ratios = rows(*batch)
    ratio = {
        "token": lambda row: [math.exp(r) for r in row],
        "sequence": lambda row: [math.exp(sum(row))] * len(row),
        "geometric": lambda row: [math.exp(sum(row) / len(row))] * len(row),
    }[level]
    high = 1.1 if level == "geometric" else 1.5
    for low in (None, 0.8):
        kept = [[float((1 / high if low is None else low) <= r <= high) for r in ratio(row)] for row in ratios]
        got = correct.within(*map(kind, batch), level=level, high=high, low=low)
        np.testing.assert_array_equal(np.asarray(got), spread_out(kept, batch[2]))
        assert 0 < got.sum() < batch[2].sum()


@pytest.mark.parametrize("kind", KINDS)
def test_diagnostics_are_verls(kind):
    batch = random_batch(9)
    ratios = rows(*batch)
    tokens, sums = np.array(list(itertools.chain(*ratios))), np.array([sum(row) for row in ratios])
    got = correct.diagnostics(*map(kind, batch), truncate=1.5)
    assert got["kl"] == pytest.approx(-tokens.mean())
    assert got["k3"] == pytest.approx((np.exp(tokens) - tokens - 1).mean())
    for level, logs in (("token", tokens), ("sequence", sums)):
        w = np.exp(logs)
        cut = np.minimum(w, 1.5)
        assert got[f"chi2_{level}"] == pytest.approx((w**2).mean() - 1)
        assert got[f"ess_{level}"] == pytest.approx(1 / ((w / w.mean()) ** 2).mean())
        assert got[f"truncated_{level}"] == pytest.approx((w > 1.5).mean())
        assert got[f"bias_{level}"] == pytest.approx(cut.mean() - w.mean()) and got[f"bias_{level}"] < 0
        assert got[f"variance_{level}"] == pytest.approx(w.var())
        assert got[f"variance_truncated_{level}"] == pytest.approx(cut.var()) and cut.var() < w.var()


def sequences(seed, actions=3, steps=3):
    """Every sequence of two policies that look at what came before: (log_prob [n, steps], behaviour [n, steps], any f [n])."""
    rng = np.random.default_rng(seed)
    tables = [{} for _ in range(2)]
    logs = [[], []]
    every = list(itertools.product(range(actions), repeat=steps))
    for sequence in every:
        for table, log in zip(tables, logs, strict=True):
            for t in range(steps):
                if sequence[:t] not in table:
                    table[sequence[:t]] = rng.dirichlet(np.full(actions, 3.0))
            log.append([math.log(table[sequence[:t]][sequence[t]]) for t in range(steps)])
    return np.array(logs[0]), np.array(logs[1]), rng.standard_normal(len(every))


@pytest.mark.parametrize("seed", range(4))
def test_plain_sequence_weights_are_unbiased_and_truncated_ones_are_not(seed):
    """Exactly: the expectation over all sequences, not a sample of them."""
    log_prob, behaviour, f = sequences(seed)
    taken, wanted = np.exp(behaviour.sum(1)), np.exp(log_prob.sum(1))
    plain = correct.weights(log_prob, behaviour, level="sequence")[:, 0]
    assert taken @ (plain * f) == pytest.approx(wanted @ f, abs=1e-12)
    cut = correct.weights(log_prob, behaviour, level="sequence", truncate=1.2)[:, 0]
    assert taken @ cut < taken @ plain - 1e-3
    assert taken @ (cut * f) != pytest.approx(wanted @ f, abs=1e-4)
    assert taken @ cut**2 - (taken @ cut) ** 2 < taken @ plain**2 - (taken @ plain) ** 2


def test_plain_token_weights_are_unbiased_for_one_action_given_what_came_before():
    log_prob, behaviour, _ = sequences(1, steps=1)
    f = np.array([1.0, -2.0, 5.0])
    plain = correct.weights(log_prob, behaviour)[:, 0]
    assert np.exp(behaviour[:, 0]) @ (plain * f) == pytest.approx(np.exp(log_prob[:, 0]) @ f)
    cut = correct.weights(log_prob, behaviour, truncate=1.0)[:, 0]
    assert np.exp(behaviour[:, 0]) @ cut < 1


def test_self_normalised_weights_have_mean_one_and_their_bias_shrinks_with_the_samples():
    log_prob, behaviour, f = sequences(2)
    p, want, rng = np.exp(behaviour.sum(1)), float(np.exp(log_prob.sum(1)) @ f), np.random.default_rng(0)
    off = []
    for n in (2, 32):
        drawn = rng.choice(len(p), (20000, n), p=p / p.sum())
        w = correct.weights(log_prob, behaviour, level="sequence")[:, 0][drawn]
        off.append(abs(((w / w.mean(1, keepdims=True)) * f[drawn]).mean() - want))
    assert off[1] < off[0] / 4
    batch = random_batch(3)
    assert correct.weights(*batch, normalise=True).sum() == pytest.approx(batch[2].sum())


@pytest.mark.parametrize("kind", KINDS)
def test_the_bypass_and_the_proximal_policy(kind):
    log_prob, behaviour, mask = map(kind, random_batch(4))
    old, weight = correct.old_log_prob(behaviour, mask=mask)
    np.testing.assert_array_equal(np.asarray(old), np.asarray(behaviour) * np.asarray(mask))
    np.testing.assert_array_equal(np.asarray(weight), np.asarray(mask))
    old, weight = correct.old_log_prob(behaviour, log_prob, mask)
    np.testing.assert_array_equal(np.asarray(old), np.asarray(log_prob) * np.asarray(mask))
    np.testing.assert_array_equal(np.asarray(weight), np.asarray(correct.weights(log_prob, behaviour, mask, truncate=2.0)))


def test_no_gradient_flows_through_a_weight_and_padding_may_hold_anything():
    log_prob, behaviour, mask = (torch.tensor(x) for x in random_batch(6))
    log_prob.requires_grad_()
    plain = correct.weights(log_prob, behaviour, mask)
    assert not plain.requires_grad
    spoiled = torch.where(mask == 0, torch.nan, behaviour)
    assert torch.equal(correct.weights(log_prob, spoiled, mask), plain)


def test_a_ratio_beyond_what_float32_can_hold_stays_finite():
    far = np.full((1, 200), -1.0, np.float32)
    assert correct.weights(far * 0, far, level="sequence")[0, 0] == pytest.approx(math.exp(20), rel=1e-5)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda a, b, m: correct.weights(a, b[:2], m), "must be one"),
        (lambda a, b, m: correct.weights(a, b, m * 0), "no action"),
        (lambda a, b, m: correct.weights(a, b, m, truncate=0.0), "positive"),
        (lambda a, b, m: correct.weights(a, b, m, level="word"), "choose one of token"),
        (lambda a, b, m: correct.weights(a, b - np.inf, m), "never takes"),
        (lambda a, b, m: correct.within(a, b, m, high=0.5), "band"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(FewbitError, match=words):
        call(*random_batch(0))
