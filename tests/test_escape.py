"""A stranger's names are printed, never obeyed: in comments and identifiers of C, in a terminal, in a page."""

import json
import re
import shutil
import subprocess
import sys

import corpus
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fewbit.engine.lower import lower
from fewbit.escape import c_comment, c_identifier, printable
from fewbit.graph import metadata
from fewbit.graph.read import prepare
from fewbit.report.policy import Options
from fewbit.report.policy import policy as report
from fewbit.targets import c

INJECTED = "INJECTED"
ATTACKS = [
    f"h*/ int {INJECTED}(void); /*",
    f"h*\\\n/ int {INJECTED}(void); /*",
    f"h*??/\n/ int {INJECTED}(void); /*",
    f"**/ int {INJECTED}; /**",
    f"*\r\n#define {INJECTED} 1\n",
    "\x1b[2J\x1b[1;1Hkept 100%",
    "\x1b]0;title\x07",
    "safe\u202eevil",
    "[link=https://example.com]kept[/link]",
    "[/]",
    f"</script><script>{INJECTED}()</script>",
    f"<img src=x onerror={INJECTED}()>",
    "a\nkept  100%",
]
WORDS = [
    "state", "double", "i", "void", "int", "class", "template", "action", "action0", "x", "1st", "a b", "a-b", "a_b", "A_B",
    "é", "", "linear_u8_w8_u8_narrow", "weight_1", "u8_0", "i16_0", "int8_t", "uint8_t", "NULL", "INPUT", "B1", "PI", "F",
    "policy_act", "test_in0", "start_h", "_Bool", "__x", "main", "abs", "min", "true", "bool", "观察", "obs", "OBS", "and",
    "unix",
]  # fmt: skip


@given(st.text(max_size=40))
@example("*" * 9 + "/")
@example("/" + "*" * 9)
@example("*?" * 5 + "/")
@example("?" * 7)
def test_a_comment_stays_one_line_that_ends_where_it_should(text):
    line = c_comment(text)
    assert not re.search(r"\*/|/\*|\?\?|\\|[\x00-\x1f\x7f]", line) and line.isprintable()
    assert "*/" not in (f"/* {line} */")[:-2]


@given(st.text(max_size=40))
def test_printable_text_is_printable_and_keeps_what_already_was(text):
    assert printable(text).isprintable()
    assert printable(text) == text or not text.isprintable()


def network(names: list[str], rename: str = ""):
    """A quantized network of an input of each name, all joined, and a tensor called `rename`."""
    g = corpus.Graph(1)
    parts = [g.entry("int16", 3, 0.5) for _ in names]
    x = g.qdq(g.op("Concat", *parts, axis=1), "int16", 0.5) if len(parts) > 1 else parts[0]
    case = g.case("names", g.gemm(x, 0.5, np.ones((2, 3 * len(names)), np.int8), np.ones(2), None))
    model = case.model
    for old, new in [(v.name, n) for v, n in zip(model.graph.input, names, strict=True)] + [(model.graph.output[0].name, rename)]:
        for node in model.graph.node if new else ():
            node.input[:] = [new if n == old else n for n in node.input]
            node.output[:] = [new if n == old else n for n in node.output]
        for value in [*model.graph.input, *model.graph.output]:
            value.name = new if value.name == old and new else value.name
    return model


@pytest.mark.skipif(not shutil.which("gcc"), reason="needs gcc")
@pytest.mark.parametrize("compiler", [["gcc", "-std=c99"], ["g++", "-x", "c++"]])
def test_every_name_compiles_as_a_parameter_of_c_and_cpp(tmp_path, compiler):
    taken: set[str] = set()
    for word in WORDS:
        taken.add(c_identifier(word, taken).lower())
    assert len(taken) == len(WORDS)
    made = c.generate(lower(prepare(network(WORDS[:16]))), "policy")
    for file, text in made["files"].items():
        (tmp_path / file).write_text(text)
    fields = "\n".join(f"  int {name};" for name in taken)
    parameters = ", ".join(f"const float *{name}" for name in taken)
    probe = f'#include "policy.h"\ntypedef struct {{\n{fields}\n}} fields;\nvoid probe({parameters});\n'
    (tmp_path / "probe.c").write_text(probe)
    done = subprocess.run(
        [*compiler, "-Wall", "-Wextra", "-Werror", "-c", "policy.c", "probe.c"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[:2000]


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_name_of_a_file_becomes_code_in_c(attack):
    model = prepare(network([attack], attack + "y"))
    evidence = {"kept": 1.0, "kept_ci95": [0.9, 1.1], "env": attack, "return_quantized": {"n": 3}}
    files = c.generate(lower(model), "policy", attack, evidence)["files"]
    for text in files.values():
        code = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
        name = c_identifier(attack, set())
        assert INJECTED not in code.replace(name, "").replace(name.upper(), "")
        assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e]|\?\?", text)


@pytest.fixture(scope="module")
def attacked(tmp_path_factory):
    """Artifacts whose every name and record entry is an attack."""
    folder, paths = tmp_path_factory.mktemp("attacks"), []
    for k, attack in enumerate(ATTACKS):
        model = prepare(network([attack], attack + "y"))
        part = {
            "env": attack,
            "kept": 0.5,
            "kept_ci95": [0.4, 0.6],
            "verdict": attack,
            "latency_us": 1.0,
            "latency_executor": attack,
        }
        record = {
            "evidence": part,
            "recipe": {attack: attack},
            "contract": {attack: {attack: attack}},
            "fidelity": {attack: attack},
        }
        metadata.write(model, record)
        paths.append(folder / f"{k}.onnx")
        paths[-1].write_bytes(metadata.to_bytes(model))
    return paths


ALL = """
import sys
from fewbit.cli import main
rows, *paths = sys.argv[1:]
for path in paths:
    for arguments in (["inspect", path], ["diff", path, path, "--observations", rows], ["plan", path],
                      ["quantize", path, "-o", path + ".q.onnx", "--observations", rows],
                      ["evaluate", path, "--env", "CartPole-v1"]):
        sys.argv[1:] = arguments
        try:
            main.main()
        except SystemExit as e:
            assert e.code in (0, 1, 2), e.code
"""


def test_no_verb_prints_a_control_character_or_a_line_of_a_names_own(attacked):
    rows = attacked[0].with_suffix(".npy")
    np.save(rows, np.ones((4, 3), np.float32))
    done = subprocess.run(
        [sys.executable, "-c", ALL, str(rows), *map(str, attacked)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for text in (done.stdout, done.stderr):
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202e]", text)
        assert not re.search(r"^kept  100%", text, flags=re.MULTILINE)
    assert "[link=https://example.com]kept[/link]" in done.stdout


@pytest.mark.parametrize("k", range(len(ATTACKS)))
def test_a_page_escapes_what_its_record_says(attacked, k):
    page = report(attacked[k], Options())
    record = re.search(r'<script type="application/json" id="record">(.*?)</script>', page, flags=re.DOTALL)
    assert json.loads(record[1])["evidence"]["env"] == ATTACKS[k]
    rest = page.replace(record[0], "")
    assert f"<script>{INJECTED}" not in rest and f"<img src=x onerror={INJECTED}" not in rest and "<script>" not in record[1]
