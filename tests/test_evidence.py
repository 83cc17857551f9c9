"""The verdict's interval covers the truth at its stated rate, and kept falls when a policy acts worse."""

import math

import numpy as np
import pytest

from fewbit.rl.evidence import judge, student_975

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
    assert 0.91 <= hits / 300 <= 0.99  # 95% within three standard errors (1.26%) of 300 trials


def test_negative_returns_reward_no_harm():
    rng = np.random.default_rng(0)
    random, f = rng.normal(-1200, 100, 20), rng.normal(-150, 20, 30)
    assert judge(f, f - 100, random, 0.95).kept < judge(f, f - 10, random, 0.95).kept < 1
    assert judge(f, f - 300, random, 0.95).verdict == "fail"


def test_equal_returns_pass_and_a_float_policy_like_random_is_undecided():
    f = np.full(20, 500.0)
    assert judge(f, f, np.full(20, 20.0), 0.95).verdict == "pass"
    assert judge(f, f, f + np.arange(20), 0.95).kept is None


def test_a_few_episodes_that_are_all_alike_prove_nothing():
    found = judge(np.full(4, 500.0), np.full(4, 500.0), np.full(20, 20.0), 0.95)
    assert found.verdict == "undecided" and (found.kept, found.low, found.high) == (1.0, 0.25, 1.0)


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
