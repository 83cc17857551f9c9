"""Every kind of observation and action space that Stable-Baselines3 takes: the artifact acts as its predict does."""

import numpy as np
import pytest

pytest.importorskip("stable_baselines3")

import gymnasium.spaces as spaces  # noqa: E402
import onnx  # noqa: E402
import onnx_ir as ir  # noqa: E402
import torch  # noqa: E402
from executors import act_alike  # noqa: E402
from onnx import helper, numpy_helper  # noqa: E402
from small_envs import Plain  # noqa: E402
from stable_baselines3 import A2C, PPO, SAC, TD3  # noqa: E402
from stable_baselines3.common.policies import ActorCriticPolicy  # noqa: E402
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize  # noqa: E402

import fewbit  # noqa: E402
from fewbit import sources  # noqa: E402
from fewbit.engine.load import load  # noqa: E402
from fewbit.rl.actions import taken  # noqa: E402
from fewbit.sources import sb3_capture  # noqa: E402

PLAIN = fewbit.Scheme("int16", "uint16", method="rtn")
BOX = spaces.Box(-3, 3, (4,))
SMALL = {"n_steps": 8, "device": "cpu", "seed": 0}


def ppo(observes: spaces.Space, acts: spaces.Space, policy: str = "MlpPolicy", **more) -> PPO:
    return PPO(policy, Plain(observes, acts), batch_size=8, **SMALL, **more)


def boxes(count: int = 300) -> np.ndarray:
    return np.random.default_rng(0).uniform(-3, 3, (count, 4)).astype(np.float32)


@pytest.mark.parametrize("kind", (PPO, A2C))
def test_several_choices_at_once_are_whole_numbers_in_every_executor(kind, tmp_path):
    model = kind("MlpPolicy", Plain(BOX, spaces.MultiDiscrete([3, 4])), **SMALL)
    artifact = fewbit.quantize(model, observations=boxes(), scheme=PLAIN)
    got = act_alike(artifact.model, boxes(), tmp_path)
    assert got.dtype == np.int64 and (got == model.predict(boxes(), deterministic=True)[0]).mean() > 0.99


def test_switches_are_on_where_sb3_has_them_on_in_every_executor(tmp_path):
    model = ppo(BOX, spaces.MultiBinary(3))
    artifact = fewbit.quantize(model, observations=boxes(), scheme=PLAIN)
    got = act_alike(artifact.model, boxes(), tmp_path)
    assert 0 < got.mean() < 1 and (got == model.predict(boxes(), deterministic=True)[0]).mean() > 0.99


OBSERVED = {
    "a number of a few": spaces.Discrete(5),
    "several numbers": spaces.MultiDiscrete([3, 4]),
    "switches": spaces.MultiBinary(6),
    "switches of a shape": spaces.MultiBinary((2, 3)),
    "whole numbers": spaces.Box(0, 50, (4,), np.int32),
    "whole numbers of 64 bits": spaces.Box(-1000, 1000, (4,), np.int64),
    "bytes that are no image": spaces.Box(0, 255, (4,), np.uint8),
    "doubles": spaces.Box(-3, 3, (4,), np.float64),
}


@pytest.mark.parametrize("observes", OBSERVED.values(), ids=OBSERVED)
def test_a_zip_acts_as_predict_does_on_every_observation_space(observes, tmp_path):
    model = ppo(observes, spaces.Box(-1, 1, (2,)))
    model.save(tmp_path / "m.zip")
    observes.seed(0)
    x = np.stack([observes.sample() for _ in range(100)])
    artifact = fewbit.quantize(tmp_path / "m.zip", observations=x, scheme=PLAIN)
    got, want = act_alike(artifact.model, x, tmp_path), model.predict(x, deterministic=True)[0]
    np.testing.assert_allclose(got, want, atol=2e-3 * np.ptp(want))


def test_a_dictionary_of_every_kind_of_part_is_read_from_the_zip_and_acts_as_predict_does(tmp_path):
    parts = {"a": BOX, "mode": spaces.Discrete(4), "pair": spaces.MultiDiscrete([3, 2]), "on": spaces.MultiBinary(3)}
    model = ppo(spaces.Dict(parts), spaces.Box(-1, 1, (2,)), "MultiInputPolicy")
    model.save(tmp_path / "m.zip")
    assert sources.sb3.build(tmp_path / "m.zip").observation_space == model.observation_space
    drawn = [model.observation_space.sample() for _ in range(100)]
    x = {k: np.stack([o[k] for o in drawn]) for k in parts}
    artifact = fewbit.quantize(tmp_path / "m.zip", observations=x, scheme=PLAIN)
    got, want = act_alike(artifact.model, x, tmp_path), model.predict(x, deterministic=True)[0]
    np.testing.assert_allclose(got, want, atol=2e-3 * np.ptp(want))
    np.savez(tmp_path / "x.npz", **x)
    named = fewbit.quantize(tmp_path / "m.zip", observations=tmp_path / "x.npz", scheme=PLAIN)
    assert named.to_bytes() == artifact.to_bytes()


