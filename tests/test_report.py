"""The report in a real browser: its figures are the artifact's evidence, nothing is fetched, nothing fails, all can be read."""

import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
from conftest import ROOT
from report_pages import RECORD, figure, readable, write

import fewbit
from fewbit import diff, pipeline, sources
from fewbit.errors import FewbitError
from fewbit.graph.layers import layers as graph_layers
from fewbit.report import layers as report_layers
from fewbit.report.page import LIMIT
from fewbit.report.policy import Options, policy
from fewbit.report.sensitivity import sensitivity

pytest.importorskip("matplotlib", reason="needs matplotlib")
FEWBIT = [sys.executable, "-c", "from fewbit.cli.main import main; main()"]


def test_figures_are_the_evidence(browser, tmp_path):
    page = write(tmp_path, RECORD)
    readable(browser, page)
    assert (figure(browser, "kept"), figure(browser, "size"), figure(browser, "latency")) == ("98.8%", "89 KB", "1.27 µs")
    assert json.loads(browser.run("document.getElementById('record').textContent")) == RECORD
    text = browser.run("document.body.innerText")
    for shown in ("97.8% to 99.8%", "3,838 ± 20", "289 KB", "9.4 times faster", "Walker2d-v5"):
        assert shown in text, shown
    rows = browser.run("[...document.querySelectorAll('#search tbody tr')].map(r => [r.className, r.innerText])")
    assert [r[0] for r in rows] == ["", "shipped"] and "41.0%" in rows[0][1] and "98.8%" in rows[1][1]
    command = "fewbit quantize walker.zip -o OUT.onnx --env Walker2d-v5 --weights int6 --method smooth+gptq --activations uint16 "
    assert command + "--layer head=int8 --keep 0.95" in rows[1][1]


