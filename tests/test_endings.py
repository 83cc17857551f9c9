"""Falls and successes are counted as the environment says them, with the interval of their probability."""

import math

import gymnasium
import numpy as np
import pytest

from fewbit.cli import common
from fewbit.graph.record import known
from fewbit.report.answer import answer
from fewbit.rl import returns
from fewbit.rl.endings import Endings, wilson
from fewbit.rl.measure import PILOT, Baseline, _endings, compare


class Walk(gymnasium.Env):
    """Twelve steps at most; falls at the third where action and seed say so, and says at the end whether it succeeded."""

    observation_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, says=True, falls=True):
        self.says, self.falls = says, falls

    def reset(self, *, seed=None, options=None):
        self.seed, self.step_ = seed or 0, 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.step_ += 1
        fallen = self.falls and self.step_ == 3 and (action[0] < 0 or (action[0] < 0.5 and self.seed % 4 == 0))
        late = self.step_ == 12
        info = {"is_success": np.array([float(not fallen)])} if self.says and (fallen or late) else {}
        return np.zeros(1, np.float32), 1.0, bool(fallen), late, info


gymnasium.register("EndingsWalk-v0", Walk)


def policy(action):
    def act(batch):
        return np.full((len(batch), 1), action, np.float32)

    act.inputs = {"observation": (1,)}
    return act


def baseline(env_args=None):
    """Of a float policy that never falls, whose network is not needed here."""
    found = Baseline.__new__(Baseline)
    found.original, found.env, found.env_args, found.seed = None, "EndingsWalk-v0", env_args, 0
    found.policy, found._returns, found._random, found._states = policy(1.0), np.zeros(0), np.zeros(0), []
    found.endings, found.random_endings = Endings(), Endings()
    return found


def test_each_policys_falls_and_successes_are_counted_over_the_episodes_that_are_compared():
    floats, endings = baseline(), Endings()
    floats.returns(50, lambda *_: None)  # as an earlier rung of a search may have asked for
    compare(policy(0.2), floats, 0.95, 30, False, lambda *_: None, endings)
    found = _endings(endings, floats, 30)
    assert found["terminated_float"] | {"ci95": None} == {"count": 0, "n": 30, "share": 0.0, "ci95": None}
    assert (found["terminated_quantized"]["count"], found["success_quantized"]["count"]) == (8, 22)  # of seeds 0, 4, ..., 28
    assert found["success_float"]["count"] == 30 and 0 < found["terminated_random"]["count"] < PILOT


def test_an_environment_that_neither_terminates_nor_speaks_of_success_gives_no_such_figures():
    floats, endings = baseline({"says": False, "falls": False}), Endings()
    compare(policy(0.2), floats, 0.95, 20, True, lambda *_: None, endings)
    assert _endings(endings, floats, 20) == {}
    floats, endings = baseline({"says": False}), Endings()
    compare(policy(0.2), floats, 0.95, 20, True, lambda *_: None, endings)
    assert sorted(_endings(endings, floats, 20)) == ["terminated_float", "terminated_quantized", "terminated_random"]


def test_an_ending_is_told_of_its_own_seed_however_late_it_comes():
    told = {}
    seeds = list(range(45))  # more than are run at once
    returns.episodes(policy(0.2), "EndingsWalk-v0", seeds, ended=lambda row, fallen, info: told.update({row: fallen}))
    assert told == {k: k % 4 == 0 for k in seeds}


@pytest.mark.parametrize(
    "value, said", [(True, 1), (np.float32(0), 0), (np.array([1.0]), 1), (None, None), (np.nan, None), ("yes", None)]
)
def test_success_is_taken_in_every_shape_that_it_comes_in(value, said):
    endings = Endings()
    endings.following(0)(0, False, {"success": value})
    assert (endings.succeeded(1) or {"count": None})["count"] == said


@pytest.mark.parametrize("n", [1, 20, 100])
def test_wilsons_ends_are_where_the_score_test_just_accepts(n):
    for count in range(n + 1):
        for end in wilson(count, n):
            if 0 < end < 1:
                assert abs(count / n - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / n))
    assert wilson(0, n)[0] == 0 and wilson(n, n)[1] == 1


def test_table_and_report_show_the_counts(capsys):
    counted = lambda k, n: {"count": k, "n": n, "share": k / n, "ci95": list(wilson(k, n))}  # noqa: E731
    evidence = {
        "terminated_float": counted(0, 100),
        "terminated_quantized": counted(3, 100),
        "success_quantized": counted(97, 100),
    }
    common.show(evidence, False)
    table = " ".join(capsys.readouterr().out.split())
    assert "float 0 of 100 (0.0% to 3.7%) quantized 3 of 100 (1.0% to 8.5%)" in table and "quantized 97 of 100" in table
    about = dict(answer(known({"evidence": evidence}), "a.onnx", [])["about"])
    assert about["episodes that terminated"] == "float 0 of 100 (0.0% to 3.7%); quantized 3 of 100 (1.0% to 8.5%)"
    damaged = known({"evidence": {"terminated_float": {"count": "<b>", "n": 1}}})
    assert "terminated_float" not in damaged["evidence"]
