"""A checkpoint beside its model: what lacks, lies twice, is named otherwise or is no Linear is seen before any work."""

import json
import re
import shutil
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import tiny_llm  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from fewbit.errors import FewbitError  # noqa: E402
from fewbit.llm import artifact, blocks, contents, export, loading, perplexity, quantize  # noqa: E402
from fewbit.llm.options import Options  # noqa: E402

RTN = Options("int8", 32, method="rtn")
IDS = torch.arange(40)[None]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("contents")
    tiny_llm.save(folder / "untied", tie_word_embeddings=False)
    tiny_llm.save(folder / "sharded", shards=True)
    return folder


def save(folder: Path, config) -> Path:
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    tiny_llm._tokenizer().save_pretrained(folder)
    return folder


def changed(source: Path, folder: Path, change) -> Path:
    """A copy of a checkpoint of one file whose tensors went through change(tensors)."""
    shutil.copytree(source, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def refusals(folder: Path, out: Path) -> list[str]:
    """What each way out of a checkpoint says of it; nothing is written."""
    ways = [
        lambda: quantize.quantize(folder, out, RTN),
        lambda: export.export(folder, out, "compressed-tensors", "fp8"),
        lambda: export.export(folder, out, "compressed-tensors", "int4", Options(group_size=32, method="rtn")),
        lambda: export.export(folder, out, "gguf", "f32"),
        lambda: export.export(folder, out, "gptq", "int4", Options(group_size=32, method="rtn")),
    ]
    said = []
    for way in ways:
        with pytest.raises(FewbitError) as caught:
            way()
        said.append(str(caught.value))
        assert "\n" not in said[-1] and not out.exists() and not list(out.parent.glob(".*.part"))
    return said


@pytest.mark.parametrize(
    "lost",
    ["model.layers.2.", "model.layers.1.mlp.up_proj.weight", "lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"],
)
def test_a_checkpoint_that_lacks_a_tensor_is_refused_whatever_is_made_of_it(home, tmp_path, lost):
    def change(tensors):
        for name in [n for n in tensors if n.startswith(lost)]:
            del tensors[name]

    folder = changed(home / "untied", tmp_path / "m", change)
    assert all(
        f"tensor {lost}" in said and "is not in its safetensors files" in said for said in refusals(folder, tmp_path / "o")
    )


def test_an_artifact_that_lacks_a_layer_is_not_exported(home, tmp_path):
    quantize.quantize(home / "untied", tmp_path / "a", Options("int4", 32, True, "rtn"))
    path = sorted((tmp_path / "a").glob("model-*.safetensors"))[2]
    tensors = load_file(path)
    kept = {n: t for n, t in tensors.items() if "q_proj" not in n}
    assert len(tensors) - len(kept) == 2
    save_file(kept, path, metadata={"format": "pt"})
    for to, name in (("compressed-tensors", "ct"), ("gguf", "a.gguf"), ("gptq", "gptq")):
        with pytest.raises(FewbitError, match=r"tensor model.layers.1.self_attn.q_proj.weight"):
            export.export(tmp_path / "a", tmp_path / name, to)


def test_a_tensor_in_two_files_is_refused(home, tmp_path):
    shutil.copytree(home / "sharded", tmp_path / "m")
    first, second = sorted((tmp_path / "m").glob("model-*.safetensors"))[:2]
    name = next(iter(load_file(first)))
    save_file(load_file(second) | {name: load_file(first)[name]}, second, metadata={"format": "pt"})
    assert all(f"{name} lies in {first.name} too" in said for said in refusals(tmp_path / "m", tmp_path / "o"))


def test_one_file_beside_an_index_of_others_is_refused(home, tmp_path):
    shutil.copytree(home / "sharded", tmp_path / "m")
    shutil.copy(sorted((tmp_path / "m").glob("model-*.safetensors"))[0], tmp_path / "m" / "model.safetensors")
    assert all("an index of other files" in said for said in refusals(tmp_path / "m", tmp_path / "o"))


def neox(folder: Path) -> Path:
    """Pythia's family: the head is saved as embed_out, which transformers loads as lm_head."""
    config = transformers.GPTNeoXConfig(
        vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, tie_word_embeddings=False,
    )  # fmt: skip
    save(folder, config)
    assert "embed_out.weight" in load_file(folder / "model.safetensors")
    return folder


def test_a_tensor_that_transformers_renames_is_read(tmp_path):
    folder = neox(tmp_path / "m")
    with torch.no_grad():
        wanted = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(IDS).logits
        assert torch.equal(perplexity.load(folder)(IDS).logits, wanted)
        quantize.quantize(folder, tmp_path / "a", RTN)
        found = loading.load(tmp_path / "a", activations="float")[0](IDS).logits
    assert float((found - wanted).std() / wanted.std()) < 0.02
    export.export(tmp_path / "a", tmp_path / "ct", "compressed-tensors")
    assert "lm_head.weight" in artifact.state_dict(tmp_path / "a")
    quantize.quantize(folder, tmp_path / "b", Options("int8", 32, method="rtn", head="int8"))
    assert "lm_head.codes" in json.loads((tmp_path / "b" / artifact.INDEX).read_text())["weight_map"]


def test_a_renamed_head_runs_in_transformers_after_its_export(tmp_path):
    pytest.importorskip("compressed_tensors")
    folder = neox(tmp_path / "m")
    quantize.quantize(folder, tmp_path / "a", Options("int8", 32, True, method="rtn"))
    export.export(tmp_path / "a", tmp_path / "ct", "compressed-tensors")
    export.export(folder, tmp_path / "fp8", "compressed-tensors", "fp8")
    with torch.no_grad():
        wanted = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(IDS).logits
        for out, most in (("ct", 0.02), ("fp8", 0.25)):
            found = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / out, dtype=torch.float32)(IDS).logits
            assert float((found - wanted).std() / wanted.std()) < most


