"""GGUF files in llama.cpp itself: the logits of transformers, its tokens, and less lost than by its own quantizer."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
gguf = pytest.importorskip("gguf")
pytest.importorskip("xllamacpp")

import llama_cpp  # noqa: E402
import tiny_llm  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

from fewbit.cli.main import app, main  # noqa: E402
from fewbit.errors import FewbitError  # noqa: E402
from fewbit.llm import artifact, calibration, export, imatrix, methods, perplexity, quantize  # noqa: E402
from fewbit.llm.options import Options  # noqa: E402
from fewbit.numerics import ggml  # noqa: E402
from fewbit.solvers import grouped  # noqa: E402
from fewbit.solvers.grids import GgmlGrid  # noqa: E402

SMALL = Options(samples=8, length=32)
IDS = np.random.default_rng(0).integers(0, 256, 250)
LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}  # fmt: skip
WIDE = {"hidden_size": 512, "intermediate_size": 512, "num_hidden_layers": 1, "head_dim": 128}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("gguf")
    tiny_llm.save(folder / "llama")
    tiny_llm.text(folder / "text.txt", 8000)
    return folder


def ours(folder: Path, ids: np.ndarray = IDS) -> np.ndarray:
    """Logits by transformers, of a checkpoint or of an artifact's numbers."""
    with torch.no_grad():
        return perplexity.load(folder)(input_ids=torch.tensor(ids[None])).logits[0].numpy()


def theirs(path: Path, ids: np.ndarray = IDS) -> np.ndarray:
    model = llama_cpp.Model(path, 256)
    found = model.logits(ids)
    model.close()
    return found


def loss(logits: np.ndarray) -> float:
    """Nats a token of IDS."""
    return float(torch.nn.functional.cross_entropy(torch.from_numpy(logits[:-1]).double(), torch.from_numpy(IDS[1:])))


def off(a: np.ndarray, b: np.ndarray) -> float:
    """RMS, relative to the spread of the logits."""
    return float((a - b).std() / a.std())


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_a_float_file_is_the_model(tmp_path, family):
    folder = tiny_llm.save(tmp_path / family, family, shards=True, **({"sliding_window": None} if family == "mistral" else {}))
    export.export(folder, tmp_path / "a.gguf", "gguf", "f32")
    assert off(ours(folder), theirs(tmp_path / "a.gguf")) < 3e-3  # llama.cpp keeps keys and values in float16


def test_llama_3_slows_its_rotations(tmp_path):
    folder = tiny_llm.save(tmp_path / "m", rope_parameters=LLAMA3)
    export.export(folder, tmp_path / "a.gguf", "gguf", "f32")
    assert off(ours(folder), theirs(tmp_path / "a.gguf")) < 3e-3
    plain = tiny_llm.save(tmp_path / "plain")
    assert off(ours(folder), ours(plain)) > 0.05


@pytest.mark.parametrize("kind", ggml.TYPES)
def test_llama_cpp_gives_the_logits_and_the_perplexity_of_our_numbers(tmp_path, kind):
    """And gguf's own reader sees them. llama.cpp rounds activations to 8 bits beside."""
    folder = tiny_llm.save(tmp_path / "m", calm=5, **(WIDE if kind.endswith("k") else {}))
    solved = export.find("gguf").options(folder, kind, Options(method="rtn"))
    quantize.quantize(folder, tmp_path / "folder", solved)
    export.export(tmp_path / "folder", tmp_path / "a.gguf", "gguf")
    wanted = artifact.state_dict(tmp_path / "folder")["model.layers.0.mlp.down_proj.weight"].numpy()
    found = next(t for t in gguf.GGUFReader(tmp_path / "a.gguf").tensors if t.name == "blk.0.ffn_down.weight")
    assert np.array_equal(gguf.quants.dequantize(found.data, found.tensor_type), wanted)
    logits = ours(tmp_path / "folder"), theirs(tmp_path / "a.gguf")
    assert off(*logits) < 0.04
    assert abs(np.expm1(loss(logits[1]) - loss(logits[0]))) < 0.005


