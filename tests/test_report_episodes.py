"""The report's episodes: pairs are the evidence's, the parting is where it is, the film plays when asked."""

import base64
import io
import json
import re
import subprocess
import sys
from ctypes.util import find_library

import gymnasium
import numpy as np
import pytest
from conftest import ROOT
from report_pages import RECORD, readable, write

import fewbit
from fewbit.engine.load import quickest
from fewbit.report.episodes import episodes, part, trace

FEWBIT = [sys.executable, "-c", "from fewbit.cli.main import main; main()"]


def test_episodes_part_where_they_part():
    t = np.arange(100.0)
    a = np.stack([np.sin(t), np.cos(t)], 1)
    b = a.copy()
    b[60:, 1] += 5
    b[40:, 0] += 0.01  # within the noise of its own motion
    step, distance = part(a, b[:90])
    assert step == 60 and len(distance) == 90 and distance[:40].max() == 0 < distance[50] < 0.02
    assert part(a, a)[0] is None


def test_pairs_are_those_of_the_evidence(browser, tmp_path):
    pairs = {"returns_float": [3800.5, 3900.25, 3700.0], "returns_quantized": [3790.0, 3890.0, 120.0]}
    page = write(tmp_path, RECORD | {"evidence": RECORD["evidence"] | pairs})
    readable(browser, page)
    browser.run("document.querySelector('#episodes details').open = true")
    rows = browser.run("[...document.querySelectorAll('#episodes tbody tr')].map(r => [...r.cells].map(c => c.innerText))")
    assert rows == [["0", "3800.5", "3790.0"], ["1", "3900.2", "3890.0"], ["2", "3700.0", "120.0"]]


def test_a_trace_is_the_episode_that_the_evaluation_ran():
    made = fewbit.quantize(
        ROOT / "demo" / "halfcheetah.zip", env="HalfCheetah-v5", scheme=fewbit.Scheme(method="rtn"), episodes=2
    )
    env = gymnasium.make("HalfCheetah-v5")
    found = trace(quickest(made.model), env, 1, 1000)
    env.close()
    assert len(found.actions) == 1000 and found.ended and found.observations.shape == (1000, 17)
    assert found.rewards.sum() == pytest.approx(made.record["evidence"]["returns_quantized"][1], rel=1e-6)


@pytest.mark.skipif(not (find_library("OSMesa") or find_library("EGL")), reason="needs libosmesa6 or libegl1")
def test_the_film_plays_when_asked(browser, tmp_path):
    image = pytest.importorskip("PIL.Image", reason="needs pillow")
    source, states = ROOT / "demo" / "halfcheetah.zip", np.random.default_rng(0).normal(0, 1, (500, 17)).astype(np.float32)
    fewbit.quantize(source, observations=states, scheme=fewbit.Scheme("int2", method="rtn")).save(tmp_path / "p.onnx")
    np.save(tmp_path / "o.npy", states)
    options = ["--against", str(source), "--env", "HalfCheetah-v5", "--observations", "o.npy", "--film", "--film-seconds", "1"]
    run = subprocess.run([*FEWBIT, "report", "p.onnx", "-o", "r.html", *options], capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    film = re.search(r'data-film="data:image/webp;base64,([^"]+)"', (tmp_path / "r.html").read_text())
    with image.open(io.BytesIO(base64.b64decode(film[1]))) as pictures:
        assert pictures.n_frames > 5 and pictures.size == (480, 240)
        first = np.asarray(pictures.convert("RGB"), int)
        pictures.seek(pictures.n_frames - 1)
        last = np.asarray(pictures.convert("RGB"), int)
    assert np.abs(first[:, :240] - first[:, 240:]).mean() < 3 < np.abs(last[:, :240] - last[:, 240:]).mean()
    readable(browser, tmp_path / "r.html")
    source_of = "document.getElementById('film').src"
    still = browser.run(source_of)
    browser.run("document.getElementById('film-button').focus()")
    browser.press("Enter", 13)
    assert browser.run(source_of) != still and browser.run("document.activeElement.textContent") == "Stop the film"
    browser.press("Enter", 13)
    assert browser.run(source_of) == still
    assert json.loads(browser.run("document.getElementById('record').textContent"))["recipe"]["weights"] == "int2"


def test_the_caption_says_whether_equal_seeds_pair():
    rng = np.random.default_rng(0)
    returns = rng.normal(100, 20, 40)
    assert episodes(list(returns), list(returns + rng.normal(0, 2, 40)), 0, None)["alike"]
    assert episodes([500.0] * 20, [500.0] * 20, 0, None)["alike"]
    assert not episodes(list(returns), list(rng.permutation(returns)), 0, None)["alike"]