def test_a_real_artifact_from_the_command_line(browser, tmp_path):
    made = fewbit.quantize(
        ROOT / "demo" / "halfcheetah.zip", env="HalfCheetah-v5", scheme=fewbit.Scheme(method="rtn"), episodes=2
    )
    made.save(tmp_path / "policy.onnx")
    run = subprocess.run(
        [*FEWBIT, "report", "policy.onnx", "-o", "r.html", "--json"], capture_output=True, text=True, cwd=tmp_path
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == {"report": "r.html", "size_bytes": (tmp_path / "r.html").stat().st_size}
    assert (tmp_path / "r.html").stat().st_size < LIMIT
    browser.open(tmp_path / "r.html")
    evidence = json.loads(browser.run("document.getElementById('record').textContent"))["evidence"]
    assert figure(browser, "kept") == f"{100 * evidence['kept']:.1f}%" and evidence["return_float"]["n"] == 2
    for name, status in (("r.txt", 2), ("none/r.html", 2)):
        run = subprocess.run([*FEWBIT, "report", "policy.onnx", "-o", name], capture_output=True, text=True, cwd=tmp_path)
        assert run.returncode == status and run.stderr.count("\n") == 1 and not (tmp_path / name).exists()


def test_the_keyboard_reaches_everything(browser, tmp_path):
    browser.open(write(tmp_path, RECORD))
    wanted = browser.run("document.querySelectorAll('a[href], button, input, summary, [tabindex=\"0\"]').length")
    seen = []
    for _ in range(wanted):
        browser.press("Tab", 9)
        seen.append(
            browser.run(
                "(e => [e.id ||= 'e' + Math.random(), e.tagName, getComputedStyle(e).outlineStyle])(document.activeElement)"
            )
        )
    assert len({s[0] for s in seen}) == wanted and all(s[2] != "none" for s in seen), seen
    browser.run("document.querySelector('summary').focus()")
    browser.press("Enter", 13)
    assert browser.run("document.querySelector('details').open")


HALVES = [
    {},
    {"recipe": {"source": "a.zip", "weights": "int8"}},
    {"evidence": {"size_bytes": 9000, "packed_bytes": 100}},
    {"evidence": {"env": "A-v0", "return_quantized": {"mean": 1.0, "se": 0.1, "n": 5}, "latency_us": 2.0}},
    RECORD | {"evidence": RECORD["evidence"] | {"kept": None, "kept_ci95": [None, None], "verdict": "undecided"}, "search": []},
    {"evidence": [], "search": {"a": 1}, "recipe": None},
]


@pytest.mark.parametrize("record", HALVES, ids=str)
def test_half_of_the_evidence_gives_an_honest_page(browser, tmp_path, record):
    browser.errors.clear()
    browser.open(write(tmp_path, record))
    assert figure(browser, "kept") == "not known" and "is not known" in browser.run(
        "document.querySelector('.sentence').textContent"
    )
    assert "The search" in browser.run("document.getElementById('missing').innerText")
    assert browser.errors == [] and "nan" not in browser.run("document.querySelector('main').innerText.toLowerCase()")


@pytest.mark.parametrize(
    "fidelity, value, said",
    [
        (
            {"action_rmse": 0.0179, "action_p999": 0.052, "action_worst": 0.061, "states": 4000},
            "1.79%",
            "at worst 6.10%, on 4,000",
        ),
        ({"action_agreement": 0.9962, "states": 500}, "99.62%", "in 99.62% of 500 states"),
    ],
)
def test_without_an_environment_the_action_error_comes_first(browser, tmp_path, fidelity, value, said):
    page = write(tmp_path, {"recipe": {"source": "a.zip", "weights": "int8"}, "fidelity": fidelity})
    readable(browser, page)
    assert figure(browser, "actions") == value and said in browser.run("document.querySelector('.sentence').textContent")
    assert figure(browser, "size").endswith("KB") or figure(browser, "size").endswith("bytes")
    assert browser.run("document.querySelectorAll('.tile').length") == 2  # no figure that is not known


def test_the_page_measures_the_action_error_on_given_observations(tmp_path):
    source, states = ROOT / "demo" / "halfcheetah.zip", np.random.default_rng(0).normal(0, 1, (64, 17)).astype(np.float32)
    np.save(tmp_path / "o.npy", states)
    made = fewbit.quantize(source, observations=states, scheme=fewbit.Scheme("int4", method="rtn"))
    made.save(tmp_path / "p.onnx")
    found = pipeline.compare(source, made, states).actions
    text = policy(tmp_path / "p.onnx", Options(source, observations=tmp_path / "o.npy"))
    assert f">{100 * found['action_rmse']:.2f}%<" in text and f"at worst {100 * found['action_worst']:.2f}%" in text


def test_every_rung_is_whole_on_a_telephone(browser, tmp_path):
    browser.open(write(tmp_path, RECORD), 390, False)
    cells = "[...document.querySelectorAll('#search tbody td, #search tbody th')].map(e => e.getBoundingClientRect())"
    assert browser.run(f"{cells}.every(r => r.left >= 0 && r.right <= innerWidth && r.width > 0)")


def test_rungs_of_one_size_have_places_of_their_own(tmp_path):
    same = RECORD["search"][0]
    text = write(tmp_path, RECORD | {"search": [same, same, RECORD["search"][1]]}).read_text()
    figure_text = text[text.index('id="search"') :]
    figure_text = figure_text[: figure_text.index("</svg>")]
    assert figure_text.count(">38<") == 2 and figure_text.count(">55<") == 1


def test_an_index_of_actions_has_no_decibels(tmp_path):
    from test_recorded import GOAL, OBS, network

    path = network(tmp_path / "policy.onnx")
    model = onnx.load(path)
    model.graph.node.append(onnx.helper.make_node("ArgMax", ["act"], ["choice"], axis=1, keepdims=0))
    model.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("choice", onnx.TensorProto.INT64, ("n",)))
    onnx.save(model, path)
    feeds = {"obs": OBS, "goal": GOAL}
    made = fewbit.quantize(path, observations=feeds, scheme=fewbit.Scheme("int4", method="rtn"))
    found = report_layers.layers(sources.load(path).model, made.model, made.record["recipe"], feeds)
    assert found["worst"] != "choice" and "choice" not in {r["tensor"] for r in found["rows"]}


HOSTILE = "<script>window.hacked=1</script>\"'><img src=x onerror=window.hacked=1>{{7*7}}"


