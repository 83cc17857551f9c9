"""Layouts of other programs: llm-compressor's bytes, and the numbers that compressed-tensors and transformers read in them."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import tiny_llm  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

from fewbit.cli.main import app  # noqa: E402
from fewbit.errors import FewbitError  # noqa: E402
from fewbit.llm import artifact, export, quantize  # noqa: E402
from fewbit.llm.options import Options  # noqa: E402

GOLDEN = json.loads((Path(__file__).parent / "compressed_golden.json").read_text())  # benchmarks/compressed_peer.py
KINDS = {name: (name.removesuffix("-asymmetric"), Options(group_size=32, symmetric=name != "int4-asymmetric", method="rtn"))
         for name in GOLDEN}  # fmt: skip
IDS = torch.arange(64)[None]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("compressed")
    tiny_llm.fixed(folder / "fixed")
    tiny_llm.save(folder / "llama")
    tiny_llm.save(folder / "sharded", shards=True)
    return folder


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {n: t for p in folder.glob("*.safetensors") for n, t in load_file(p).items()}


@pytest.mark.parametrize("name", GOLDEN)
def test_a_rounded_checkpoint_has_llm_compressors_bytes(home, tmp_path, name):
    kind, given = KINDS[name]
    export.export(home / "fixed", tmp_path / "out", "compressed-tensors", kind, given)
    made, wanted = tensors(tmp_path / "out"), GOLDEN[name]["tensors"]
    assert sorted(made) == sorted(wanted)
    for n, t in made.items():
        digest = hashlib.sha256(t.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()[:16]
        assert [str(t.dtype), list(t.shape), digest] == wanted[n], n
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    group = config["config_groups"]["group_0"]
    assert group["format"] == GOLDEN[name]["format"] and config["ignore"] == ["lm_head"] + ["model.embed_tokens"]
    assert all(GOLDEN[name]["weights"][k] == v for k, v in group["weights"].items())


def logits(folder: Path, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    with torch.no_grad():
        return model(IDS).logits[0].float()


def of_artifact(folder: Path, source: Path) -> torch.Tensor:
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    model.load_state_dict(artifact.state_dict(folder), strict=False)
    with torch.no_grad():
        return model(IDS).logits[0]


@pytest.mark.parametrize(("weights", "symmetric"), [("int4", True), ("int8", True), ("int3", True)])
def test_transformers_computes_what_the_artifact_computes(home, tmp_path, weights, symmetric):
    pytest.importorskip("compressed_tensors")
    quantize.quantize(home / "sharded", tmp_path / "a", Options(weights, 32, symmetric, "rtn"))
    arguments = ["llm", "export", tmp_path / "a", "--to", "compressed-tensors", "-o", tmp_path / "out", "--json"]
    found = json.loads(CliRunner().invoke(app, list(map(str, arguments))).stdout)
    assert found["type"] == weights and found["bytes"] == artifact.size(tmp_path / "out")
    ours, theirs = of_artifact(tmp_path / "a", home / "sharded"), logits(tmp_path / "out")
    assert float((ours - theirs).std() / ours.std()) < 1e-3  # it computes the weights in the scales' float16
    assert not (tmp_path / ".out.part").exists()


@pytest.mark.parametrize("weights", ["int8", "int4", "int3", "int2"])
def test_compressed_tensors_unpacks_zero_points(home, tmp_path, weights):
    """Bit for bit. (transformers 5.24 with compressed-tensors 0.20 loads no zero points, llm-compressor's own neither.)"""
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationScheme

    quantize.quantize(home / "llama", tmp_path / "a", Options(weights, 32, method="rtn"))
    export.export(tmp_path / "a", tmp_path / "out", "compressed-tensors")
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    scheme = QuantizationScheme(**config["config_groups"]["group_0"])
    held, wanted = tensors(tmp_path / "out"), artifact.state_dict(tmp_path / "a")
    for name in [n.removesuffix(".weight_packed") for n in held if n.endswith(".weight_packed")]:
        own = {n.rpartition(".")[2]: t for n, t in held.items() if n.startswith(f"{name}.")}
        own["weight_scale"] = own["weight_scale"].float()
        found = PackedQuantizationCompressor.decompress(own, scheme)["weight"]
        assert torch.equal(found, wanted[f"{name}.weight"])


@pytest.mark.parametrize("kind", ["w8a8", "fp8", "fp8-block", "nvfp4", "mxfp4"])
def test_transformers_reads_what_was_rounded(home, tmp_path, kind):
    """Not bit for bit: activations are rounded there too."""
    pytest.importorskip("compressed_tensors")
    folder = (
        tiny_llm.save(tmp_path / "m", hidden_size=128, intermediate_size=128, head_dim=32)
        if kind == "fp8-block"
        else home / "llama"
    )
    export.export(folder, tmp_path / "out", "compressed-tensors", kind)
    wanted = logits(folder)
    found = logits(
        tmp_path / "out", torch.bfloat16 if kind.endswith("fp4") else torch.float32
    )  # what codes of 4 bits become there
    most = {"w8a8": 0.05, "fp8": 0.25, "fp8-block": 0.25}.get(kind, 0.7)
    assert 1e-4 < float((wanted - found).std() / wanted.std()) < most


def test_layers_of_different_widths_are_named(home, tmp_path):
    pytest.importorskip("compressed_tensors")
    text = tiny_llm.text(tmp_path / "t.txt", 8000)
    options = Options("int4", 32, True, "gptq", 8, 32, bits_per_weight=5.0, embedding="int8")
    quantize.quantize(home / "llama", tmp_path / "a", options, text)
    export.export(tmp_path / "a", tmp_path / "out", "compressed-tensors")
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert len({g["weights"]["num_bits"] for g in config["config_groups"].values()}) > 1
    ours, theirs = of_artifact(tmp_path / "a", home / "llama"), logits(tmp_path / "out")
    assert float((ours - theirs).std() / ours.std()) < 2e-3
    for to in ("gptq", "awq"):
        with pytest.raises(FewbitError, match="differ in width"):
            export.export(tmp_path / "a", tmp_path / to, to)


def test_awq_is_what_its_converter_reads(home, tmp_path):
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.entrypoints.convert.converters.autoawq import AutoAWQConverter

    quantize.quantize(home / "llama", tmp_path / "a", Options("int4", 32, method="rtn"))
    export.export(tmp_path / "a", tmp_path / "awq", "awq")
    export.export(tmp_path / "a", tmp_path / "ct", "compressed-tensors")
    config = json.loads((tmp_path / "awq" / "config.json").read_text())["quantization_config"]
    converted, wanted = AutoAWQConverter.from_autoawq_config(config).process(tensors(tmp_path / "awq")), tensors(tmp_path / "ct")
    assert converted.keys() == wanted.keys()
    assert all(torch.equal(converted[n], wanted[n]) for n in wanted)


@pytest.mark.parametrize(("weights", "symmetric"), [("int4", True), ("int4", False), ("int8", False), ("int2", True)])
def test_gptq_is_unpacked_as_its_kernels_do(home, tmp_path, weights, symmetric):
    """scale[g] * (q - zero[g]), words read by shifts; the older form's zero points are one too small."""
    quantize.quantize(home / "llama", tmp_path / "a", Options(weights, 32, symmetric, "rtn"))
    export.export(tmp_path / "a", tmp_path / "gptq", "gptq")
    config = json.loads((tmp_path / "gptq" / "config.json").read_text())["quantization_config"]
    bits = config["bits"]
    assert (bits, config["group_size"], config["sym"]) == (int(weights[3:]), 32, symmetric)
    held, wanted = tensors(tmp_path / "gptq"), artifact.state_dict(tmp_path / "a")
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    for name in [n.removesuffix(".qweight") for n in held if n.endswith(".qweight")]:
        words, zeros = (held[f"{name}.{leaf}"].numpy().view(np.uint32) for leaf in ("qweight", "qzeros"))
        q = (words[:, None, :] >> shifts[:, None] & (2**bits - 1)).reshape(-1, words.shape[1]).astype(np.float32)
        zero = (zeros[:, :, None] >> shifts & (2**bits - 1)).reshape(len(zeros), -1).astype(np.float32)
        zero += config["checkpoint_format"] == "gptq"
        group = held[f"{name}.g_idx"].numpy()
        found = (q - zero[group]) * held[f"{name}.scales"].float().numpy()[group]
        assert np.array_equal(found.T, wanted[f"{name}.weight"].numpy())


@pytest.mark.parametrize(
    ("to", "kind", "given", "said"),
    [
        ("compressed-tensors", "nvfp3", {}, "--type nvfp3: of a float checkpoint choose int8"),
        ("compressed-tensors", "int4", {"method": "rtn", "group_size": 48}, "does not divide the 128 columns of model.layers.0"),
        ("compressed-tensors", "int4", {}, "--calibration"),
        ("awq", "int4", {"symmetric": True}, "awq keeps zero points"),
        ("gptq", "int3", {}, "choose int8, int4, int2"),
        ("ggml", "int4", {}, "--to ggml is unknown"),
    ],
)
def test_what_cannot_be_written_is_refused_in_one_line(home, tmp_path, to, kind, given, said):
    with pytest.raises(FewbitError) as caught:
        export.export(home / "llama", tmp_path / "out", to, kind, Options(**given))
    assert said in str(caught.value) and "\n" not in str(caught.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("consumer", "to", "kind", "given", "shape", "said"),
    [
        (
            "vllm",
            "compressed-tensors",
            "int4",
            {"group_size": 64},
            {},
            "groups of 64 (model.layers.0.mlp.down_proj); give --group-size 128",
        ),
        ("vllm", "compressed-tensors", "int4", {"group_size": 128}, {}, ""),
        ("vllm", "gptq", "int2", {"group_size": 128}, {}, "int4 and int8 they do"),
        ("vllm", "compressed-tensors", "int8", {"group_size": 128}, {}, "give --symmetric"),
        ("vllm", "compressed-tensors", "int8", {"group_size": 128, "symmetric": True}, {}, ""),
        ("vllm", "compressed-tensors", "fp8-block", {}, {"intermediate_size": 192}, "is 128 x 192, which w8a8, fp8 would take"),
        ("vllm", "compressed-tensors", "nvfp4", {}, {"intermediate_size": 192}, "is 128 x 192, which w8a8, fp8 would take"),
        ("vllm", "gguf", "q4_0", {}, {}, "does not load gguf; give --to compressed-tensors or gptq or awq"),
        ("llama.cpp", "compressed-tensors", "int4", {"group_size": 128}, {}, "give --to gguf"),
        ("llama.cpp", "gguf", "q4_k", {}, {}, "does not divide the 128 of model.layers.0.mlp.down_proj; q4_0"),
        ("transformers", "compressed-tensors", "int4", {"group_size": 64}, {}, "quantize with --symmetric"),
        ("transformers", "compressed-tensors", "fp8", {}, {}, ""),
        ("ollama", "gguf", "q4_0", {}, {}, "choose one of vllm, llama.cpp, transformers"),
    ],
)
def test_what_a_consumer_does_not_run_is_refused_before_any_work(tmp_path, monkeypatch, consumer, to, kind, given, shape, said):
    """Before the blocks are even looked at."""
    folder = tiny_llm.save(
        tmp_path / "m", **{"hidden_size": 128, "intermediate_size": 128, "head_dim": 32, "num_key_value_heads": 4} | shape
    )
    worked: list[object] = []
    monkeypatch.setattr(quantize, "_prepare", lambda *a: worked.append(a) or (_ for _ in ()).throw(KeyboardInterrupt))
    options = Options(method="gptq", **given)
    if not said:
        if kind.startswith("int"):
            with pytest.raises(KeyboardInterrupt):
                export.export(folder, tmp_path / "out", to, kind, options, consumer=consumer)
        else:
            export.export(folder, tmp_path / "out", to, kind, options, consumer=consumer)
        return
    with pytest.raises(FewbitError) as caught:
        export.export(folder, tmp_path / "out", to, kind, options, consumer=consumer)
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert not worked and [p.name for p in tmp_path.iterdir()] == ["m"]


def test_an_export_says_what_runs_it_and_what_would_be_run(home, tmp_path):
    said: list[str] = []
    quantize.quantize(home / "llama", tmp_path / "a", Options("int4", 64, method="rtn"))  # as by default
    record = export.export(tmp_path / "a", tmp_path / "out", "compressed-tensors", say=said.append)
    assert record["runs_in"] == "" and len(said) == 1 and "\n" not in said[0]
    assert "give --group-size 128" in said[0] and "quantize with --symmetric" in said[0]
    quantize.quantize(home / "llama", tmp_path / "b", Options("int4", 64, True, method="rtn"))
    record = export.export(tmp_path / "b", tmp_path / "there", "compressed-tensors", say=said.append)
    assert record["runs_in"] == "transformers" and len(said) == 1
    assert logits(tmp_path / "there").shape[-1] == 256


def test_an_artifact_is_judged_by_what_it_holds(home, tmp_path):
    quantize.quantize(home / "llama", tmp_path / "a", Options("int4", 32, method="rtn"))
    with pytest.raises(FewbitError, match="groups of 32"):
        export.export(tmp_path / "a", tmp_path / "out", "compressed-tensors", consumer="vllm")
    with pytest.raises(FewbitError, match="zero points"):
        export.export(tmp_path / "a", tmp_path / "out", "compressed-tensors", consumer="transformers")
    with pytest.raises(FewbitError, match="groups of 64"):
        quantize.quantize(home / "llama", tmp_path / "b", Options("int4", 64, method="rtn"), consumer="vllm")
    export.export(tmp_path / "a", tmp_path / "a.gguf", "gguf", consumer="llama.cpp")
