"""Masks of forbidden actions: what sb3-contrib's predict(action_masks=…) gives, the artifact gives in every executor."""

import numpy as np
import pytest

pytest.importorskip("sb3_contrib")

import gymnasium as gym  # noqa: E402
from executors import act_alike  # noqa: E402
from sb3_contrib import MaskablePPO  # noqa: E402
from small_envs import Plain  # noqa: E402

import fewbit  # noqa: E402
from fewbit.rl import masks, returns  # noqa: E402

PLAIN = fewbit.Scheme("int16", "uint16", method="rtn")
BOX = gym.spaces.Box(-3, 3, (4,))
SPACES = {
    "one choice": gym.spaces.Discrete(3),
    "several": gym.spaces.MultiDiscrete([3, 4]),
    "switches": gym.spaces.MultiBinary(3),
}


def maskable(acts: gym.Space) -> MaskablePPO:
    return MaskablePPO("MlpPolicy", Plain(BOX, acts), n_steps=8, batch_size=8, device="cpu", seed=0)


@pytest.mark.parametrize("acts", SPACES.values(), ids=SPACES)
def test_the_masked_action_is_sb3_contribs_in_every_executor(acts, tmp_path):
    model, rng = maskable(acts), np.random.default_rng(0)
    x = rng.uniform(-3, 3, (300, 4)).astype(np.float32)
    artifact = fewbit.quantize(model, observations=x, scheme=PLAIN)
    count = next(v for v in artifact.model.graph.inputs if v.name == "action_masks").shape[1]
    allowed = rng.random((300, count)) < 0.5
    allowed[0] = False  # all forbidden: the first choice of each
    want = model.predict(x, deterministic=True, action_masks=allowed)[0]
    got = act_alike(artifact.model, {"observation": x, "action_masks": allowed.astype(np.float32)}, tmp_path)
    assert (got == want).mean() > 0.99 and np.array_equal(got[0], want[0])
    artifact.save(tmp_path / "q.onnx")
    free = fewbit.load(tmp_path / "q.onnx")
    assert (free(x) == model.predict(x, deterministic=True)[0]).mean() > 0.99  # no masks: all is allowed, as predict has it
    assert np.array_equal(free(x[0]), free(x)[0])
    assert "1 where a choice is allowed" in artifact.record["contract"]["action_masks"]


def test_no_forbidden_action_is_played_where_the_environment_says_what_is_allowed(tmp_path):
    model = maskable(gym.spaces.Discrete(4))
    model.save(tmp_path / "m.zip")
    free = model.predict(np.random.default_rng(0).uniform(-3, 3, (100, 4)).astype(np.float32), deterministic=True)[0]
    assert np.ptp(free % 2)  # it would play forbidden ones, at which the environment raises
    artifact = fewbit.quantize(tmp_path / "m.zip", env="small_envs:Fenced-v0", episodes=4, scheme=PLAIN)
    artifact.save(tmp_path / "q.onnx")
    found = fewbit.evaluate(tmp_path / "q.onnx", "small_envs:Fenced-v0", against=tmp_path / "m.zip", episodes=4)
    assert found["return_quantized"]["n"] == 4 and found["action_agreement"] > 0.98


def test_an_environment_that_tells_no_masks_is_pointed_out():
    with pytest.warns(UserWarning, match="has no action_masks"):
        returns.facing(Plain(BOX, gym.spaces.Discrete(3)), {"observation": (4,), "action_masks": (3,)})
    with pytest.raises(fewbit.FewbitError, match="gives 4 masks, the policy takes 3"):
        returns.facing(Plain(BOX, gym.spaces.Discrete(4), 4), {"observation": (4,), "action_masks": (3,)}).reset()


@pytest.mark.parametrize("acts", SPACES.values(), ids=SPACES)
def test_random_actions_are_drawn_from_the_allowed(acts):
    rng, count = np.random.default_rng(0), {"Discrete": 3, "MultiDiscrete": 7, "MultiBinary": 6}[type(acts).__name__]
    sizes = {3: [3], 7: [3, 4], 6: [2, 2, 2]}[count]
    starts = np.cumsum([0, *sizes[:-1]])
    seen = set()
    for _ in range(300):
        allowed = rng.random(count) < 0.6
        for start, size in zip(starts, sizes, strict=True):
            allowed[start] |= not allowed[start : start + size].any()
        drawn = masks.draw(acts, allowed.astype(np.float32), rng)
        chosen = starts + np.atleast_1d(drawn)
        assert allowed[chosen].all() and acts.contains(np.asarray(drawn, acts.dtype) if acts.shape else drawn)
        seen |= set(chosen.tolist())
    assert seen == set(range(count))
