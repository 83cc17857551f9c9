"""Tasks from files: what the harness says is what log-probabilities say; pairs, intervals, and nothing fetched or run."""

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("lm_eval")

import tiny_llm  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

from fewbit.cli.main import app  # noqa: E402
from fewbit.errors import FewbitError  # noqa: E402
from fewbit.llm import evaluate, perplexity, quantize  # noqa: E402
from fewbit.llm.options import Options  # noqa: E402

WORDS = ["weight", "scale", "group", "code"]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("eval")
    tiny_llm.save(folder / "m")
    quantize.quantize(folder / "m", folder / "out", Options("int2", 32, method="rtn"))
    random = np.random.default_rng(0)
    with (folder / "q.jsonl").open("w") as f:
        for k in range(24):
            words = list(random.permutation(WORDS))
            f.write(json.dumps({"question": f"few bits {k} and", "choices": words, "answer": int(random.integers(4))}) + "\n")
    return folder


def by_hand(folder: Path, questions: Path) -> list[float]:
    """1 where the right choice has the largest log-probability behind the question and a space."""
    from transformers import AutoTokenizer

    model, tokenizer, right = perplexity.load(folder), AutoTokenizer.from_pretrained(folder), []
    for line in questions.read_text().splitlines():
        q, totals = json.loads(line), []
        for choice in q["choices"]:
            head, ids = tokenizer(q["question"])["input_ids"], tokenizer(f"{q['question']} {choice}")["input_ids"]
            with torch.no_grad():
                p = torch.log_softmax(model(torch.tensor([ids])).logits[0], -1)
            totals.append(sum(float(p[k - 1, ids[k]]) for k in range(len(head), len(ids))))
        right.append(float(int(np.argmax(totals)) == q["answer"]))
    return right


def test_questions_are_paired_with_the_float_models(home):
    arguments = ["llm", "eval", home / "out", "--tasks", home / "q.jsonl", "--against", home / "m", "--json"]
    done = CliRunner().invoke(app, list(map(str, arguments)))
    found = json.loads(done.stdout.strip().splitlines()[-1])["q"]["acc"]
    ours, theirs = (np.array(by_hand(home / n, home / "q.jsonl")) for n in ("out", "m"))
    assert (found["n"], found["value"], found["float"]) == (24, ours.mean(), theirs.mean())
    assert (found["better"], found["worse"]) == ((ours > theirs).sum(), (ours < theirs).sum())
    low, high = found["difference_ci95"]
    assert low <= found["difference"] <= high and high > low


def test_a_task_of_the_harness_with_its_data_beside_it(home, tmp_path):
    (tmp_path / "data.jsonl").write_text((home / "q.jsonl").read_text())
    task = {
        "task": "mine",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": "data.jsonl"}},
        **evaluate.QUESTIONS,
    }
    (tmp_path / "task.yaml").write_text(json.dumps(task))  # which is YAML
    found = evaluate.evaluate(home / "m", [tmp_path / "task.yaml"], None, limit=10)["mine"]["acc"]
    assert found["n"] == 10 and found["value"] == np.mean(by_hand(home / "m", home / "q.jsonl")[:10])


def test_intervals_are_those_of_pairs():
    """Of the difference, far narrower than of either, where the same questions are lost; none lost is not proof of none."""
    random = np.random.default_rng(0)
    floats = (random.random(400) < 0.6).astype(float)
    ours = np.where(random.random(400) < 0.02, 1 - floats, floats)
    r = evaluate.compared(ours, floats)
    wide, narrow = (b - a for a, b in (r["ci95"], r["difference_ci95"]))
    assert narrow < 0.5 * wide
    off = ours - floats
    normal = 1.96 * off.std() / 20
    assert np.allclose(r["difference_ci95"], [off.mean() - normal, off.mean() + normal], atol=0.003)
    assert evaluate.compared(floats, floats)["difference_ci95"] == [-0.0075, 0.0075]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", "", "no questions"),
        ("a.jsonl", '{"question": "a", "choices": ["b"], "answer": 0}', "line 1"),
        ("a.jsonl", '{"question": "a", "choices": ["b", "c"], "answer": 2}', "line 1"),
        ("a.jsonl", "[[", "line 1"),
        ("a.yaml", "task: x\ndoc_to_text: !function utils.f", "Python functions are not run"),
        ("a.yaml", "task: x\ndataset_path: org/data", "nothing is fetched"),
        ("a.yaml", "task: x\ndataset_path: json\ndataset_kwargs: {data_files: none.jsonl}", "does not exist"),
        ("a.yaml", "- 1", "no name"),
    ],
)
def test_a_task_that_cannot_be_run_is_refused_in_one_line(tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    with pytest.raises(FewbitError, match=said) as caught:
        evaluate.task(tmp_path / name)
    assert "\n" not in str(caught.value)
