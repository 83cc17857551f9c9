"""Action error: a share of the range, the rare large one beside the mean, and equal actions where they are discrete."""

from fractions import Fraction

import numpy as np
import pytest

from fewbit.errors import FewbitError
from fewbit.fidelity import action_error, acts_alike


def test_errors_are_shares_of_the_stated_range():
    want = np.zeros((5000, 2), np.float32)
    got = want.copy()
    got[7, 1] = 3.0  # one number of 10,000, three quarters of its range
    found = action_error(want, got, [-1.0, -2.0], [1.0, 2.0])
    exact = float(Fraction(9, 16) / 10000) ** 0.5
    assert found["action_rmse"] == pytest.approx(exact) and found["action_worst"] == pytest.approx(0.75)
    assert found["action_p999"] == 0.0 and acts_alike(found)


def test_one_wrong_action_in_five_hundred_shows_at_the_999th_permille():
    want = np.random.default_rng(0).uniform(-1, 1, (5000, 30))
    got = want.copy()
    got[::500, 3] += 1.0
    found = action_error(want, got, -1.0, 1.0)
    assert found["action_p999"] == found["action_worst"] == pytest.approx(0.5)
    assert found["action_rmse"] < 0.01  # which the root mean square alone would hide


@pytest.mark.parametrize("ends", [(None, None), (-np.inf, np.inf), (np.array([-1.0, -np.inf]), np.array([1.0, np.inf]))])
def test_a_range_without_ends_is_what_the_original_uses(ends):
    want = np.array([[-1.0, 0.0], [1.0, 10.0]])
    assert action_error(want, want + [0.02, 0.0], *ends)["action_worst"] == pytest.approx(0.01)
    assert action_error(want, want + [0.0, 0.1], *ends)["action_worst"] == pytest.approx(0.01)


@pytest.mark.parametrize("constant", [0.0, 1.0, -3e5])
def test_a_number_that_stands_still_is_measured_by_what_the_others_use(constant):
    want = np.column_stack([np.linspace(0, 2, 50), np.full(50, constant)])
    assert action_error(want, want + [0.0, 0.2])["action_worst"] == pytest.approx(0.1)
    alone = np.full((50, 1), constant)
    assert action_error(alone, alone)["action_worst"] == 0.0
    assert np.isfinite(action_error(alone, alone + 1)["action_worst"])


def test_a_discrete_action_is_equal_as_a_whole_or_not():
    want = np.array([[0, 1], [2, 3], [4, 5], [6, 7]])
    got = want.copy()
    got[1, 0] = 0
    assert action_error(want, got) == {"action_agreement": 0.75}
    assert action_error(want[:, 0], want[:, 0]) == {"action_agreement": 1.0}
    assert "action_rmse" in action_error(want, got, 0, 7)  # integers with a range are numbers


def test_actions_that_cannot_be_compared_are_refused_with_what_is_wrong():
    for want, got in ((np.zeros((3, 2)), np.zeros((3, 1))), (np.zeros((0, 2)), np.zeros((0, 2)))):
        with pytest.raises(FewbitError, match=r"cannot be compared"):
            action_error(want, got)
    bad = np.zeros((3, 2))
    bad[1] = np.nan
    with pytest.raises(FewbitError, match=r"the policy compared with it acts with NaN or infinity on 1 of 3"):
        action_error(np.zeros((3, 2)), bad)