def hostile(value):
    """The same with every text replaced."""
    if isinstance(value, dict):
        return {k: hostile(v) if k not in ("verdict", "kept") else v for k, v in value.items()}
    return [hostile(v) for v in value] if isinstance(value, list) else HOSTILE if isinstance(value, str) else value


def test_hostile_text_stays_text(browser, tmp_path):
    browser.errors.clear()
    browser.requests.clear()
    page = write(tmp_path, hostile(RECORD) | {"recipe": hostile(RECORD["recipe"])}, "<img src=x onerror=hacked=1>.onnx")
    browser.open(page)
    assert browser.run("window.hacked === undefined && !document.querySelector('main img')")
    assert HOSTILE in browser.run("document.querySelector('main').textContent") and "{{7*7}}" in browser.run(
        "document.body.innerText"
    )
    assert browser.errors == [] and browser.requests == []


def test_peers_only_beside_the_same_policy(tmp_path):
    row = {"agent": "a", "method": "onnxruntime static", "kept": 0.44, "kept_ci95": [0.43, 0.45]}
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps(row | {"return_float": {"mean": 3840.0, "se": 20.0, "n": 20}}))
    assert "44.0% kept (43.0% to 45.0%)" in write(tmp_path, RECORD, peers=rows).read_text()
    rows.write_text(json.dumps(row | {"return_float": {"mean": 9400.0, "se": 20.0, "n": 20}}))
    with pytest.raises(FewbitError, match="not the same policy"):
        write(tmp_path, RECORD, peers=rows)


def test_a_rungs_layer_is_an_option_that_is_checked(tmp_path):
    np.save(tmp_path / "o.npy", np.random.default_rng(0).normal(0, 1, (64, 17)).astype(np.float32))
    command = [
        *FEWBIT,
        "quantize",
        str(ROOT / "demo" / "halfcheetah.zip"),
        "-o",
        "p.onnx",
        "--observations",
        "o.npy",
        "--weights",
        "int4",
    ]
    for given, said in (("head=int8", "the layers are"), ("node_linear_2=float9", "no integer format"), ("int8", "NAME=FORMAT")):
        run = subprocess.run([*command, "--method", "rtn", "--layer", given], capture_output=True, text=True, cwd=tmp_path)
        assert run.returncode == 2 and said in run.stderr and run.stderr.count("\n") == 1
    run = subprocess.run(
        [*command, "--method", "rtn", "--layer", "node_linear_2=int8"], capture_output=True, text=True, cwd=tmp_path
    )
    assert run.returncode == 0, run.stderr
    weights = {
        i.name: i.data_type
        for i in onnx.load(tmp_path / "p.onnx").graph.initializer
        if i.data_type in (onnx.TensorProto.INT4, onnx.TensorProto.INT8) and len(i.dims) == 2
    }
    assert sorted(weights.values()) == [onnx.TensorProto.INT8, onnx.TensorProto.INT4, onnx.TensorProto.INT4]


def test_layers_are_those_of_diff(browser, tmp_path):
    """The table holds diff's numbers; bars are the codes' own histogram; a source is asked for where there is none."""
    source, states = ROOT / "demo" / "halfcheetah.zip", np.random.default_rng(0).normal(0, 1, (500, 17)).astype(np.float32)
    np.save(tmp_path / "o.npy", states)
    made = fewbit.quantize(source, observations=states, scheme=fewbit.Scheme("int4", method="rtn"))
    made.save(tmp_path / "p.onnx")
    page = tmp_path / "report.html"
    page.write_text(policy(tmp_path / "p.onnx", Options(source, observations=tmp_path / "o.npy")))
    readable(browser, page)
    browser.run("document.querySelectorAll('details').forEach(d => d.open = true)")
    rows = browser.run("[...document.querySelectorAll('#layers tbody tr')].map(r => [...r.cells].map(c => c.innerText))")
    want = {r.tensor: r for r in pipeline.diff(source, made, states) if r.format != "float32"}
    assert {r[0] for r in rows} == set(want)
    for name, fmt, alone, so_far, *_ in rows:
        r = want[name]
        assert (fmt, alone, so_far) == (r.format, f"{r.sqnr_local:.1f}", f"{r.sqnr_accumulated:.1f}")
    assert browser.run("document.querySelectorAll('#layers .grid figure svg').length") == 3 + len(want)
    page.write_text(policy(tmp_path / "p.onnx", Options()))
    browser.open(page)
    assert "It takes the float source" in browser.run("document.getElementById('missing').innerText")