ACTED = {
    "doubles": (SAC, spaces.Box(-2, 0.1, (2,), np.float64)),
    "doubles, TD3": (TD3, spaces.Box(np.array([-2, 0.1]), np.array([3, 0.7]), (2,), np.float64)),
    "doubles, PPO": (PPO, spaces.Box(-0.01, 0.01, (2,), np.float64)),
    "a matrix": (PPO, spaces.Box(-1, 1, (2, 3))),
}


@pytest.mark.parametrize(("kind", "acts"), ACTED.values(), ids=ACTED)
def test_a_policy_acts_as_predict_does_on_every_action_space(kind, acts, tmp_path):
    more = SMALL if kind is PPO else {"buffer_size": 50, "device": "cpu", "seed": 0}
    model = kind("MlpPolicy", Plain(BOX, acts), **more)
    model.save(tmp_path / "m.zip")
    artifact = fewbit.quantize(tmp_path / "m.zip", observations=boxes(), scheme=PLAIN)
    want = model.predict(boxes(), deterministic=True)[0]
    got = np.asarray(load(artifact.model, "reference")(boxes()))
    native = np.asarray(load(artifact.model, "native")(boxes()))
    assert np.array_equal(got, native) and got.dtype == np.float32
    assert (got >= acts.low).all() and (got <= acts.high).all()  # also where a float32 beside the limit lies beyond it
    np.testing.assert_allclose(got, want, atol=4e-3 * np.ptp(want))


UNBOUNDED = {"no limits": (-np.inf, np.inf), "some limits": ([-0.01, -np.inf, 0], [0.01, np.inf, np.inf])}


@pytest.mark.parametrize(("low", "high"), UNBOUNDED.values(), ids=UNBOUNDED)
def test_limits_of_infinity_are_no_limits_in_every_executor(low, high, tmp_path):
    acts = spaces.Box(*(np.broadcast_to(np.asarray(v, np.float32), 3) for v in (low, high)))
    policy = ActorCriticPolicy(BOX, acts, lambda _: 0.0)
    with torch.no_grad():
        policy.action_net.weight.mul_(100)
    policy.set_training_mode(False)
    source = sb3_capture.capture(policy, None, "policy", "")
    onnx.save(ir.to_proto(source.model), tmp_path / "m.onnx")
    artifact = fewbit.quantize(tmp_path / "m.onnx", observations=boxes(), scheme=PLAIN)
    got, want = act_alike(artifact.model, boxes(), tmp_path), policy.predict(boxes(), deterministic=True)[0]
    np.testing.assert_allclose(got, want, atol=4e-3 * np.ptp(want))


def test_a_file_whose_limits_are_infinite_acts_as_onnx_runtime_does(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {"w": rng.normal(0, 0.5, (3, 4)), "b": rng.normal(0, 0.3, 3), "lo": [-0.5, -np.inf, 0], "hi": [0.5, np.inf, np.inf]}
    nodes = [("Gemm", ["x", "w", "b"], "a"), ("Max", ["a", "lo"], "c"), ("Min", ["c", "hi"], "y")]
    made = [helper.make_node(op, i, [o], **({"transB": 1} if op == "Gemm" else {})) for op, i, o in nodes]
    ends = [[helper.make_tensor_value_info(n, 1, [None, k])] for n, k in (("x", 4), ("y", 3))]
    held = [numpy_helper.from_array(np.asarray(v, np.float32), k) for k, v in arrays.items()]
    graph = helper.make_graph(made, "g", *ends, held)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    want = load(tmp_path / "m.onnx", "onnxruntime")(boxes())
    got = act_alike(fewbit.quantize(tmp_path / "m.onnx", observations=boxes(), scheme=PLAIN).model, boxes(), tmp_path)
    np.testing.assert_allclose(got, want, atol=2e-3 * np.ptp(want))
    held[2] = numpy_helper.from_array(np.array([-0.5, np.nan, 0], np.float32), "lo")
    graph = helper.make_graph(made, "g", *ends, held)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "nan.onnx")
    with pytest.raises(fewbit.FewbitError, match="initializer lo holds NaN"):
        fewbit.quantize(tmp_path / "nan.onnx", observations=boxes())


