"""A language model's page: its figures are what was measured, block by block as an independent sum has it; and the gallery."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT
from report_pages import figure, readable

pytest.importorskip("transformers", reason="needs transformers")
pytest.importorskip("matplotlib", reason="needs matplotlib")
import tiny_llm  # noqa: E402
import torch  # noqa: E402

from fewbit.llm import calibration  # noqa: E402
from fewbit.llm import perplexity as p  # noqa: E402
from fewbit.llm.options import Options as Recipe  # noqa: E402
from fewbit.llm.quantize import quantize  # noqa: E402
from fewbit.report.language import Options, language  # noqa: E402
from fewbit.report.language_measure import by_block  # noqa: E402

FEWBIT = [sys.executable, "-c", "from fewbit.cli.main import main; main()"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """(float folder, int4 folder, text)."""
    folder = tmp_path_factory.mktemp("lm")
    source, text = tiny_llm.save(folder / "float"), tiny_llm.text(folder / "text.txt")
    quantize(source, folder / "int4", Recipe("int4", 16, method="rtn"), None, lambda *_: None, lambda _: None)
    return source, folder / "int4", text


def test_figures_are_what_was_measured(browser, models, tmp_path):
    source, made, text = models
    page = tmp_path / "report.html"
    page.write_text(language(made, Options(source, text, 2, 64, ("a few bits",))))
    readable(browser, page)
    record = json.loads(browser.run("document.getElementById('record').textContent"))
    ids = calibration.windows(calibration.tokens(made, text), 64, 64, 0.5, 2, "")
    want = p.perplexity(p.load(made), ids, p.load(source))
    assert record["evidence"]["perplexity"] == pytest.approx(want["perplexity"])
    assert figure(browser, "perplexity") == f"{want['perplexity']:,.0f}"  # above 1000
    assert record["quantization"]["bits_per_weight"] == pytest.approx(4 + (16 + 8) / 16)  # codes; a float16 and a byte a group
    assert "5.50" in browser.run("document.querySelector('.sentence').textContent")
    assert len(record["evidence"]["blocks"]) == 3 and len(record["evidence"]["continuations"]) == 1
    assert record["evidence"]["continuations"][0]["float"] in browser.run("document.getElementById('continuations').textContent")


def test_a_block_alone_is_that_blocks_weights_alone(models):
    source, made, text = models
    ids = calibration.windows(calibration.tokens(made, text), 48, 48, 0.5, 1, "")[0]
    kl, states = by_block(p.load(made), p.load(source), ids, lambda *_: None)
    mixed, quantized, right = p.load(source), p.load(made), p.load(source)
    inside = {n: v for n, v in quantized.state_dict().items() if ".layers.1." in n}
    mixed.load_state_dict(inside, strict=False, assign=True)
    with torch.inference_mode():
        a, b = (m(input_ids=ids[None]).logits[0].double().log_softmax(-1) for m in (right, mixed))
    assert kl[1] == pytest.approx(float((a.exp() * (a - b)).sum(-1).mean()), rel=1e-3) and len(states) == 3 and min(states) > 0
    assert by_block(p.load(source), p.load(source), ids, lambda *_: None) == ([pytest.approx(0, abs=1e-9)] * 3, [0.0] * 3)


def test_without_the_float_model_the_page_is_honest(browser, models, tmp_path):
    done = subprocess.run([*FEWBIT, "report", str(models[1]), "-o", "r.html"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    browser.open(tmp_path / "r.html")
    assert figure(browser, "perplexity") == "not known" == figure(browser, "speed")
    assert "They take the float model" in browser.run("document.getElementById('missing').innerText")
    done = subprocess.run([*FEWBIT, "report", str(models[0]), "-o", "f.html"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and not (tmp_path / "f.html").exists()


def test_the_gallery_shows_the_results(browser, tmp_path):
    from fewbit.report.gallery import Entry, gallery

    (tmp_path / "one.html").write_text("a page")
    results = ROOT / "benchmarks" / "results" / "policies.jsonl"
    gallery(results, [Entry("one.html", "One <policy>", None)], tmp_path)
    readable(browser, tmp_path / "index.html")
    rows = browser.run("[...document.querySelectorAll('#headline tbody tr')].map(r => [...r.cells].map(c => c.textContent))")
    shown = {r[0]: r[2].split("%")[0] for r in rows}
    measured = [json.loads(line) for line in results.read_text().splitlines()]
    assert shown == {r["agent"]: f"{100 * r['kept']:.1f}" for r in measured if r["method"] == "fewbit search"}
    assert browser.run("document.querySelector('article a').getAttribute('href')") == "one.html"
    assert browser.run("document.querySelector('article a').textContent") == "One <policy>"
    (tmp_path / "readme.html").write_text('<img src="headline.svg">')
    browser.open(tmp_path / "readme.html")
    assert browser.run("document.images[0].naturalWidth") > 300 and "--quantized:" in (tmp_path / "headline.svg").read_text()