def test_a_float_checkpoint_is_solved_on_the_way(home, tmp_path):
    """From the command line; the file is that of the two steps, and nothing else is left behind."""
    arguments = ["llm", "export", home / "llama", "--to", "gguf", "--type", "q4_0", "-o", tmp_path / "a.gguf", "--samples", 32]
    arguments += ["--length", 64, "--calibration", home / "text.txt", "--json"]
    found = json.loads(CliRunner().invoke(app, list(map(str, arguments))).stdout)
    assert found["type"] == "q4_0" and found["bytes"] == (tmp_path / "a.gguf").stat().st_size
    assert [p.name for p in tmp_path.iterdir()] == ["a.gguf"]
    for method in ("auto", "rtn"):
        options = Options("q4_0", method=method, samples=32, length=64, embedding="q8_0")
        quantize.quantize(home / "llama", tmp_path / method, options, home / "text.txt")
    export.export(tmp_path / "auto", tmp_path / "b.gguf", "gguf")
    a, b = (gguf.GGUFReader(tmp_path / f"{n}.gguf").tensors for n in "ab")
    assert len(a) == 29 and all(np.array_equal(x.data, y.data) for x, y in zip(a, b, strict=True))
    ids = calibration.tokens(home / "llama", home / "text.txt")[-100:].numpy()
    wanted = ours(home / "llama", ids)
    assert off(wanted, theirs(tmp_path / "a.gguf", ids)) < 0.7 * off(wanted, ours(tmp_path / "rtn", ids))


@pytest.mark.parametrize(("weights", "symmetric", "kind"), [
    ("int4", True, "q4_0"), ("int3", True, "q4_0"), ("int4", False, "q4_1"), ("int2", False, "q4_1"), ("int8", True, "q8_0"),
])  # fmt: skip
def test_our_own_format_becomes_the_type_that_holds_its_numbers(home, tmp_path, weights, symmetric, kind):
    quantize.quantize(home / "llama", tmp_path / "folder", Options(weights, 64, symmetric, "rtn"))
    assert export.export(tmp_path / "folder", tmp_path / "a.gguf", "gguf")["type"] == kind
    wanted = artifact.state_dict(tmp_path / "folder")
    for tensor in gguf.GGUFReader(tmp_path / "a.gguf").tensors:
        if tensor.name == "blk.1.attn_v.weight":
            found, w = (
                gguf.quants.dequantize(tensor.data, tensor.tensor_type),
                wanted["model.layers.1.self_attn.v_proj.weight"].numpy(),
            )
            if symmetric:
                assert np.array_equal(found, w)
            assert np.allclose(found, w, atol=2e-3 * np.abs(w).max())  # a minimum is rounded to float16


def test_an_embedding_that_no_type_holds_is_float_there(home, tmp_path):
    quantize.quantize(home / "llama", tmp_path / "folder", Options("int4", 32, method="rtn", embedding="int8"))
    export.export(tmp_path / "folder", tmp_path / "a.gguf", "gguf")
    found = next(t for t in gguf.GGUFReader(tmp_path / "a.gguf").tensors if t.name == "token_embd.weight")
    wanted = artifact.state_dict(tmp_path / "folder")["model.embed_tokens.weight"].numpy()
    assert found.data.dtype == np.float16 and np.allclose(found.data, wanted, rtol=1e-3, atol=1e-6)
    assert off(ours(tmp_path / "folder"), theirs(tmp_path / "a.gguf")) < 0.04


def test_our_own_kernels_say_where_such_weights_run(home, tmp_path):
    from fewbit.llm import load

    quantize.quantize(home / "llama", tmp_path / "folder", Options("q4_0", method="rtn"))
    with pytest.raises(FewbitError, match="q4_0 runs in llama.cpp; write the file for it: fewbit llm export"):
        load(tmp_path / "folder")


@pytest.mark.parametrize("kind", ggml.TYPES)
def test_our_solver_loses_less_than_llama_cpps_under_the_same_inputs(kind):
    """Matrix by matrix: its own quantizer, without importance and under the same second moments."""
    kind = ggml.TYPES[kind]
    random = np.random.default_rng(0)
    mix = random.standard_normal((512, 512)) / 512**0.5 + np.eye(512)
    x = random.standard_normal((1500, 512)) @ mix * np.exp(0.5 * random.standard_normal(512))
    gram, weight = x.T @ x / len(x), (0.05 * random.standard_t(6, (64, 512))).astype(np.float32)
    importance = np.diag(gram)

    def lost(dequantized: np.ndarray) -> float:
        d = dequantized - weight.astype(np.float64)
        return float(((d @ gram) * d).sum())

    own = []
    for given in (None, importance):
        data = llama_cpp.quantize(weight, kind.number, kind.row_bytes(512), given)
        own.append(lost(ggml.unpack(data, 512, kind).dequantized()))
    moments = methods.Moments(gram, {})
    solution = methods.solve({"a": weight}, {"a": GgmlGrid(kind)}, moments, methods.METHODS["auto"])["a"]
    packed = ggml.pack(GgmlGrid(kind).parts(solution))
    found = ggml.unpack(packed, 512, kind).dequantized()
    assert np.allclose(found, solution.dequantized(), atol=1e-6)
    assert lost(found) < 0.75 * min(own)
    assert lost(found) < 0.75 * lost(grouped.clipped(weight, importance, GgmlGrid(kind)).dequantized())


