"""The verdict's interval covers the truth at its stated rate, and kept falls when a policy acts worse."""

import math

import numpy as np
import pytest

from fewbit.errors import FewbitError
from fewbit.rl.evidence import Kept, episodes_needed, exactly, judge, student_975

SHAPES = {
    "normal": lambda rng, n: rng.normal(0, 1, n),
    "skewed": lambda rng, n: 1 - rng.exponential(1, n),
    "two humps": lambda rng, n: np.where(rng.random(n) < 0.3, -1.5, 0.65) + rng.normal(0, 0.1, n),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n", [20, 120])
def test_interval_covers_the_truth(shape, n):
    rng, truth, hits = np.random.default_rng(0), 0.9, 0
    draw = SHAPES[shape]
    for trial in range(300):
        f, q, r = 100 + 15 * draw(rng, n), 90 + 15 * draw(rng, n), draw(rng, 20)
        found = judge(f, q, r, 0.95, trial)
        hits += found.low <= truth <= found.high
    print(f"{shape}, {n} episodes: covered {hits / 300:.1%} of the time")
    assert hits / 300 >= 0.93


def test_negative_returns_reward_no_harm():
    rng = np.random.default_rng(0)
    random, f = rng.normal(-1200, 100, 20), rng.normal(-150, 20, 30)
    assert judge(f, f - 100, random, 0.95).kept < judge(f, f - 10, random, 0.95).kept < 1
    assert judge(f, f - 300, random, 0.95).verdict == "fail"


def test_equal_returns_prove_no_more_than_the_rule_of_three():
    """0 failures in n episodes leave room for 3 / n of them, each down to what random actions return."""
    random = np.full(20, 20.0)
    for n, verdict in ((20, "undecided"), (59, "undecided"), (61, "pass"), (100, "pass")):
        f = np.full(n, 500.0)
        found = judge(f, f, random, 0.95)
        assert (found.kept, found.verdict) == (1.0, verdict)
        assert found.low == pytest.approx(1 - 3 / n) and found.high == pytest.approx(1 / (1 - 3 / n))


@pytest.mark.parametrize("n", [20, 40, 100])
def test_the_bound_on_unseen_failures_holds_where_a_failure_may_just_not_be_seen(n):
    """By the binomial distribution: with failures in 3 / n of the episodes, none is seen in 5% of all runs."""
    f, random = np.full(n, 500.0), np.zeros(20)
    missed = 0.0
    for failures in range(n + 1):
        q = np.where(np.arange(n) < failures, 0.0, 500.0)
        found = judge(f, q, random, 0.95)
        chance = math.comb(n, failures) * (3 / n) ** failures * (1 - 3 / n) ** (n - failures)
        missed += chance * (not found.low - 1e-9 <= 1 - 3 / n <= found.high + 1e-9)
    assert missed <= 0.05


@pytest.mark.parametrize("n", [20, 40, 100])
@pytest.mark.parametrize("failures", [(0.0, 0.025), (0.025, 0.025), (0.05, 0.0), (0.0, 0.1)])
def test_interval_covers_the_truth_where_episodes_rarely_fail(n, failures):
    rng, hits, trials = np.random.default_rng(0), 0, 300
    truth = (1 - failures[1]) / (1 - failures[0])
    for _ in range(trials):
        f, q = (np.where(rng.random(n) < p, 0.0, rng.normal(100, 1, n)) for p in failures)
        found = judge(f, q, rng.normal(0, 2, 20), 0.95)
        hits += found.low <= truth <= found.high
    assert hits / trials >= 0.93


def test_one_fall_in_forty_widens_the_interval_beyond_what_its_mean_moves():
    rng = np.random.default_rng(0)
    f, random = rng.normal(100, 1, 40), rng.normal(0, 2, 20)
    q = f + rng.normal(0, 1, 40)
    clean, fell = judge(f, q, random, 0.95), judge(f, np.where(np.arange(40) == 7, 0.0, q), random, 0.95)
    assert fell.kept - fell.low > clean.kept - clean.low and fell.low < 1 - 4.5 / 40
    assert fell.verdict == "undecided" and fell.high > 1  # the float policy may fail as often


def test_a_float_policy_like_random_actions_is_undecided():
    f = np.full(20, 500.0)
    for random in (f, f + np.arange(20), f + 1):
        found = judge(f, f, random, 0.95)
        assert found.kept is None and found.low is None and found.verdict == "undecided"


def test_a_few_episodes_decide_nothing():
    random = np.full(20, 20.0)
    assert judge([500.0], [500.0], random, 0.95).kept is None
    for n in (2, 3):
        good, bad = np.full(n, 500.0), np.full(n, 20.0)
        assert judge(good, good, random, 0.95).verdict == judge(good, bad, random, 0.95).verdict == "undecided"
    found = judge(np.full(4, 500.0), np.full(4, 500.0), random, 0.95)
    assert found.verdict == "undecided" and (found.kept, found.low, found.high) == pytest.approx((1.0, 0.25, 4.0))


def test_two_episodes_have_the_interval_of_one_degree_of_freedom():
    found = judge([10_000.0, 10_000.0], [9_990.0, 10_010.0], np.zeros(20), 0.95)
    assert found.kept - found.low >= 12.7 * 10 / 10_000


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("who", range(3))
def test_returns_that_are_not_finite_are_refused_by_name(value, who):
    returns = [np.full(20, 500.0), np.full(20, 490.0), np.full(20, 20.0)]
    returns[who][3] = value
    name = ("the float policy", "the quantized policy", "random actions")[who]
    with pytest.raises(FewbitError, match=f"episode 3 of {name} returned {value}"):
        judge(*returns, 0.95)
    with pytest.raises(FewbitError, match="20 episodes of the float policy beside 19"):
        judge(np.zeros(20), np.zeros(19), np.zeros(20), 0.95)


@pytest.mark.parametrize("keep", [0.9, 0.95, 0.99])
def test_the_episodes_that_are_said_to_be_needed_decide_it(keep):
    rng = np.random.default_rng(0)
    random = rng.normal(0, 2, 20)
    for loss in (0.0, 0.3):
        f = np.full(20, 100.0)
        needed = episodes_needed(judge(f, f * (1 - loss), random, keep), 20, keep)
        f = np.full(max(4, needed), 100.0)
        assert judge(f, f * (1 - loss), random, keep).verdict == ("fail" if loss else "pass")
        assert needed >= 3 / (1 - keep) or loss


def test_exact_scores_have_no_interval():
    assert exactly(1.0, 0.96, 0.0, 0.95) == Kept(0.96, 0.96, 0.96, "pass", 0.0)
    assert exactly(1.0, 0.94, 0.0, 0.95).verdict == "fail" and exactly(1.0, 1.0, 1.0, 0.95).kept is None


@pytest.mark.parametrize("df", [1, 2, 3, 4, 5, 7, 19, 20, 99, 400])
def test_student_quantile_leaves_a_fortieth_above_it(df):
    """By numerical integration of the density: with t = sqrt(df) tan(angle), it is cos(angle)^(df - 1)."""
    end = math.atan(student_975(df) / math.sqrt(df))
    whole, below = (np.linspace(0, e, 200_001) for e in (math.pi / 2, end))
    inside = np.trapezoid(np.cos(below) ** (df - 1), below) / np.trapezoid(np.cos(whole) ** (df - 1), whole)
    assert inside == pytest.approx(0.95, abs=1e-8)


def test_student_quantiles_are_the_published_ones():
    published = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 10: 2.228, 30: 2.042}
    assert {df: round(student_975(df), 3) for df in published} == published
    assert student_975(10**6) == pytest.approx(1.96, abs=0.003)
