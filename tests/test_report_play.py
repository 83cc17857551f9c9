"""Play it: the page's integer actions are the reference's bits, its equations Gymnasium's, its controls work by keyboard."""

import json
import shutil
from pathlib import Path

import gymnasium
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from report_pages import readable

import fewbit
from fewbit.engine.load import load
from fewbit.report.policy import Options, policy

pytest.importorskip("matplotlib", reason="needs matplotlib")
missing = [p for p in ("clang", "wasm-ld") if not shutil.which(p)]
pytestmark = pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")


def network(path: Path, sizes: list[int], discrete: bool) -> Path:
    """A ReLU network with random weights; an ArgMax behind it, or a tanh times 2."""
    rng, nodes, weights, x = np.random.default_rng(5), [], [], "observation"
    for k, (fan_in, fan_out) in enumerate(zip(sizes, sizes[1:], strict=False)):
        weights += [numpy_helper.from_array(rng.normal(0, fan_in**-0.5, (fan_out, fan_in)).astype(np.float32), f"w{k}"),
                    numpy_helper.from_array(rng.normal(0, 0.2, fan_out).astype(np.float32), f"b{k}")]  # fmt: skip
        nodes.append(helper.make_node("Gemm", [x, f"w{k}", f"b{k}"], [f"h{k}"], f"layer{k}", transB=1))
        x = f"h{k}"
        if k < len(sizes) - 2:
            nodes.append(helper.make_node("Relu", [x], [f"r{k}"]))
            x = f"r{k}"
    if discrete:
        nodes.append(helper.make_node("ArgMax", [x], ["action"], axis=1, keepdims=0))
        out = helper.make_tensor_value_info("action", TensorProto.INT64, ["n"])
    else:
        weights.append(numpy_helper.from_array(np.float32(2.0), "two"))
        nodes += [helper.make_node("Tanh", [x], ["t"]), helper.make_node("Mul", ["t", "two"], ["action"])]
        out = helper.make_tensor_value_info("action", TensorProto.FLOAT, ["n", sizes[-1]])
    seen = helper.make_tensor_value_info("observation", TensorProto.FLOAT, ["n", sizes[0]])
    model = helper.make_model(
        helper.make_graph(nodes, "policy", [seen], [out], weights), opset_imports=[helper.make_opsetid("", 21)]
    )
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("env, sizes", [("CartPole-v1", [4, 32, 32, 2]), ("Pendulum-v1", [3, 32, 1])])
def test_the_page_acts_as_the_reference(browser, tmp_path, env, sizes):
    rng, discrete = np.random.default_rng(0), env == "CartPole-v1"
    source = network(tmp_path / "policy.onnx", sizes, discrete)
    states = rng.normal(0, 1, (500, sizes[0])).astype(np.float32)
    np.save(tmp_path / "o.npy", states)
    made = {}
    for weights in ("int8", "int2"):
        made[weights] = fewbit.quantize(source, observations=states, scheme=fewbit.Scheme(weights, method="rtn"))
        made[weights].save(tmp_path / f"{weights}.onnx")
    page = tmp_path / "report.html"
    given = Options(source, env=env, observations=tmp_path / "o.npy", beside=tmp_path / "int2.onnx")
    page.write_text(policy(tmp_path / "int8.onnx", given))
    readable(browser, page)
    browser.run("new Promise(r => setInterval(() => window.fewbitPlay && r(), 5))")
    assert browser.run("[...document.querySelectorAll('.lanes h4')].map(e => e.textContent)") == [
        "float32", "int8, rounded to nearest", "int2, rounded to nearest",
    ]  # fmt: skip
    seen = (rng.normal(0, 1.5, (400, sizes[0]))).astype(np.float32)
    acted = browser.run(f"(o => fewbitPlay.act.map(act => o.map(act)))({json.dumps(seen.tolist())})")
    want = load(source, "onnxruntime")(seen).reshape(400, -1)
    assert np.array_equal(acted[0], want) if discrete else np.abs(np.array(acted[0]) - want).max() < 1e-5
    for got, weights in zip(acted[1:], ("int8", "int2"), strict=True):
        reference = load(made[weights].model, "reference")(seen).reshape(400, -1)
        assert np.array_equal(np.array(got, reference.dtype), reference), weights
    assert not np.array_equal(acted[1], acted[2])


@pytest.fixture
def played(browser, tmp_path):
    """The page of a small policy in CartPole, ready to be played."""
    source, states = network(tmp_path / "policy.onnx", [4, 8, 2], True), np.random.default_rng(0).normal(0, 1, (200, 4))
    np.save(tmp_path / "o.npy", states.astype(np.float32))
    fewbit.quantize(source, observations=states.astype(np.float32), scheme=fewbit.Scheme(method="rtn")).save(tmp_path / "q.onnx")
    (tmp_path / "report.html").write_text(
        policy(tmp_path / "q.onnx", Options(source, env="CartPole-v1", observations=tmp_path / "o.npy"))
    )
    browser.open(tmp_path / "report.html")
    browser.run("new Promise(r => setInterval(() => window.fewbitPlay && r(), 5))")
    return browser


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_the_equations_are_gymnasiums(played, env):
    world, rng = gymnasium.make(env).unwrapped, np.random.default_rng(1)
    world.reset(seed=0)
    for _ in range(50):
        state = rng.normal(0, [1, 1, 0.1, 1] if env == "CartPole-v1" else [3, 4])
        action = int(rng.integers(2)) if env == "CartPole-v1" else float(rng.uniform(-2.5, 2.5))
        world.state, world.steps_beyond_terminated = state, None
        seen = world.step(action if env == "CartPole-v1" else np.array([action]))[0]
        call = f"worlds['{env}'].step({state.tolist()}, [{action}], 0)"
        assert played.run(call) == pytest.approx(world.state.tolist(), abs=1e-12)
        assert played.run(f"worlds['{env}'].see({call})") == pytest.approx(seen.tolist(), abs=1e-6)


def test_it_is_played_by_keyboard(played):
    played.run("document.getElementById('play-push').focus()")
    played.press("ArrowRight", 39)
    assert played.run("document.getElementById('play-shown').textContent") == "0.6 N"
    played.run("document.getElementById('play-run').focus()")
    played.press(" ", 32)
    assert played.run("document.activeElement.textContent") == "Pause"
    played.press(" ", 32)
    played.run("fewbitPlay.step(400)")
    captions = played.run("[...document.querySelectorAll('.lanes figcaption')].map(e => e.textContent)")
    assert (
        len(captions) == 3
        and all("falls" in c and "KB" in c for c in captions)
        and not any("0 falls" in c[:12] for c in captions)
    )


def test_other_worlds_are_not_played(browser, tmp_path):
    source, states = network(tmp_path / "policy.onnx", [3, 8, 1], False), np.zeros((50, 3), np.float32)
    fewbit.quantize(source, observations=states, scheme=fewbit.Scheme(method="rtn")).save(tmp_path / "q.onnx")
    (tmp_path / "r.html").write_text(policy(tmp_path / "q.onnx", Options()))
    browser.open(tmp_path / "r.html")
    assert "knows the equations of" in browser.run("document.getElementById('missing').innerText")
