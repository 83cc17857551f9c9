"""The VecNormalize that belongs to a zip is found whatever it is called, read whatever made it, and never run."""

import pickle

import numpy as np
import pytest

pytest.importorskip("stable_baselines3")

import gymnasium as gym  # noqa: E402
from small_envs import Plain  # noqa: E402
from stable_baselines3 import PPO  # noqa: E402
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize  # noqa: E402

from fewbit import FewbitError, sources  # noqa: E402
from fewbit.engine.load import load  # noqa: E402
from fewbit.sources import beside, normalizer  # noqa: E402


def environment(stacked: bool = False):
    made = VecNormalize(DummyVecEnv([lambda: Plain(gym.spaces.Box(-3, 3, (4,)), gym.spaces.Box(-1, 1, (2,)))]))
    return VecFrameStack(made, 3) if stacked else made


def seen() -> VecNormalize:
    venv = environment()
    venv.reset()
    return venv


@pytest.fixture(scope="module")
def trained():
    venv = environment()
    venv.action_space.seed(1)  # its generator is pickled too
    model = PPO("MlpPolicy", venv, n_steps=8, batch_size=8, device="cpu", seed=0)
    model.learn(32)
    venv.training = False
    return model, venv


@pytest.mark.parametrize("name", ("vec_normalize.pkl", "VecNormalize.pickle", "agent_vecnormalize.pkl", "stats.pkl", "env.bin"))
def test_it_is_found_under_other_names(trained, name, tmp_path):
    model, venv = trained
    model.save(tmp_path / "agent.zip")
    venv.save(tmp_path / name)
    (tmp_path / "notes.pkl").write_bytes(pickle.dumps([1, 2]))
    source = sources.load(tmp_path / "agent.zip")
    x = np.random.default_rng(0).uniform(-3, 3, (50, 4)).astype(np.float32)
    want = model.predict(venv.normalize_obs(x), deterministic=True)[0]
    np.testing.assert_allclose(load(source.model, "onnxruntime")(x), want, atol=1e-5)
    assert source.contract["normalizer_file"] == name


def test_without_its_normaliser_the_zip_is_refused_unless_none_is_asked_for(trained, tmp_path):
    model, venv = trained
    model.save(tmp_path / "agent.zip")
    with pytest.raises(FewbitError, match="trained behind a VecNormalize.*--normalizer FILE.*--normalizer none"):
        sources.load(tmp_path / "agent.zip")
    x = np.random.default_rng(0).uniform(-3, 3, (50, 4)).astype(np.float32)
    for source in (sources.load(tmp_path / "agent.zip", "none"), sources.load(model, "none")):
        np.testing.assert_allclose(load(source.model, "onnxruntime")(x), model.predict(x, deterministic=True)[0], atol=1e-5)


@pytest.mark.parametrize(
    ("files", "zipped", "wanted"),
    [
        (("a_vecnormalize.pkl", "b_vecnormalize.pkl"), "a.zip", "a_vecnormalize.pkl"),
        (("b_vecnormalize.pkl",), "a.zip", None),
        (("m_vecnormalize_1_steps.pkl", "m_vecnormalize_2_steps.pkl"), "m_2_steps.zip", "m_vecnormalize_2_steps.pkl"),
        (("vecnormalize.pkl", "old_norm.pkl"), "a.zip", "vecnormalize.pkl"),
        (("x_norm.pkl", "y_norm.pkl"), "a.zip", FewbitError),
        (("Ant-v4/vecnormalize.pkl",), "best_model.zip", "vecnormalize.pkl"),
        (("other/vecnormalize.pkl", "other/other.zip"), "a.zip", None),
        (("normal_forms.txt", "weights.pkl"), "a.zip", None),
    ],
)  # fmt: skip
def test_names_tell_whose_it_is(files, zipped, wanted, tmp_path):
    for name in (*files, zipped, "b.zip"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    if wanted is FewbitError:
        with pytest.raises(FewbitError, match="x_norm.pkl, y_norm.pkl.*--normalizer FILE"):
            beside.find(tmp_path / zipped)
    else:
        found = beside.find(tmp_path / zipped)
        assert (found and found.name) == wanted


@pytest.mark.parametrize("protocol", (2, 4, 5))
@pytest.mark.parametrize("order", "<>")
def test_statistics_of_either_byte_order_are_read_right(protocol, order, tmp_path):
    venv = seen()
    mean, var = venv.obs_rms.mean.copy(), venv.obs_rms.var.copy()
    venv.obs_rms.mean, venv.obs_rms.var = mean.astype(f"{order}f8"), np.asfortranarray(var.astype(f"{order}f4"))
    (tmp_path / "v.pkl").write_bytes(pickle.dumps(venv, protocol))
    read = normalizer.read(tmp_path / "v.pkl")
    assert np.array_equal(read.mean[""], mean) and np.array_equal(read.var[""], var.astype(np.float32))
    assert np.dtype("f8").isnative and np.dtype(">f8").byteorder == ">"  # NumPy's own dtypes are as they were


@pytest.mark.parametrize("bits", (np.random.PCG64, np.random.MT19937, np.random.Philox, np.random.SFC64, np.random.PCG64DXSM))
def test_every_generator_of_numpy_beside_the_statistics_is_read_over(bits, tmp_path):
    venv = seen()
    venv.observation_space._np_random = np.random.Generator(bits(3))
    venv.action_space._np_random = np.random.RandomState(4)
    (tmp_path / "v.pkl").write_bytes(pickle.dumps(venv))
    assert np.array_equal(normalizer.read(tmp_path / "v.pkl").mean[""], venv.obs_rms.mean)


def test_an_array_of_objects_is_refused(tmp_path):
    venv = seen()
    venv.obs_rms.mean = np.array([len, print, 1, 2], object)
    (tmp_path / "v.pkl").write_bytes(pickle.dumps(venv))
    with pytest.raises(FewbitError, match="could"):
        normalizer.read(tmp_path / "v.pkl")


def test_frames_stacked_after_normalising_are_refused_with_the_way_out(tmp_path):
    model = PPO("MlpPolicy", environment(stacked=True), n_steps=8, batch_size=8, device="cpu", seed=0)
    with pytest.raises(FewbitError, match=r"shape \[4\], the policy takes \[12\], 3 of them \(VecFrameStack.*--normalizer none"):
        sources.load(model)
    x = np.random.default_rng(0).normal(0, 1, (50, 12)).astype(np.float32)
    want = model.predict(x, deterministic=True)[0]
    np.testing.assert_allclose(load(sources.load(model, "none").model, "onnxruntime")(x), want, atol=1e-5)
