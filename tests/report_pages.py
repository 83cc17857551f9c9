"""Pages of the report for the tests: a record with everything in it, the page of one, and what every page must hold to."""

from pathlib import Path

import chromium
import corpus
import numpy as np

from fewbit.artifact import Artifact
from fewbit.graph.read import prepare
from fewbit.report.policy import Options, policy

SCREENS = [("light", 1200, False), ("dark", 1200, True), ("narrow", 390, False)]


def rung(what: str, kept: float, bytes_: int, reported: bool, verdict: str) -> dict:
    found = {"kept": kept, "kept_ci95": [kept - 0.01, kept + 0.01], "verdict": verdict, "fidelity_met": False,
             "seeds": [300000, 300019], "packed_bytes": bytes_}  # fmt: skip
    scheme = {"weights": "int6", "activations": "uint16", "inputs": "int16", "method": "smooth+gptq", "ranges": "minmax",
              "layers": [["head", "int8"]], "target": "any"}  # fmt: skip
    shown = found | {"seeds": [0, 19]} if reported else None
    return {"tried": what, "chosen_on": found, "reported": shown, "training_seconds": None, "scheme": scheme}


RECORD = {
    "recipe": {"source": "walker.zip", "env": "Walker2d-v5", "weights": "int6", "method": "smooth+gptq", "seed": 0},
    "evidence": {
        "env": "Walker2d-v5", "kept": 0.9876, "kept_ci95": [0.9776, 0.9976], "keep": 0.95, "verdict": "pass", "seeds": [0, 19],
        "return_float": {"mean": 3838.2, "se": 20.5, "n": 20}, "return_quantized": {"mean": 3790.1, "se": 21.5, "n": 20},
        "return_random": {"mean": 2.5, "se": 0.5, "n": 20}, "size_bytes": 88987, "size_float_bytes": 289001,
        "packed_bytes": 55000, "latency_us": 1.272, "latency_float_us": 11.918, "latency_executor": "native avx2",
        "latency_float_executor": "onnxruntime", "action_rmse": 0.0042, "fidelity_states": 20000, "fidelity_met": True,
        "versions": {"numpy": "2"},
    },
    "search": [rung("int4", 0.41, 38000, False, "fail"), rung("int6", 0.9876, 55000, True, "pass")],
}  # fmt: skip


def artifact(folder: Path, record: dict, name: str = "policy.onnx") -> Path:
    g = corpus.Graph(1)
    made = prepare(g.case("policy", g.gemm(g.entry("int16", 3, 0.5), 0.5, np.ones((2, 3), np.int8), np.ones(2), None)).model)
    Artifact(made, record).save(folder / name)
    return folder / name


def write(folder: Path, record: dict, name: str = "policy.onnx", **options) -> Path:
    page = folder / "report.html"
    page.write_text(policy(artifact(folder, record, name), Options(**options)))
    return page


def figure(browser: chromium.Browser, key: str) -> str:
    return browser.run(f"document.querySelector('[data-figure={key}]').textContent")


CONTRAST = """(() => {
  const channel = v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const luminance = c => 0.2126 * channel(c[0]) + 0.7152 * channel(c[1]) + 0.0722 * channel(c[2]);
  const parse = s => s.match(/[\\d.]+/g).map(Number);
  const behind = e => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor);
    if (c.length < 4 || c[3] > 0) return c; } return [255, 255, 255]; };
  const low = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const e = walker.currentNode.parentElement, text = walker.currentNode.textContent.trim();
    if (!text || !e.getClientRects().length || /SCRIPT|STYLE/.test(e.tagName)) continue;
    const style = getComputedStyle(e), ink = parse(e instanceof SVGElement ? style.fill : style.color);
    const [a, b] = [luminance(ink), luminance(behind(e))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) low.push(text.slice(0, 40) + ' ' + ((a + 0.05) / (b + 0.05)).toFixed(2));
  }
  return low;
})()"""


def readable(browser: chromium.Browser, page: Path, keep: Path | None = None) -> None:
    """Light, dark and narrow: contrast of 4.5 everywhere, nothing wider than the screen, no error, no request; a screenshot."""
    for name, width, dark in SCREENS:
        browser.errors.clear()
        browser.requests.clear()
        browser.open(page, width, dark)
        assert browser.run(CONTRAST) == [], name
        assert browser.run("document.documentElement.scrollWidth <= innerWidth"), name
        browser.screenshot((keep or page.parent) / f"{page.stem}.{name}.png")
        assert browser.errors == [] and browser.requests == [], name