def test_a_normaliser_without_a_clip_is_no_clip():
    venv = VecNormalize(DummyVecEnv([lambda: Plain(BOX, spaces.Box(-1, 1, (2,)))]), clip_obs=np.inf)
    model = PPO("MlpPolicy", venv, batch_size=8, **SMALL)
    model.learn(16)
    venv.training = False
    x = 40 * boxes()
    artifact = fewbit.quantize(model, observations=x, scheme=PLAIN)
    want = model.predict(venv.normalize_obs(x), deterministic=True)[0]
    for executor in ("native", "reference", "onnxruntime"):
        np.testing.assert_allclose(load(artifact.model, executor)(x), want, atol=4e-3 * np.ptp(want))


REFUSED = {
    "scores for a choice": (
        np.zeros((2, 3), np.float32),
        spaces.Discrete(3),
        r"shape \[3\].*Discrete\(3\).*end the graph with ArgMax",
    ),
    "half a choice": (np.full((2, 1), 0.5), spaces.Discrete(3), "0.5 is no whole number"),
    "a choice that is none": (np.array([1, 3]), spaces.Discrete(3), "3 is none of them"),
    "scores for two choices": (np.zeros((2, 7), np.float32), spaces.MultiDiscrete([3, 4]), r"shape \[7\].*shape \[2\].*ArgMax"),
    "a second choice that is none": (np.array([[2, 4]]), spaces.MultiDiscrete([3, 4]), "4 is none of them"),
    "switches too many": (np.zeros((2, 4)), spaces.MultiBinary(3), r"shape \[4\].*shape \[3\]"),
    "a switch half on": (np.full((2, 3), 0.5), spaces.MultiBinary(3), "no whole number"),
    "numbers too many": (np.zeros((2, 4)), spaces.Box(-1, 1, (3,)), r"shape \[4\].*shape \[3\]"),
    "a matrix turned": (np.zeros((2, 3, 2)), spaces.Box(-1, 1, (2, 3)), r"shape \[3, 2\].*shape \[2, 3\]"),
    "a choice for numbers": (np.array([1, 2]), spaces.Box(-1, 1, (1,)), "whole numbers are no action"),
}


@pytest.mark.parametrize(("actions", "space", "says"), REFUSED.values(), ids=REFUSED)
def test_an_action_that_is_none_of_the_environments_is_refused_with_both_shapes(actions, space, says):
    with pytest.raises(fewbit.FewbitError, match=says):
        taken(actions, space, "Some-v0")


@pytest.mark.parametrize(
    "space", (spaces.Discrete(3), spaces.MultiDiscrete([3, 4]), spaces.MultiBinary(3), spaces.Box(-1, 1, (2, 3)))
)
def test_an_action_of_the_environment_is_taken_whatever_its_dtype(space):
    drawn = [space.sample() for _ in range(5)]
    for given in (np.stack(drawn), np.stack(drawn).astype(np.float64), np.stack(drawn).reshape(5, -1)):
        assert all(space.contains(a) and np.array_equal(a, b) for a, b in zip(taken(given, space, "Some-v0"), drawn, strict=True))


def test_what_is_no_environments_id_or_cannot_be_written_down_is_refused_before_any_work():
    import gymnasium

    with pytest.raises(fewbit.FewbitError, match="give the id, env='CartPole-v1'"):
        fewbit.quantize("nowhere.zip", env=gymnasium.make("CartPole-v1"))
    with pytest.raises(fewbit.FewbitError, match="env_args: sutton is a object, which the record"):
        fewbit.quantize("nowhere.zip", env="CartPole-v1", env_args={"sutton": object()})


STRANGE = {
    "complex": (np.zeros((5, 4), complex), "are complex128; give real numbers"),
    "objects": (np.zeros((5, 4), object), "are object; give real numbers"),
    "texts": (np.full((5, 4), "a"), "give real numbers"),
    "nan": (np.full((5, 4), np.nan), "is nan"),
    "infinity": (np.full((5, 4), np.inf), "is inf"),
    "beyond float32": (np.full((5, 4), 1e300), "1e[+]300, which float32 cannot"),
}


@pytest.mark.parametrize(("given", "says"), STRANGE.values(), ids=STRANGE)
def test_observations_that_are_no_numbers_are_refused(given, says):
    with pytest.raises(fewbit.FewbitError, match=says):
        fewbit.quantize(ppo(BOX, spaces.Box(-1, 1, (2,))), observations=given)


def test_halves_are_no_numbers_of_a_few():
    with pytest.raises(fewbit.FewbitError, match="hold 0.5, the policy takes whole numbers"):
        fewbit.quantize(ppo(spaces.Discrete(5), spaces.Box(-1, 1, (2,))), observations=np.full(8, 0.5))
