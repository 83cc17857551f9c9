"""Reference, native engine and compiled C give the same bits of a quantized policy, and remember the same."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
from c_policy import CPolicy

from fewbit.engine.load import load, quickest
from fewbit.engine.lower import lower


def agree(model: ir.Model, observations: np.ndarray, folder: Path, episodes: int = 2) -> np.ndarray:
    """Actions [episodes, steps, batch, ...] of observations [batch, steps, ...], each episode from a reset on; asserts that all
    three executors give these bits (of a batch, and the reference of one row alone), and that each says it is exact."""
    program = lower(model)
    assert program.exact
    compiled = CPolicy(program, folder)
    assert compiled.library.policy_self_test() == 0
    policies = [load(model, "reference"), load(model, "native"), compiled]
    actions = []
    for episode in range(episodes):
        seen = np.roll(observations, episode, 0)
        for policy in [p for p in policies if hasattr(p, "reset")]:
            policy.reset()
        for k in range(seen.shape[1]):
            first, *others = [np.asarray(policy(np.ascontiguousarray(seen[:, k]))) for policy in policies]
            for got in others:
                assert got.dtype == first.dtype and np.array_equal(got, first), (episode, k)
            actions.append(first)
    alone = load(model, "reference")
    for k in range(min(3, seen.shape[1])):
        assert np.array_equal(alone(seen[0, k]), actions[len(actions) - seen.shape[1] + k][0]), k
    return np.stack(actions).reshape(episodes, seen.shape[1], *actions[0].shape)


def act_alike(model: ir.Model, observations, folder: Path) -> np.ndarray:
    """The actions [n, ...] of a batch of observations; asserts that the reference, the native engine and compiled C give the same
    bits, and ONNX Runtime the same numbers to a thousandth of their range (choices: all but one in a hundred)."""
    program = lower(model)
    first = np.asarray(load(model, "reference")(observations))
    for other in (quickest(model), CPolicy(program, folder)):
        got = np.asarray(other(observations))
        assert got.dtype == first.dtype and np.array_equal(got, first)
    far = np.abs(np.asarray(load(model, "onnxruntime")(observations), np.float64) - first)
    assert (far > 0).mean() < 0.01 if first.dtype.kind in "iu" else far.max() <= 1e-3 * max(np.ptp(first), 1e-6)
    return first
