"""auto is not worse than GPTQ where the text says little: few tokens, or blanks only."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import tiny_llm  # noqa: E402

from fewbit.llm import calibration, methods, perplexity, quantize  # noqa: E402
from fewbit.llm.options import Options  # noqa: E402
from fewbit.solvers import grouped  # noqa: E402
from fewbit.solvers.grids import Grid  # noqa: E402


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("little")
    tiny_llm.save(folder / "m", "qwen3", calm=5, hidden_size=128, intermediate_size=256)
    tiny_llm.text(folder / "words.txt")
    (folder / "blanks.txt").write_text(" " * 4000)
    return folder


@pytest.mark.parametrize(("text", "times"), [("words.txt", 1.1), ("blanks.txt", 2.0)])
def test_auto_loses_no_more_than_gptq(home, tmp_path, text, times):
    """KL at int8 to transformers' own model, on words."""
    theirs = transformers.AutoModelForCausalLM.from_pretrained(home / "m", dtype=torch.float32).eval()
    ids = calibration.windows(calibration.tokens(home / "m", home / "words.txt"), 64, None, 0.5, 4, "words")
    found = {}
    for method in ("gptq", "auto"):
        quantize.quantize(home / "m", tmp_path / method, Options("int8", 32, False, method, 4, 32), home / text)
        found[method] = perplexity.perplexity(perplexity.load(tmp_path / method), ids, theirs)["kl"]
    assert found["auto"] < times * found["gptq"]


@pytest.mark.parametrize("tokens", [64, 4096])
def test_a_correction_is_made_where_it_helps_on_other_tokens(tokens):
    """Wanted outputs that are the weight's plus noise: nothing to be learned; plus another weight's: that is."""
    random = np.random.default_rng(0)
    weight, other = random.standard_normal((2, 24, 64)).astype(np.float32) / 8
    x = random.standard_normal((2, tokens // 2, 64))
    gram = [half.T @ half / len(half) for half in x]
    for off, helps in ((random.standard_normal((2, tokens // 2, 24)), False), (x @ other.T, True)):
        drift = [{"a": o.T @ half / len(half)} for o, half in zip(off, x, strict=True)]
        moments = methods.Moments(sum(gram) / 2, {"a": sum(d["a"] for d in drift) / 2}, tuple(zip(gram, drift, strict=True)))
        assert methods._mends("a", weight, moments) is helps


def test_codes_stay_near_where_inputs_say_nothing():
    """Inputs all the same, next to nothing in one column: its code could make up for the others' errors at any distance."""
    weight = np.random.default_rng(0).standard_normal((24, 64)).astype(np.float32)
    x = np.ones(64)
    x[0] = 1e-3
    found = grouped.descend(weight, grouped.nearest(weight, Grid(8, 16)), np.outer(x, x))
    step = found.scale[:, 0].astype(np.float32)
    assert float((np.abs(found.dequantized() - weight)[:, 0] / step).max()) < 2