@pytest.mark.parametrize("scale", [1e-7, 1e-4, 1.0, 1e4])
@pytest.mark.parametrize("kind", ggml.TYPES)
def test_weights_of_any_size_are_packed_as_they_were_solved(kind, scale):
    grid = GgmlGrid(ggml.TYPES[kind])
    weight = (scale * np.random.default_rng(0).standard_normal((8, 512))).astype(np.float32)
    weight[2], weight[3, :64] = 0, 0
    for solution in (grouped.nearest(weight, grid), grouped.clipped(weight, np.ones(512), grid)):
        found = ggml.unpack(ggml.pack(grid.parts(solution)), 512, grid.type).dequantized()
        assert np.allclose(found, solution.dequantized(), rtol=1e-5, atol=1e-6 * scale)
        assert np.abs(found - weight).max() < max(0.4 * scale, 1e-3)


def test_its_tokenizer_gives_the_same_tokens(tmp_path):
    """Each way of splitting that has a name: llama.cpp's tokens of a text are the tokenizers package's."""
    from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers, trainers
    from tokenizers import models as kinds

    from fewbit.llm import gguf_vocab

    folder = tiny_llm.save(tmp_path / "m", vocab_size=400)
    text = "It's 12345 o'clock,  isn't it?\n\n\n  Weights of 4 bits\tcost  less: naïve café 日本語 x = y+1;\r\n" * 3
    level = pre_tokenizers.ByteLevel
    ways = {
        "gpt-2": level(add_prefix_space=False),
        "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), level(add_prefix_space=False)]),
    }
    for name, pattern in (("llama-bpe", gguf_vocab.WORDS % "{1,3}"), ("qwen2", gguf_vocab.WORDS % "")):
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
        ways[name] = pre_tokenizers.Sequence([split, level(add_prefix_space=False, use_regex=False)])
    for name, way in ways.items():
        tokenizer = Tokenizer(kinds.BPE())
        tokenizer.pre_tokenizer, tokenizer.decoder = way, decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=380, special_tokens=["<|end|>"], initial_alphabet=level.alphabet(), show_progress=False
        )
        tokenizer.train_from_iterator([text], trainer)
        transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>").save_pretrained(folder)
        out = tmp_path / f"{name}.gguf"
        export.export(folder, out, "gguf", "f16")
        fields = gguf.GGUFReader(out).fields
        assert fields["tokenizer.ggml.pre"].contents() == name
        assert fields["tokenizer.ggml.eos_token_id"].contents() == tokenizer.token_to_id("<|end|>")
        model = llama_cpp.Model(out)
        assert model.tokenize(text) == tokenizer.encode(text, add_special_tokens=False).ids
        model.close()


@pytest.mark.parametrize("power", [18, -26, -40])
def test_numbers_that_float16_does_not_hold_stay_float32(tmp_path, power):
    """Rows of up times a factor, columns of down divided by it: the same function, beyond float16 to either side."""
    folder = tiny_llm.save(tmp_path / "m")
    held = load_file(folder / "model.safetensors")
    held["model.layers.0.mlp.up_proj.weight"] *= 2.0**power
    held["model.layers.0.mlp.down_proj.weight"] /= 2.0**power
    save_file({n: t.to(torch.bfloat16) for n, t in held.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    export.export(folder, tmp_path / "a.gguf", "gguf", "f16")
    types = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "a.gguf").tensors}
    assert types["blk.1.ffn_up.weight"] == types["blk.1.ffn_down.weight"] == "F16"
    assert "F32" in (types["blk.0.ffn_up.weight"], types["blk.0.ffn_down.weight"])
    assert off(ours(folder), theirs(tmp_path / "a.gguf")) < 1e-2