def test_weights_that_lie_the_other_way_round_are_refused(tmp_path):
    folder = save(tmp_path / "m", transformers.GPT2Config(vocab_size=256, n_embd=64, n_layer=2, n_head=4, n_positions=64))
    said = refusals(folder, tmp_path / "o")
    assert all("h.0.attn.c_attn is a Conv1D" in s for s in said[:3] + said[4:]) and "model_type 'gpt2'" in said[3]


SHAPE = {"vocab_size": 256, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.mark.parametrize(
    "config",
    [
        transformers.MixtralConfig(**SHAPE, intermediate_size=64, num_local_experts=4),
        transformers.Qwen2MoeConfig(
            **SHAPE, intermediate_size=64, num_experts=4, moe_intermediate_size=32, shared_expert_intermediate_size=32
        ),
        transformers.GptOssConfig(**SHAPE, intermediate_size=64, head_dim=16, num_local_experts=4),
    ],
    ids=["mixtral", "qwen2_moe", "gpt_oss"],
)
def test_experts_are_refused_as_what_they_are(tmp_path, config):
    said = refusals(save(tmp_path / "m", config), tmp_path / "o")
    assert all("mixtures of experts are not supported" in s for s in said[:3] + said[4:])


def test_layers_behind_the_models_own_stay_float_and_are_named_so(home, tmp_path):
    pytest.importorskip("compressed_tensors")

    def change(tensors):
        more = {n.replace("layers.2.", "layers.3."): t.clone() for n, t in tensors.items() if "layers.2." in n}
        tensors |= more | {"model.layers.3.eh_proj.weight": torch.zeros(64, 128)}

    folder = changed(home / "untied", tmp_path / "m", change)
    quantize.quantize(folder, tmp_path / "sym", Options("int4", 32, True, "rtn"))
    quantize.quantize(folder, tmp_path / "a", Options("int4", 32, method="rtn"))
    export.export(tmp_path / "sym", tmp_path / "ct", "compressed-tensors")
    export.export(folder, tmp_path / "fp8", "compressed-tensors", "fp8")
    export.export(tmp_path / "sym", tmp_path / "gptq", "gptq")
    export.export(tmp_path / "a", tmp_path / "awq", "awq")
    for out, key in (("ct", "ignore"), ("fp8", "ignore"), ("gptq", "modules_to_not_convert"), ("awq", "modules_to_not_convert")):
        said = json.loads((tmp_path / out / "config.json").read_text())["quantization_config"]
        held = {n: t for p in (tmp_path / out).glob("*.safetensors") for n, t in load_file(p).items()}
        beyond = [n.removesuffix(".weight") for n, t in held.items() if ".layers.3." in n and t.ndim == 2]
        assert len(beyond) == 8 and set(beyond) <= set(said[key])
        assert not [n for n in said[key] if f"{n}.weight" not in held]
        assert all(held[f"{n}.weight"].dtype == torch.float32 for n in beyond)
    assert re.search(next(iter(said_dynamic(tmp_path / "gptq")))[2:], "model.layers.3.eh_proj")
    for out in ("ct", "fp8"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / out, dtype=torch.float32)


def said_dynamic(folder: Path) -> list[str]:
    """GPTQModel's way to leave layers out, which vLLM reads too: patterns after a minus."""
    return sorted(json.loads((folder / "config.json").read_text())["quantization_config"]["dynamic"])


def test_names_are_those_that_transformers_loads_by(home):
    model = blocks.build(home / "untied")
    held = list(load_file(home / "untied" / "model.safetensors"))
    assert contents.names(model, held) == {n: n for n in held} and not contents.missing(model, held)
    bare = [n.removeprefix("model.") for n in held]  # as a base model is saved
    assert contents.names(model, bare) == {n: n.removeprefix("model.") for n in held}