def test_float_weights_are_shown_where_their_codes_are(tmp_path):
    """Round-to-nearest, columns scaled: moved into steps of the grid, every weight lies within half a step of its code."""
    source, states = ROOT / "demo" / "halfcheetah.zip", np.random.default_rng(0).normal(0, 1, (500, 17)).astype(np.float32)
    made = fewbit.quantize(source, observations=states, scheme=fewbit.Scheme("int6", method="smooth+rtn"))
    original, divided = sources.load(source).model, diff.exponents(made.model)
    assert any(v.any() for v in divided.values())
    nodes = {n.outputs[0].name: n for n in made.model.graph}
    for layer in graph_layers(original):
        dequantize = nodes[layer.node.outputs[0].name].inputs[1].producer()
        codes = dequantize.inputs[0].const_value.numpy().astype(np.int64)
        steps = report_layers._in_steps(layer, dequantize, divided, codes.shape)
        assert np.abs(steps - codes.reshape(-1)).max() <= 0.5 + 1e-4


def test_sensitivity_rows():
    alone = {"layer": "l0", "weights": "int4", "sqnr_local": 20.04, "kept": 0.5, "kept_ci95": [0.4, 0.6], "action_rmse": 0.1}
    rows = [alone, alone | {"layer": "l1", "sqnr_local": None, "kept": None, "kept_ci95": [None, None]}]
    found = sensitivity(rows)
    assert found["rows"][0] == {"layer": "l0", "kept": "50.0%", "interval": "40.0% to 60.0%", "action": "10.00%", "local": "20.0"}
    assert found["rows"][1]["kept"] == "undefined" and found["figure"].count("<svg") == 1


def test_what_an_artifact_may_not_decide(tmp_path, monkeypatch):
    """No module that its record names is imported, no other source passes for its own, no option does nothing."""
    source, states = ROOT / "demo" / "halfcheetah.zip", np.random.default_rng(0).normal(0, 1, (64, 17)).astype(np.float32)
    made = fewbit.quantize(source, observations=states, scheme=fewbit.Scheme(method="rtn"))
    made.record["recipe"]["env"] = "hostile_module:Env-v0"
    made.save(tmp_path / "p.onnx")
    (tmp_path / "hostile_module.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    assert "add --env hostile_module:Env-v0" in policy(tmp_path / "p.onnx", Options(source))
    assert not (tmp_path / "imported").exists()
    for options, said in ((Options(film=True), "--against"), (Options(source, film=True), "a module that would be imported")):
        with pytest.raises(FewbitError, match=said):
            policy(tmp_path / "p.onnx", options)
    made.record["recipe"]["source_sha256"] = "0" * 64
    made.save(tmp_path / "p.onnx")
    with pytest.raises(FewbitError, match="made from another source"):
        policy(tmp_path / "p.onnx", Options(source))


def test_other_runtimes_times_come_from_bench(tmp_path):
    times = [{"name": "fewbit", "us": {"1": 1.2}, "right": True}, {"name": "torch", "us": {"1": 28.4}, "right": True},
             {"name": "numpy", "us": {"1": 0.9}, "right": False}]  # fmt: skip
    (tmp_path / "bench.json").write_text(json.dumps({"timings": times}))
    text = write(tmp_path, RECORD, bench=tmp_path / "bench.json").read_text()
    assert (
        text.index("fewbit, one run") < text.index("torch, one run")
        and "28.4 µs" in text
        and "numpy" not in text.split("<details>")[0]
    )
    (tmp_path / "bench.json").write_text("[]")
    with pytest.raises(FewbitError, match="fewbit bench"):
        write(tmp_path, RECORD, bench=tmp_path / "bench.json")
