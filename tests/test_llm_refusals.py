"""What is no causal language model of text, or more than a model's tables hold, is one line that names it, before any work."""

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import random_llms  # noqa: E402
import tiny_llm  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

from fewbit.cli.main import app  # noqa: E402
from fewbit.errors import FewbitError  # noqa: E402
from fewbit.llm import quantize  # noqa: E402
from fewbit.llm.options import Options  # noqa: E402

RTN = Options("int8", 16, method="rtn")
WIDE = {"vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """An OPT, whose positions are a table of 64, as `opt`; and a text."""
    folder = tmp_path_factory.mktemp("refusals")
    opt = WIDE | {"ffn_dim": 128, "word_embed_proj_dim": 64, "max_position_embeddings": 64}
    random_llms.save(folder / "opt", random_llms.Case("opt", opt, torch.float32, False, False))
    tiny_llm.text(folder / "text.txt")
    return folder


def refused(*arguments: object) -> str:
    done = CliRunner().invoke(app, list(map(str, arguments)))
    assert isinstance(done.exception, FewbitError), done.exception
    assert "\n" not in str(done.exception)
    return str(done.exception)


def test_windows_beyond_the_table_of_positions(home, tmp_path):
    said = refused("llm", "perplexity", home / "opt", "--text", home / "text.txt", "--window", 65)
    assert "65 tokens at a time; the model's table of positions holds 64" in said
    said = refused("llm", "quantize", home / "opt", "-o", tmp_path / "out", "--calibration", home / "text.txt", "--length", 65)
    assert "65 tokens at a time; the model's table of positions holds 64" in said
    quantize.quantize(home / "opt", tmp_path / "out", RTN)
    assert "give --max-tokens 60 at most, or a shorter prompt" in refused(
        "llm", "generate", tmp_path / "out", "gates", "--max-tokens", 61
    )
    assert "holds 64, give fewer" in refused("llm", "generate", tmp_path / "out", "g" * 65)
    done = CliRunner().invoke(app, ["llm", "generate", str(tmp_path / "out"), "gates", "--max-tokens", "60", "--json"])
    assert json.loads(done.stdout)["tokens"] <= 60


def test_ids_beyond_the_vocabulary(home, tmp_path):
    config = WIDE | {"vocab_size": 60, "head_dim": 16, "num_key_value_heads": 2}
    random_llms.save(tmp_path / "m", random_llms.Case("llama", config, torch.float32, False, False))
    quantize.quantize(tmp_path / "m", tmp_path / "out", RTN)
    quantize.quantize(tmp_path / "m", tmp_path / "packed", Options("int8", 16, method="rtn", embedding="int8"))
    for folder in ("m", "out"):
        assert "the model has 60 embeddings" in refused("llm", "perplexity", tmp_path / folder, "--text", home / "text.txt",
                                                        "--window", 32)  # fmt: skip
    for folder in ("out", "packed"):
        assert "the model has 60 embeddings" in refused("llm", "generate", tmp_path / folder, "zzz")


def test_half_a_character_in_a_prompt(home, tmp_path):
    quantize.quantize(home / "opt", tmp_path / "out", RTN)
    assert "lone surrogate" in refused("llm", "generate", tmp_path / "out", "a\udce9b")


def _saved(folder: Path, model: torch.nn.Module) -> Path:
    model.save_pretrained(folder)
    tiny_llm._tokenizer().save_pretrained(folder)
    return folder


def _others() -> dict[str, tuple[type, object]]:
    bert = transformers.BertConfig(**WIDE)
    t5 = transformers.T5Config(vocab_size=256, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4)
    text = WIDE | {"num_key_value_heads": 2, "head_dim": 16, "sliding_window": 16, "query_pre_attn_scalar": 16}
    vision = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 28,
              "patch_size": 14}  # fmt: skip
    tokens = {"image_token_index": 250, "boi_token_index": 251, "eoi_token_index": 252, "mm_tokens_per_image": 4}
    gemma = transformers.Gemma3Config(text_config=text, vision_config=vision, **tokens)
    return {
        "does not predict the next token": (transformers.BertForMaskedLM, bert),
        "attends to tokens that follow": (transformers.BertLMHeadModel, bert),
        "is an encoder with a decoder": (transformers.T5ForConditionalGeneration, t5),
        "is more than a language model": (transformers.Gemma3ForConditionalGeneration, gemma),
    }


@pytest.mark.parametrize("said", _others())
def test_what_is_no_language_model_alone(tmp_path, said):
    kind, config = _others()[said]
    folder = _saved(tmp_path / "m", kind(config))
    assert said in refused("llm", "quantize", folder, "-o", tmp_path / "out", "--method", "rtn", "--group-size", 16)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("question", ["", "  ", "a\ud800b"])
def test_questions_that_no_tokenizer_takes(home, tmp_path, question):
    pytest.importorskip("lm_eval")
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps({"question": question, "choices": ["a", "b"], "answer": 0}) + "\n")
    assert "line 1 is not" in refused("llm", "eval", home / "opt", "--tasks", path)


def test_the_share_that_is_packed_is_said(home, tmp_path):
    record = quantize.quantize(home / "opt", tmp_path / "out", RTN)
    assert record["packed_share"] == 1.0
