"""What differs between families: biases, Linear layers fed with tensors of other ranks, blocks that return tuples."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import random_llms  # noqa: E402
import tiny_llm  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from fewbit.errors import FewbitError  # noqa: E402
from fewbit.llm import calibration, export, kv_cache, loading, perplexity, quantize  # noqa: E402
from fewbit.llm.options import Options  # noqa: E402

WIDE = {"vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 256}  # fmt: skip


def make(folder: Path, family: str, **config: object) -> Path:
    return random_llms.save(folder, random_llms.Case(family, WIDE | config, torch.float32, False, False))


def kl(folder: Path, out: Path, method: str, text: Path, weights: str = "int8") -> float:
    """Of what quantize makes of the folder, against transformers' own loading of it, on the text's second half."""
    quantize.quantize(folder, out, Options(weights, 16, False, method, 8, 32), text)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = calibration.windows(calibration.tokens(folder, text), 64, None, 0.5, 4, str(text), calibration.beginning(folder))
    return perplexity.perplexity(perplexity.load(out), ids, theirs)["kl"]


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    return tiny_llm.text(tmp_path_factory.mktemp("text") / "text.txt", 4000)


BIASED = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "phi": {},
    "starcoder2": {"use_bias": True},
    "gpt_neox": {"attention_bias": True, "tie_word_embeddings": True},
}


@pytest.mark.parametrize("family", BIASED)
def test_a_bias_counts_once(tmp_path, text, family):
    folder = make(tmp_path / "m", family, **BIASED[family])
    found = {method: kl(folder, tmp_path / method, method, text) for method in ("gptq", "auto")}
    assert found["auto"] < 1.5 * found["gptq"] < 1e-3


LATENT = {"q_lora_rank": 32, "kv_lora_rank": 32, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 32}
OTHER_RANKS = {  # the model makes a matrix of its batch, or has a Linear read a head at a time
    "opt": {"ffn_dim": 128, "word_embed_proj_dim": 64},
    "deepseek_v3": LATENT | {"first_k_dense_replace": 8, "n_group": 1, "topk_group": 1},
}


@pytest.mark.parametrize("method", ["gptq", "auto"])
@pytest.mark.parametrize("family", OTHER_RANKS)
def test_inputs_of_other_ranks_are_calibrated_on(tmp_path, text, family, method):
    folder = make(tmp_path / "m", family, **OTHER_RANKS[family])
    assert kl(folder, tmp_path / "out", method, text) < 5e-4


@pytest.mark.parametrize("weights", ["int8", "int4", "q8_0", "q4_0", "q4_1"])
@pytest.mark.parametrize("method", ["rtn", "auto"])
def test_small_weights_are_weights(tmp_path, text, weights, method):
    """A block whose up is 2^10 times larger and its down as much smaller computes the same, and loses the same."""
    found = []
    for power in (0, 10):
        folder = make(tmp_path / f"m{power}", "llama", head_dim=16, num_key_value_heads=2)
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        with torch.no_grad():
            model.model.layers[0].mlp.up_proj.weight *= 2.0**power
            model.model.layers[0].mlp.down_proj.weight /= 2.0**power
        model.save_pretrained(folder)
        found.append(kl(folder, tmp_path / f"out{power}", method, text, weights))
    assert found[1] < 1.5 * found[0] + 1e-5


@pytest.mark.parametrize(("power", "said"), [(-30, "give fewer bits"), (40, "give more bits")])
def test_weights_that_no_float16_scale_suits_are_refused(tmp_path, power, said):
    folder = make(tmp_path / "m", "llama")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight *= 2.0**power
    model.save_pretrained(folder)
    with pytest.raises(FewbitError, match=rf"model\.layers\.1\.mlp\.down_proj: its largest weight is .*{said}"):
        quantize.quantize(folder, tmp_path / "out", Options("int8", 16, False, "rtn"))


def test_small_keys_are_kept_in_8_bits():
    x = torch.randn(50, 64) * torch.logspace(0, -5, 50)[:, None]
    off = (kv_cache.unpack(kv_cache.pack(x), torch.float32) - x).abs().amax(-1)
    step = x.abs().amax(-1) / 127
    assert bool((off <= 0.57 * step + 2.0**-25).all())  # half a step, and what float16 rounds the step by


def changed(source: Path, folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """A copy of a checkpoint of one file whose tensors went through `change`."""
    shutil.copytree(source, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def tied(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("tied") / "m", "llama", tie_word_embeddings=True)


def _own_head(tensors: dict[str, torch.Tensor]) -> None:
    table = tensors["model.embed_tokens.weight"]
    tensors["lm_head.weight"] = table + 0.3 * torch.randn(table.shape, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("asked", [{}, {"head": "int8"}, {"embedding": "int8"}])
def test_a_head_of_its_own_beside_a_tied_flag_is_run(tied, tmp_path, asked):
    folder, ids = changed(tied, tmp_path / "m", _own_head), torch.arange(40)[None]
    quantize.quantize(folder, tmp_path / "out", Options("int8", 16, method="rtn", **asked))
    with torch.no_grad():
        wanted = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(ids).logits
        found = {
            "float": perplexity.load(folder)(ids).logits,
            "dequantized": perplexity.load(tmp_path / "out")(ids).logits,
            "packed": loading.load(tmp_path / "out", activations="float")[0](ids).logits,
        }
    off = {name: float((logits - wanted).std() / wanted.std()) for name, logits in found.items()}
    assert off["float"] < 1e-5 and off["dequantized"] < 0.05 and off["packed"] < 0.05


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.norm.weight", "model.layers.1.mlp.up_proj.weight"])
def test_numbers_that_are_not_finite_are_named_with_their_file(tied, tmp_path, text, name):
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name].view(-1)[7] = float("nan")

    folder = changed(tied, tmp_path / "m", spoil)
    runs = {
        "rtn": lambda out: quantize.quantize(folder, out, Options("int8", 16, method="rtn")),
        "auto": lambda out: quantize.quantize(folder, out, Options("int8", 16, False, "auto", 4, 32), text),
        "perplexity": lambda out: perplexity.load(folder),
        "fp8": lambda out: export.export(folder, out, "compressed-tensors", "fp8"),
    }
    for run in runs.values():
        with pytest.raises(FewbitError, match=rf"^{folder}.*{name} holds numbers that are not finite"):
            run(tmp_path / "out")
        assert not (tmp_path / "out").exists()


IN_TUPLES = {
    "bloom": {"num_key_value_heads": None},
    "falcon": {"new_decoder_architecture": True, "num_kv_heads": 2},
}


@pytest.mark.parametrize("family", IN_TUPLES)
def test_blocks_that_return_tuples_are_walked(tmp_path, text, family):
    folder = make(tmp_path / "m", family, **IN_TUPLES[family])
    assert kl(folder, tmp_path / "out", "auto", text) < 1e-3


def test_a_model_that_gives_its_blocks_more_of_the_tokens_is_refused(tied, tmp_path, text, monkeypatch):
    """Block after block, with the masks of another text, would not be the model."""
    from transformers.models.llama import modeling_llama

    run = modeling_llama.LlamaModel.forward
    seen = {}

    def model(self, input_ids, **kwargs):
        seen["ids"] = input_ids
        return run(self, input_ids=input_ids, **kwargs)

    def rotary(self, x, position_ids):
        cos, sin = old(self, x, position_ids)
        return cos, sin * (1 + 0.01 * seen["ids"][..., None])

    old = modeling_llama.LlamaRotaryEmbedding.forward
    monkeypatch.setattr(modeling_llama.LlamaModel, "forward", model)
    monkeypatch.setattr(modeling_llama.LlamaRotaryEmbedding, "forward", rotary)
    with pytest.raises(FewbitError, match="gives its blocks position_embeddings, which depends on the tokens"):
        quantize.quantize(tied, tmp_path / "out", Options("int8", 16, False, "auto", 4, 32), text)
