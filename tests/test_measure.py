"""What is written down of a policy beside its float original: action errors, and how episodes ended."""

import gymnasium
import numpy as np
import pytest

from fewbit.cli import common
from fewbit.graph.record import known
from fewbit.report.answer import answer
from fewbit.rl.measure import _action_error

SPACES = {
    "discrete": (gymnasium.spaces.Discrete(3), np.array([0, 1, 2, 1]), np.array([0, 1, 1, 1]), {"action_agreement": 0.75}),
    "as floats": (
        gymnasium.spaces.Discrete(3),
        np.array([0.0, 1, 2, 1]),
        np.array([[0], [1], [1], [1]]),
        {"action_agreement": 0.75},
    ),
    "many": (
        gymnasium.spaces.MultiDiscrete([2, 2]),
        np.eye(2, dtype=np.int64),
        np.ones((2, 2), np.int64),
        {"action_agreement": 0.0},
    ),
    "box": (
        gymnasium.spaces.Box(np.float32([-1, -4]), np.float32([1, 4])),
        np.zeros((4, 2), np.float32),
        np.float32([[0, 0], [0, 0], [0, 0], [0, 4]]),
        {"action_rmse": 0.5 / 8**0.5, "action_p999": 0.5 * 0.997, "action_worst": 0.5},
    ),
    "box of a matrix": (
        gymnasium.spaces.Box(-1, 1, (2, 2)),
        np.zeros((3, 4), np.float32),
        np.full((3, 2, 2), 0.2, np.float32),
        {"action_rmse": 0.1, "action_p999": 0.1, "action_worst": 0.1},
    ),
}


@pytest.mark.parametrize("kind", SPACES)
def test_action_errors_are_measured_as_the_environment_takes_the_actions(kind):
    space, want, got, found = SPACES[kind]
    assert _action_error(want, got, space) == pytest.approx(found)


def test_the_worst_action_is_shown_where_the_mean_is(capsys):
    evidence = {"action_rmse": 0.001, "action_p999": 0.04, "action_worst": 0.25, "fidelity_states": 5000}
    common.show(evidence | {"fidelity_noise_floor": 0.0001}, False)
    assert "99.9% of them within 4.00%, the worst 25.00%" in capsys.readouterr().out
    about = dict(answer(known({"evidence": evidence}), "a.onnx", [])["about"])
    assert about["actions beside float"].startswith("RMSE 0.10% of their range, 99.9% within 4.00%, the worst 25.00%")
