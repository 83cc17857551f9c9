"""Samples and windows begin as the tokenizer begins a text, which is what the model was trained on."""

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import tiny_llm  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

from fewbit.cli.main import app  # noqa: E402
from fewbit.errors import FewbitError  # noqa: E402
from fewbit.llm import calibration, quantize, work  # noqa: E402
from fewbit.llm.options import Options  # noqa: E402

SMALL = Options("int8", 16, False, "auto", 4, 32)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Two Llamas that differ in the tokenizer alone: `bos` begins every text with BOS, `plain` does not; and a text."""
    folder = tmp_path_factory.mktemp("calibration")
    tiny_llm.save(folder / "bos", bos=True, calm=5)
    tiny_llm.save(folder / "plain", calm=5)
    tiny_llm.text(folder / "text.txt")
    return folder


def run(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, list(map(str, arguments)))
    return done.exit_code, done.stdout


@pytest.mark.parametrize("family", ["bos", "plain"])
def test_the_walk_is_calibrated_on_texts_as_the_tokenizer_begins_them(home, tmp_path, monkeypatch, family):
    batches, seen, said = work._batches, [], []
    monkeypatch.setattr(work, "_batches", lambda ids: (seen.append(ids), batches(ids))[1])
    quantize.quantize(home / family, tmp_path / "out", SMALL, home / "text.txt", say=said.append)
    wanted = transformers.AutoTokenizer.from_pretrained(home / family)((home / "text.txt").read_text())["input_ids"]
    assert seen[0].shape == (4, 32) and seen[0][0].tolist() == wanted[:32]
    assert all((seen[0][:, 0] == tiny_llm.BOS).tolist()) is (family == "bos")
    assert any("every sample begins with" in line for line in said) is (family == "bos")


@pytest.mark.parametrize("family", ["bos", "plain"])
def test_perplexity_is_transformers_own_on_texts_that_begin_so(home, family):
    status, out = run("llm", "perplexity", home / family, "--text", home / "text.txt", "--window", 40, "--windows", 3, "--json")
    found = json.loads(out)
    model = transformers.AutoModelForCausalLM.from_pretrained(home / family, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(home / family)
    ids = tokenizer((home / "text.txt").read_text(), add_special_tokens=False)["input_ids"]
    first = [tiny_llm.BOS] if family == "bos" else []
    own = 40 - len(first)
    windows = torch.tensor([first + ids[k * own : (k + 1) * own] for k in range(3)])
    with torch.no_grad():
        wanted = float(torch.exp(model(windows, labels=windows).loss))
    assert status == 0 and found["perplexity"] == pytest.approx(wanted, rel=1e-4) and found["tokens"] == 3 * 39
    assert ("windows_begin_with" in found) is (family == "bos")


def test_an_importance_matrix_is_measured_so_too(home):
    from fewbit.llm import imatrix

    with_bos, _ = imatrix.measure(home / "bos", home / "text.txt", 2, 16)
    without, _ = imatrix.measure(home / "plain", home / "text.txt", 2, 16)
    name = "blk.0.attn_q.weight"
    assert abs(with_bos[name] - without[name]).max() > 1e-3 * without[name].max()


def test_no_text_fits_behind_the_beginning(home):
    first = calibration.beginning(home / "bos")
    with pytest.raises(FewbitError, match="no room for text"):
        calibration.windows(torch.arange(10), 1, None, 0.0, None, "text", first)
    with pytest.raises(FewbitError, match="at least one sample"):
        calibration.samples(torch.arange(10), 1, 1, "text", first)


def test_a_folder_without_a_tokenizer_is_said_in_whole(home, tmp_path):
    import shutil

    shutil.copytree(home / "plain", tmp_path / "m")
    for path in tmp_path.glob("m/tokenizer*"):
        path.unlink()
    with pytest.raises(FewbitError, match="no tokenizer in it .*copy the checkpoint's tokenizer files there$"):
        quantize.quantize(tmp_path / "m", tmp_path / "out", SMALL, home / "text.txt")