def test_weights_too_small_for_a_types_scales_are_refused(tmp_path):
    folder = tiny_llm.save(tmp_path / "m")
    held = load_file(folder / "model.safetensors")
    held["model.layers.1.mlp.down_proj.weight"][5] = 1e-20  # a dead row is none of the kind
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
    export.export(folder, tmp_path / "dead.gguf", "gguf", "q8_0", Options(method="rtn"))
    held["model.layers.1.mlp.down_proj.weight"] *= 2.0**-40
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(FewbitError, match=r"model.layers.1.mlp.down_proj: its largest weight is .* float16 holds"):
        export.export(folder, tmp_path / "a.gguf", "gguf", "q8_0", Options(method="rtn"))


def test_an_embedding_beyond_float16_stays_float32(tmp_path):
    folder = tiny_llm.save(tmp_path / "m")
    held = load_file(folder / "model.safetensors")
    held["model.embed_tokens.weight"] *= 1e6  # the norms take it back, but for the residual stream
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
    quantize.quantize(folder, tmp_path / "a", Options("int4", 32, method="rtn", embedding="int8"))
    export.export(tmp_path / "a", tmp_path / "a.gguf", "gguf")
    found = {t.name: t.data for t in gguf.GGUFReader(tmp_path / "a.gguf").tensors}["token_embd.weight"]
    assert found.dtype == np.float32
    assert np.array_equal(found, artifact.state_dict(tmp_path / "a")["model.embed_tokens.weight"].numpy())


def test_a_head_of_its_own_is_written_though_the_config_says_tied(tmp_path):
    folder = tiny_llm.save(tmp_path / "m", tie_word_embeddings=True)
    held = load_file(folder / "model.safetensors")
    table = held["model.embed_tokens.weight"]
    for name, head in (("same", table.clone()), ("own", table + 0.3 * torch.randn_like(table))):
        save_file(held | {"lm_head.weight": head}, folder / "model.safetensors", metadata={"format": "pt"})
        export.export(folder, tmp_path / f"{name}.gguf", "gguf", "f32")
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        with torch.no_grad():
            wanted = model(torch.tensor(IDS[None])).logits[0].numpy()
        assert off(wanted, theirs(tmp_path / f"{name}.gguf")) < 3e-3
        names = {t.name for t in gguf.GGUFReader(tmp_path / f"{name}.gguf").tensors}
        assert ("output.weight" in names) == (name == "own")


def test_layers_behind_the_models_own_are_left_out(home, tmp_path):
    folder = tiny_llm.save(tmp_path / "m")
    held = load_file(folder / "model.safetensors")
    more = {n.replace("layers.2.", "layers.3."): t.clone() for n, t in held.items() if "layers.2." in n}
    save_file(held | more | {"model.layers.3.eh_proj.weight": torch.zeros(64, 128)}, folder / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    export.export(folder, tmp_path / "a.gguf", "gguf", "f32")
    assert off(ours(home / "llama"), theirs(tmp_path / "a.gguf")) < 3e-3


@pytest.mark.parametrize(
    ("family", "shape"),
    [
        ("mistral", {}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}),
    ],
)
def test_a_sliding_window_is_refused_with_what_is_the_same_model_inside_it(tmp_path, family, shape):
    folder = tiny_llm.save(tmp_path / "m", family, **shape)
    with pytest.raises(FewbitError, match="reaches back 16 tokens") as caught:
        export.export(folder, tmp_path / "a.gguf", "gguf", "f32")
    assert "sliding_window null and max_position_embeddings 16" in str(caught.value)
    wanted = ours(folder, IDS[:16])
    config = json.loads((folder / "config.json").read_text())
    config |= {"sliding_window": None, "max_position_embeddings": 16, "use_sliding_window": False, "layer_types": None}
    (folder / "config.json").write_text(json.dumps(config))
    export.export(folder, tmp_path / "a.gguf", "gguf", "f32")
    assert off(wanted, theirs(tmp_path / "a.gguf", IDS[:16])) < 3e-3


def with_tokenizer(folder: Path, change, **shape) -> Path:
    """A tiny model whose tokenizer.json went through change(its content)."""
    tiny_llm.save(folder, **shape)
    held = json.loads((folder / "tokenizer.json").read_text())
    change(held)
    (folder / "tokenizer.json").write_text(json.dumps(held))
    return folder


