"""Random small models of many families: quantized to what transformers runs at hardly a loss, or refused for a stated cause."""

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import random_llms  # noqa: E402
import tiny_llm  # noqa: E402

from fewbit.errors import FewbitError  # noqa: E402
from fewbit.llm import calibration, perplexity, quantize  # noqa: E402
from fewbit.llm.options import Options  # noqa: E402

SEEDS = 1  # models of each family; more with: python tests/test_llm_random.py FIRST LAST
MOST = 2e-3  # KL of int8 weights in groups of 16 to the float model
EXPERTS = ("mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss", "deepseek_v3")
REFUSED = {"experts": EXPERTS, "Conv1D": ("gpt2",)}  # the words of a refusal, and of which families alone it may be


def losses(family: str, seed: int, folder: Path) -> dict[str, float]:
    """KL by method, at int8, to transformers' own loading; FewbitError where it is refused."""
    case = random_llms.draw(family, seed)
    source, text = random_llms.save(folder / "m", case, seed), tiny_llm.text(folder / "text.txt", 3000)
    found = {}
    for method in ("rtn", "auto"):
        given = None if method == "rtn" else text
        quantize.quantize(source, folder / method, Options("int8", 16, False, method, 8, 32), given)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
        ids = calibration.windows(calibration.tokens(source, text), 64, None, 0.5, 3, "text", calibration.beginning(source))
        found[method] = perplexity.perplexity(perplexity.load(folder / method), ids, theirs)["kl"]
    return found


def check(family: str, seed: int, folder: Path) -> str:
    """What came of it, in words; AssertionError where it is neither right nor refused for its cause."""
    try:
        found = losses(family, seed, folder)
    except FewbitError as e:
        words = [word for word, families in REFUSED.items() if word in str(e) and family in families]
        assert words and "\n" not in str(e), f"{family} {seed}: {e}"
        return f"refused ({words[0]})"
    assert max(found.values()) < MOST and found["auto"] < 1.2 * found["rtn"] + 1e-6, f"{family} {seed}: {found}"
    return f"rtn {found['rtn']:.6f}, auto {found['auto']:.6f}"


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("family", random_llms.FAMILIES)
def test_a_random_model_is_right_or_refused_for_its_cause(family, seed, tmp_path):
    check(family, seed, tmp_path)


if __name__ == "__main__":
    import sys
    import tempfile

    for seed in range(int(sys.argv[1]), int(sys.argv[2])):
        for family in random_llms.FAMILIES:
            with tempfile.TemporaryDirectory() as folder:
                print(family, seed, check(family, seed, Path(folder)), flush=True)
