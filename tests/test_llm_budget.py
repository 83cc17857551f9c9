"""Bits by layer within a budget, the head, 8-bit activations and caches: what is kept, and that it is within what was asked."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import tiny_llm  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

import fewbit  # noqa: E402
from fewbit.cli.main import app  # noqa: E402
from fewbit.errors import FewbitError  # noqa: E402
from fewbit.llm import artifact, budget, calibration, consumers, export, packed, perplexity, quantize, simulate  # noqa: E402
from fewbit.llm.options import Options  # noqa: E402


def overhead(bits: int) -> float:
    return budget.stored_bits(bits, 16, False)


def test_bits_go_where_they_save_most_and_never_beyond_the_budget():
    """Against trying every assignment, on losses that fall by four a bit."""
    import itertools

    random = np.random.default_rng(0)
    scale = np.exp(2 * random.standard_normal(5))
    losses = {f"l{k}": {b: float(s * 4.0**-b) for b in budget.WIDTHS} for k, s in enumerate(scale)}
    weights = dict(zip(losses, [10, 10, 20, 20, 40], strict=True))
    total = sum(weights.values())
    for asked in (3.5, 4.5, 5.25, 6.0, 9.5):
        bits = budget.allocate(losses, weights, asked, overhead)
        spent = sum(overhead(b) * weights[n] for n, b in bits.items())
        assert spent <= asked * total
        found = sum(losses[n][b] for n, b in bits.items())
        best = min(
            sum(losses[n][b] for n, b in zip(losses, choice, strict=True))
            for choice in itertools.product(budget.WIDTHS, repeat=5)
            if sum(overhead(b) * w for b, w in zip(choice, weights.values(), strict=True)) <= asked * total
        )
        assert found <= 3 * best  # greedy along the hulls; what the last step leaves unspent
    with pytest.raises(FewbitError, match="at least 3.5"):
        budget.allocate(losses, weights, 3.0, overhead)


def test_layers_that_must_share_a_width_do_and_only_the_widths_that_run_are_chosen():
    random = np.random.default_rng(1)
    names = [f"l{k}.{n}" for k in range(3) for n in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")]
    losses = {n: {b: float(np.exp(3 * random.standard_normal()) * 4.0**-b) for b in budget.WIDTHS} for n in names}
    weights = {n: 10 + k for k, n in enumerate(names)}
    together = consumers.fused(names)
    assert len(together) == 6 and all(len(g) == (3 if "q_proj" in g[0] else 2) for g in together)
    bits = budget.allocate(losses, weights, 6.5, lambda b: b + 0.125, consumers.widths("vllm", True), together)
    assert set(bits.values()) == {4, 8} and bits.keys() == losses.keys()
    assert all(len({bits[n] for n in group}) == 1 for group in together)
    assert sum((b + 0.125) * weights[n] for n, b in bits.items()) <= 6.5 * sum(weights.values())


def test_an_artifact_for_vllm_has_one_width_where_vllm_runs_one_layer(tmp_path):
    shape = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64}
    folder, text = tiny_llm.save(tmp_path / "m", num_hidden_layers=2, **shape), tiny_llm.text(tmp_path / "t.txt")
    options = Options("int4", 128, True, "gptq", 4, 32, 5.5)
    quantize.quantize(folder, tmp_path / "free", Options("int4", 128, True, "gptq", 4, 32, 3.4), text)
    quantize.quantize(folder, tmp_path / "a", options, text, consumer="vllm")
    config = json.loads((tmp_path / "a" / "config.json").read_text())["quantization_config"]
    recipe = packed.from_config(config, "a")
    names = [n.removesuffix(".weight") for n in artifact.state_dict(tmp_path / "a") if "proj" in n]
    assert {recipe.of(n).bits for n in names} == {4, 8}
    assert all(len({recipe.of(n).bits for n in group}) == 1 for group in consumers.fused(names))
    export.export(tmp_path / "a", tmp_path / "ct", "compressed-tensors", consumer="vllm")
    with pytest.raises(FewbitError, match="its kernels do not run int"):
        export.export(tmp_path / "free", tmp_path / "b", "compressed-tensors", consumer="vllm")
    with pytest.raises(FewbitError, match="give --symmetric with --bits-per-weight"):
        quantize.quantize(folder, tmp_path / "c", Options("int4", 128, False, "gptq", 4, 32, 5.5), text, consumer="vllm")


def test_what_vllm_runs_as_one_and_differs_is_refused(tmp_path):
    layers = {f"model.layers.0.self_attn.{n}_proj": packed.Layer("int8" if n == "v" else "int4", 128, True) for n in "qkv"}
    with pytest.raises(FewbitError, match="v_proj as one, which are int4, int4, int8"):
        consumers._one_width(layers)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("budget")
    tiny_llm.save(folder / "llama")
    tiny_llm.save(folder / "untied", "qwen2")
    tiny_llm.save(folder / "gemma3", "gemma3")
    tiny_llm.text(folder / "text.txt")
    return folder


def test_a_mixed_artifact_keeps_its_budget_and_says_which_layer_has_what(home, tmp_path):
    quantize.quantize(home / "llama", tmp_path / "a", Options("int4", 16, False, "auto", 8, 32, 5.0), home / "text.txt")
    config = json.loads((tmp_path / "a" / "config.json").read_text())["quantization_config"]
    recipe = packed.from_config(config, "a")
    state = artifact.state_dict(tmp_path / "a")  # reads every layer at its own width
    count = {n.removesuffix(".weight"): t.numel() for n, t in state.items() if "proj" in n}
    stored = sum(overhead(recipe.of(n).bits) * c for n, c in count.items()) / sum(count.values())
    assert 4.5 < stored <= 5.0
    assert len({recipe.of(n).bits for n in count}) > 1


def test_an_untied_head_is_packed_and_a_tied_one_refused(home, tmp_path):
    options = Options("int4", 16, False, "rtn", head="int8")
    quantize.quantize(home / "untied", tmp_path / "a", options)
    recipe = packed.from_config(json.loads((tmp_path / "a" / "config.json").read_text())["quantization_config"], "a")
    assert recipe.of("lm_head").bits == 8 and recipe.skipped == ()
    wanted = transformers.AutoModelForCausalLM.from_pretrained(home / "untied").lm_head.weight
    assert (artifact.state_dict(tmp_path / "a")["lm_head.weight"] - wanted).abs().max() < 0.02 * wanted.abs().max()
    with pytest.raises(FewbitError, match="tied"):
        quantize.quantize(home / "llama", tmp_path / "b", options)


def test_an_embedding_is_packed_with_its_tied_head_and_a_scaling_one_refused(home, tmp_path):
    """What runs on packed bytes is transformers' own model of the same numbers as floats."""
    options = Options("int4", 16, False, "rtn", embedding="int8")
    quantize.quantize(home / "llama", tmp_path / "a", options)
    model, _ = fewbit.llm.load(tmp_path / "a", activations="float")
    ids = torch.arange(24)[None]
    with torch.no_grad():
        got, want = model(ids).logits, perplexity.load(tmp_path / "a")(ids).logits
        plain = perplexity.load(home / "llama")(ids).logits
    assert torch.allclose(got, want, atol=1e-4 * float(want.abs().max())) and not torch.allclose(plain, want, atol=1e-3)
    assert artifact.size(tmp_path / "a") < 0.5 * artifact.size(home / "llama")
    with pytest.raises(FewbitError, match="more than look up"):
        quantize.quantize(home / "gemma3", tmp_path / "b", options)