def around(before: bool, behind: bool):
    """Texts begin with token 1 and end with token 2, by a template in tokenizer.json alone, as Llama 3's do."""
    from tokenizers import Tokenizer, processors

    single = f"{'<b> ' if before else ''}$A{' <e>' if behind else ''}"

    def change(held):
        tokenizer = Tokenizer.from_str(json.dumps(held))
        tokenizer.add_special_tokens(["<b>", "<e>"])
        ids = {t: tokenizer.token_to_id(t) for t in ("<b>", "<e>")}
        tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=list(ids.items()))
        held |= json.loads(tokenizer.to_str())

    return change


@pytest.mark.parametrize(("before", "behind"), [(False, False), (True, False), (False, True), (True, True)])
def test_texts_begin_and_end_as_the_tokenizers_do(tmp_path, before, behind):
    folder = with_tokenizer(tmp_path / "m", around(before, behind), vocab_size=258)
    settings = json.loads((folder / "tokenizer_config.json").read_text()) | {"bos_token": "<b>", "eos_token": "<e>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    export.export(folder, tmp_path / "a.gguf", "gguf", "f16")
    wanted = transformers.AutoTokenizer.from_pretrained(folder)("few bits")["input_ids"]
    model = llama_cpp.Model(tmp_path / "a.gguf")
    found = model.tokenize("few bits", special=True)
    model.close()
    assert found == wanted and len(wanted) == 8 + before + behind


MASK = {"id": 255, "content": "<m>", "lstrip": True, "rstrip": False, "normalized": False, "single_word": False, "special": True}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda held: held.update(normalizer={"type": "Lowercase"}), "changes texts (Lowercase)"),
        (lambda held: held["added_tokens"].append(MASK), "<m> has lstrip"),
        (lambda held: held["model"]["vocab"].update({"few": 256}), "has the token 256, the model 256 embeddings"),
    ],
)
def test_a_tokenizer_that_llama_cpp_would_not_follow_is_refused(tmp_path, change, said):
    with pytest.raises(FewbitError) as caught:
        export.export(with_tokenizer(tmp_path / "m", change), tmp_path / "a.gguf", "gguf", "f16")
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_all_chat_templates_come_along(home, tmp_path):
    folder = tiny_llm.save(tmp_path / "m")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = {"default": "{{ messages }}", "tool_use": "tools {{ messages }}"}
    tokenizer.save_pretrained(folder)
    export.export(folder, tmp_path / "a.gguf", "gguf", "f16")
    fields = gguf.GGUFReader(tmp_path / "a.gguf").fields
    assert fields["tokenizer.chat_template"].contents() == "{{ messages }}"
    assert fields["tokenizer.chat_templates"].contents() == ["tool_use"]
    assert fields["tokenizer.chat_template.tool_use"].contents() == "tools {{ messages }}"
    quantize.quantize(folder, tmp_path / "a", Options("int8", 32, method="rtn"))
    export.export(folder, tmp_path / "ct", "compressed-tensors", "fp8")
    for out in ("a", "ct"):
        assert transformers.AutoTokenizer.from_pretrained(tmp_path / out).chat_template == tokenizer.chat_template


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("family", "GGUF files are written of llama"),
        ("type", "choose f32, f16, q4_0"),
        ("columns", "does not divide the 64 of model.layers.0"),
        ("calibration", "--calibration"),
        ("group", "no type of llama.cpp holds int4 in groups of 16"),
        ("other", "give --type q4_1, or the float checkpoint"),
        ("rope", "rotary embeddings are 'yarn'"),
        ("tokenizer", "none whose name in llama.cpp is known"),
        ("exists", "exists"),
    ],
)
def test_what_cannot_be_written_is_refused_in_one_line(home, tmp_path, what, said):
    folder, kind, text = home / "llama", "q4_0", home / "text.txt"
    if what == "family":
        folder = tiny_llm.save(tmp_path / "m", "gemma2")
    elif what == "rope":
        folder = tiny_llm.save(tmp_path / "m", rope_parameters={"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4})
    elif what == "tokenizer":
        folder = tiny_llm.save(tmp_path / "m")
        held = json.loads((folder / "tokenizer.json").read_text())
        held["pre_tokenizer"] = {"type": "Whitespace"}
        (folder / "tokenizer.json").write_text(json.dumps(held))
    elif what in ("group", "other"):
        folder, kind = tmp_path / "folder", "" if what == "group" else "q4_0"
        quantize.quantize(home / "llama", folder, Options("int4", 16 if what == "group" else 32, method="rtn"))
    elif what == "exists":
        (tmp_path / "a.gguf").write_text("")
    kind = {"type": "q4_2", "columns": "q4_k"}.get(what, kind)
    with pytest.raises(FewbitError) as caught:
        export.export(folder, tmp_path / "a.gguf", "gguf", kind, SMALL, None if what == "calibration" else text)
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert what == "exists" or not [p for p in tmp_path.iterdir() if "a.gguf" in p.name]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("export no --to gguf --type q4_0 -o a.gguf", "no: no such folder; give what `fewbit llm quantize` wrote"),
        ("export llama --to gguf -o a.gguf", "--type is not given: of a float checkpoint choose f32, f16, q4_0"),
        ("export llama --to awq -o a", "--type is not given: of a float checkpoint choose int4"),
        ("export llama --to gguf --type q4_0 --calibration text.txt --samples 0 -o a.gguf", "--samples 0 --length 512: give at"),
        ("export llama --to gguf --type f16 --imatrix text.txt -o a.gguf", "--imatrix text.txt: nothing is rounded under it"),
        ("imatrix llama --calibration text.txt -o text.txt", "text.txt: exists; remove it or choose another name"),
        ("imatrix llama --calibration text.txt -o no/a", "no/a: the folder no does not exist"),
        ("imatrix llama --calibration text.txt --length 1 -o a", "--samples 64 --length 1: give at least one sample"),
    ],
)
def test_a_command_that_cannot_be_done_says_why_before_any_work(home, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(home)
    before = sorted(p.name for p in home.iterdir())
    monkeypatch.setattr("sys.argv", ["fewbit", "llm", *arguments.split()])
    with pytest.raises(SystemExit) as stopped:
        main()
    shown = capsys.readouterr().err
    assert stopped.value.code == 2 and said in shown and len(shown.splitlines()) == 1
    assert sorted(p.name for p in home.iterdir()) == before


def test_an_importance_matrix_is_measured_written_and_read(home, tmp_path):
    """The mean squares of transformers' own hidden states; gguf's reader and ours see the same; the older form too."""
    out = tmp_path / "a.imatrix"
    arguments = ["llm", "imatrix", home / "llama", "-o", out, "--calibration", home / "text.txt", "--samples", 4, "--length", 32]
    found = json.loads(CliRunner().invoke(app, [*map(str, arguments), "--json"]).stdout)
    assert found["tokens"] == 128 and found["weights"] == 21
    ids = calibration.samples(calibration.tokens(home / "llama", home / "text.txt"), 4, 32, "")
    model, seen = perplexity.load(home / "llama"), []
    model.model.layers[1].mlp.down_proj.register_forward_pre_hook(lambda m, x: seen.append(x[0]))
    with torch.no_grad():
        model(input_ids=ids)
    wanted = (seen[0] ** 2).mean((0, 1)).numpy()
    squares = imatrix.read(out).squares
    assert np.allclose(squares["blk.1.ffn_down.weight"], wanted, rtol=1e-3)
    tensors = {t.name: t.data for t in gguf.GGUFReader(out).tensors}
    assert np.allclose(tensors["blk.1.ffn_down.weight.in_sum2"] / tensors["blk.1.ffn_down.weight.counts"], wanted, rtol=1e-3)
    plain = struct.pack("<i", len(squares))
    for name, mean in squares.items():
        plain += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", 2, len(mean)) + (2 * mean).tobytes()
    (tmp_path / "b.dat").write_bytes(plain)
    again = imatrix.read(tmp_path / "b.dat").squares
    assert again.keys() == squares.keys() and all(np.array_equal(again[n], squares[n]) for n in squares)
    (tmp_path / "b.dat").write_bytes(plain[:-3])
    with pytest.raises(FewbitError, match="truncated"):
        imatrix.read(tmp_path / "b.dat")
    lost = {}
    for name, importance in (("plain", None), ("weighted", out)):
        options = Options("q4_1", method="rtn")
        quantize.quantize(home / "llama", tmp_path / name, options, importance=importance)
        weight = model.state_dict()["model.layers.1.mlp.down_proj.weight"].numpy()
        found = artifact.state_dict(tmp_path / name)["model.layers.1.mlp.down_proj.weight"].numpy()
        lost[name] = float(((found - weight) ** 2 @ wanted).sum())
    assert lost["weighted"] < 0.9 * lost["plain"]