def test_rounded_numbers_lie_on_255_levels_a_token():
    x = torch.randn(3, 5, 64) * torch.exp(3 * torch.randn(3, 5, 1))
    y = simulate.rounded(x)
    scale = x.abs().amax(-1, keepdim=True) / 127
    assert float(((y - x).abs() / scale).max()) < 0.57  # half a step, and 127 steps of what float16 does to the scale
    assert all(len(row.unique()) <= 255 for row in y.reshape(-1, 64))
    assert torch.equal(simulate.rounded(torch.zeros(2, 4)), torch.zeros(2, 4))


def test_8_bit_activations_are_really_rounded(home):
    arguments = ["llm", "perplexity", home / "llama", "--text", home / "text.txt", "--against", home / "llama", "--json"]
    arguments += ["--window", 64, "--windows", 4]
    losses = []
    for options in ((), ("--activations", "int8")):
        done = CliRunner().invoke(app, [str(a) for a in (*arguments, *options)])
        losses.append(json.loads(done.stdout)["kl"])
    assert abs(losses[0]) < 1e-6 < losses[1] < 0.05


def test_smoothing_lowers_what_8_bit_activations_cost(tmp_path):
    """With a few channels much larger than the rest, as in trained models."""
    folder = tiny_llm.save(tmp_path / "m")
    weights = tiny_llm.text(tmp_path / "t.txt")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for layer in model.model.layers:
            for norm in (layer.input_layernorm, layer.post_attention_layernorm):
                norm.weight[:3] *= 30
            for linear in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj, layer.mlp.up_proj):
                linear.weight[:, :3] /= 30
            layer.mlp.gate_proj.weight[:, :3] /= 30
    model.save_pretrained(folder)
    found = {}
    for method in ("rtn", "smooth"):
        quantize.quantize(folder, tmp_path / method, Options("int8", 64, False, method, 8, 32), weights)
        quantized, against = perplexity.load(tmp_path / method), perplexity.load(folder)
        simulate.activations(quantized)
        ids = calibration.windows(calibration.tokens(folder, weights), 64, 64, 0.0, 8, "t")
        found[method] = perplexity.perplexity(quantized, ids, against)["kl"]
    assert found["smooth"] < 0.3 * found["rtn"]
