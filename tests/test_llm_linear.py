"""Packed layers give the NumPy reference's bits on every instruction set; a model generates what its float weights would."""

import copy
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")
from safetensors.numpy import load_file, save_file  # noqa: E402

import fewbit.llm  # noqa: E402
from fewbit import FewbitError, _native  # noqa: E402
from fewbit.llm import packed, reference  # noqa: E402
from fewbit.llm.linear import QuantEmbedding, QuantLinear, make_panels  # noqa: E402
from fewbit.llm.loading import load  # noqa: E402
from fewbit.llm.packed import Layer, PackedWeight, Recipe  # noqa: E402

SETS = _native.available()
ROWS = (1, 3, 8, 21)


def random_weight(seed: int, out: int, groups: int, bits: int, group_size: int, symmetric: bool, extreme: bool) -> PackedWeight:
    rng, top = np.random.default_rng(seed), (1 << bits) - 1
    shape = (out, groups * group_size)
    codes = rng.choice([0, top], shape) if extreme else rng.integers(0, top + 1, shape)
    zero = None if symmetric else rng.integers(0, top + 1, (out, groups))
    scale = packed.stored_scale(rng.uniform(1e-3, 1, (out, groups)))
    return packed.pack(codes, scale, zero, bits, group_size)


def activations(seed: int, rows: int, width: int, extreme: bool) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if extreme:
        return rng.choice([-1.0, 1.0], (rows, width)).astype(np.float32)
    return (rng.normal(size=(rows, width)) * 10.0 ** rng.integers(-4, 4, (rows, 1))).astype(np.float32)


@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize("bits", [8, 4, 3, 2])
@pytest.mark.parametrize("group_size", [8, 16, 32, 64, 128])
def test_the_reference_bit_for_bit(bits, group_size, instruction_set):
    for k, (out, groups) in enumerate([(5, 1), (16, 3), (33, 2), (64, 5)]):
        for symmetric in (True, False):
            weight = random_weight(k, out, groups, bits, group_size, symmetric, extreme=k == 2)
            bias = None if k == 0 else np.random.default_rng(k).normal(size=out).astype(np.float32)
            x = activations(k, max(ROWS), weight.shape[1], extreme=k == 2)
            wanted = reference.linear(x, weight, bias)
            for threads in (1, 3):
                layer = QuantLinear.of(weight, bias, threads=threads, instruction_set=instruction_set)
                assert layer.instruction_set == instruction_set
                for rows in ROWS:
                    found = layer(torch.from_numpy(x[:rows])).numpy()
                    assert np.array_equal(found, wanted[:rows]), (out, groups, symmetric, rows)


@pytest.mark.parametrize("instruction_set", SETS)
def test_several_threads_give_the_reference_too(instruction_set):
    """A weight of more than the 4 MB below which one thread does it all."""
    weight = random_weight(6, 1041, 128, 4, 64, False, False)
    x = activations(6, 3, weight.shape[1], False)
    wanted = reference.linear(x, weight, None)
    layer = QuantLinear.of(weight, None, threads=3, instruction_set=instruction_set)
    for rows in (1, 3):
        assert np.array_equal(layer(torch.from_numpy(x[:rows])).numpy(), wanted[:rows])


@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_float_activations_are_the_dequantized_weight(bits, instruction_set):
    weight = random_weight(1, 37, 3, bits, 32, False, False)
    bias, x = np.arange(37, dtype=np.float32), activations(2, 40, 96, False)
    wanted = x.astype(np.float64) @ packed.dequantize(weight).T.astype(np.float64) + bias
    layer = QuantLinear.of(weight, bias, activations="float", instruction_set=instruction_set)
    for rows in (1, 9, 40):
        found = layer(torch.from_numpy(x[:rows])).numpy()
        scale = np.abs(x[:rows]).astype(np.float64) @ np.abs(packed.dequantize(weight)).T
        assert np.all(np.abs(found - wanted[:rows]) <= 1e-6 * (scale + np.abs(bias)))


@pytest.mark.parametrize("instruction_set", SETS)
def test_activations_that_are_no_numbers_stay_none_and_tiny_ones_are_zero(instruction_set):
    weight = random_weight(3, 20, 4, 4, 32, False, False)
    x = activations(4, 5, 128, False)
    x[1, 40], x[2, 100], x[3, :32], x[4] = np.nan, -np.inf, 1e-30, 0
    layer = QuantLinear.of(weight, instruction_set=instruction_set)
    found, wanted = layer(torch.from_numpy(x)).numpy(), reference.linear(x, weight)
    assert np.array_equal(found, wanted, equal_nan=True) and np.isnan(found[1:3]).all()
    assert np.isfinite(found[[0, 3]]).all() and not found[4].any()


def test_one_layer_of_each_dtype_shape_and_copy():
    layer = QuantLinear.of(random_weight(5, 24, 2, 4, 64, False, False))
    x = torch.randn(2, 3, 128, generator=torch.Generator().manual_seed(0))
    y = layer(x)
    assert y.shape == (2, 3, 24) and torch.equal(layer(x[1, 2]), y[1, 2])
    short = x.to(torch.bfloat16)
    assert layer(short).dtype == torch.bfloat16 and torch.equal(layer(short), layer(short.float()).to(torch.bfloat16))
    assert torch.equal(layer(x.transpose(0, 1)), y.transpose(0, 1)) and not layer(x.clone().requires_grad_()).requires_grad
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), layer.to(torch.float64)):
        assert torch.equal(other(x), y)
    with pytest.raises(FewbitError, match=r"a layer of 128 columns was given \[2, 3, 64\]"):
        layer(x[..., :64].contiguous())
    with pytest.raises(FewbitError, match="takes float tensors on the CPU, not torch.int64"):
        layer(torch.zeros(128, dtype=torch.int64))
    with pytest.raises(FewbitError, match="run on the CPU, not on meta"):
        copy.deepcopy(layer).to("meta")
    with pytest.raises(FewbitError, match="activations 'int4' are unknown; choose int8 or float"):
        QuantLinear.of(random_weight(5, 24, 2, 4, 64, False, False), activations="int4")


def test_a_forked_process_has_threads_of_its_own():
    code = (
        "import os, torch; from test_llm_linear import QuantLinear, random_weight\n"
        "torch.set_num_threads(1)\n"
        "layer, x = QuantLinear.of(random_weight(0, 512, 4, 4, 64, True, False), threads=3), torch.ones(100, 256)\n"
        "wanted, child = layer(x), os.fork()\n"
        "if child == 0: os._exit(0 if torch.equal(layer(x), wanted) else 1)\n"
        "print(os.waitpid(child, 0)[1])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parent, timeout=60)
    assert done.stdout.strip() == "0", done.stderr


def test_groups_that_the_kernels_cannot_read_are_refused():
    with pytest.raises(FewbitError, match="head: a weight .* in groups of 12 cannot be run; groups must .* be multiples of 8"):
        make_panels(random_weight(0, 4, 2, 4, 12, False, False), None, "head")


def test_an_embedding_is_rows_of_the_weight():
    weight = random_weight(6, 50, 2, 8, 32, True, False)
    layer, ids = QuantEmbedding(*make_panels(weight, None)), torch.tensor([[3, 49, 0], [3, 16, 15]])
    assert np.array_equal(layer(ids).numpy(), packed.dequantize(weight)[ids.numpy()])
    with pytest.raises(FewbitError, match="row 50 of 50; a token lies outside the vocabulary"):
        layer(torch.tensor([50]))


WORDS = [f"w{k}" for k in range(60)]
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}


def nearest(w: np.ndarray, layer: Layer) -> PackedWeight:
    """Round to nearest, asymmetric or not."""
    x, top = w.reshape(len(w), -1, layer.group_size), (1 << layer.bits) - 1
    low, high = np.minimum(x.min(2), 0), np.maximum(x.max(2), 0)
    if layer.symmetric:
        low = -(high := np.maximum(high, -low))
    scale = packed.stored_scale((high - low) / top)
    zero = np.full(scale.shape, 1 << (layer.bits - 1)) if layer.symmetric else np.clip(np.rint(-low / scale), 0, top)
    codes = np.clip(np.rint(x / scale[:, :, None]) + zero[:, :, None], 0, top).reshape(w.shape).astype(int)
    return packed.pack(codes, scale, None if layer.symmetric else zero.astype(int), layer.bits, layer.group_size)


def write(folder, embedding: bool, tied: bool = True, shard: bool = False):
    """A tiny random Llama, quantized; (float model with the dequantized weights, the tensors)."""
    torch.manual_seed(0)
    sizes = SIZES | {"vocab_size": 64, "tie_word_embeddings": tied, "attention_bias": True, "initializer_range": 0.2}
    config = transformers.LlamaConfig(**sizes, bos_token_id=1, eos_token_id=2, pad_token_id=2)
    model = transformers.LlamaForCausalLM(config).eval()
    others = {"model.embed_tokens": Layer("int8", 64, True), "lm_head": Layer("int3", 32, True)}
    recipe = Recipe(Layer("int4", 32, False), "rtn", others)
    held = {}
    for name, module in model.named_modules():
        wanted = isinstance(module, torch.nn.Linear) and (name != "lm_head" or not tied)
        if wanted or (embedding and isinstance(module, torch.nn.Embedding)):
            weight = nearest(module.weight.detach().numpy(), recipe.of(name))
            held |= packed.tensors(name, weight)
            module.weight.data = torch.from_numpy(packed.dequantize(weight))
    for name, p in model.named_parameters():
        if f"{name.removesuffix('.weight')}.codes" not in held:
            held[name] = p.detach().numpy()
    model.tie_weights()
    save(folder, held, shard)
    whole = json.loads(config.to_json_string()) | {"architectures": ["LlamaForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(whole | {"quantization_config": packed.to_config(recipe)}))
    words = tokenizers.models.WordLevel({w: k for k, w in enumerate(["<unk>", "<s>", "</s>", "."] + WORDS)}, "<unk>")
    tokenizer = tokenizers.Tokenizer(words)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>").save_pretrained(folder)
    return model, held


def save(folder, held: dict[str, np.ndarray], shard: bool = False) -> None:
    if not shard:
        return save_file(held, folder / "model.safetensors")
    names, index = sorted(held), {}
    for k, part in enumerate((names[::2], names[1::2])):
        file = f"model-{k}.safetensors"
        save_file({n: held[n] for n in part}, folder / file)
        index |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


@pytest.mark.parametrize(
    "embedding, tied, shard", [(False, True, False), (True, True, True), (False, False, False), (True, False, True)]
)
def test_a_model_generates_what_its_float_weights_would(tmp_path, embedding, tied, shard):
    wanted, _ = write(tmp_path, embedding, tied, shard)
    model, tokenizer = load(tmp_path, activations="float")
    inputs = tokenizer("w1 w7 w30 w2", return_tensors="pt")
    ids = inputs["input_ids"]
    assert ids.tolist() == [[5, 11, 34, 6]]
    assert torch.allclose(model(ids).logits, wanted(ids).logits, atol=1e-5)
    options = {"max_new_tokens": 24, "do_sample": False}
    found = model.generate(ids, **options)
    assert torch.equal(found, wanted.generate(ids, **options)) and len(set(found[0].tolist())) > 8
    packed_layers = [m for m in model.modules() if isinstance(m, QuantLinear)]
    assert len(packed_layers) == 14 + (embedding or not tied)
    assert model.get_memory_footprint() < 0.4 * wanted.get_memory_footprint()


def test_int8_activations_stay_near_and_do_not_depend_on_threads_or_instruction_set(tmp_path):
    wanted, _ = write(tmp_path, embedding=True)
    ids = torch.arange(4, 60)[None]
    exact = wanted(ids).logits
    found = [fewbit.llm.load(tmp_path, threads=t, instruction_set=s)[0](ids).logits for s in SETS for t in (1, 2)]
    assert all(torch.equal(f, found[0]) for f in found[1:])
    assert (found[0] - exact).norm() < 0.03 * exact.norm()


def drop(name):
    return lambda held: {k: v for k, v in held.items() if k != name}


def change(name, f):
    return lambda held: held | {name: np.ascontiguousarray(f(held[name]))}


LAYER = "model.layers.1.mlp.down_proj"


@pytest.mark.parametrize(
    "damage, message",
    [
        (drop(f"{LAYER}.scale"), f"tensor {LAYER}.scale is missing; quantize again"),
        (drop(f"{LAYER}.codes"), rf"tensor {LAYER}.weight is missing \(1 in all\)"),
        (drop("model.layers.0.self_attn.q_proj.bias"), r"q_proj.bias is missing, or not of 64 numbers"),
        (drop("model.embed_tokens.weight"), "tensor model.embed_tokens.weight is missing"),
        (change("model.norm.weight", lambda a: a[:5]), r"model.norm.weight is \[5\], \[64\] in the model of config.json"),
        (change(f"{LAYER}.codes", lambda a: a[:, :40]), r"down_proj.codes is \[64, 40\]; int4 in groups of .* need \[64, 48\]"),
        (change(f"{LAYER}.scale", lambda a: a * np.float16("nan")), r"down_proj.scale: element \(0, 0\) is nan"),
        (
            lambda held: held | {f"{LAYER}.{k}": held[f"{LAYER}.{k}"][:48].copy() for k in ("codes", "scale", "zero_point")},
            r"down_proj is \[48, 96\], \[64, 96\] in the model",
        ),
        (lambda held: held | {"model.what.codes": np.zeros((1, 1), np.uint8)}, "model.what.codes belongs to no Linear"),
    ],
)
def test_damaged_tensors_are_one_line(tmp_path, damage, message):
    _, held = write(tmp_path, embedding=False)
    save(tmp_path, damage(held))
    with pytest.raises(FewbitError, match=message) as found:
        load(tmp_path)
    assert "\n" not in str(found.value)


def edit(key, value):
    def f(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {key: value}))

    return f


def cut(folder):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-100])


def lose_a_shard(folder):
    save(folder, load_file(folder / "model.safetensors"), shard=True)
    (folder / "model-1.safetensors").unlink()


@pytest.mark.parametrize(
    "damage, message",
    [
        (
            lambda f: (f / "model.safetensors").unlink(),
            "no safetensors file; give the folder of a checkpoint, or what `fewbit llm quantize` wrote",
        ),
        (lambda f: (f / "config.json").unlink(), "config.json: no such file"),
        (lambda f: (f / "tokenizer.json").unlink(), "its tokenizer cannot be loaded"),
        (lose_a_shard, "has model.safetensors and an index of other files"),
        (cut, "its header declares .* bytes of weights"),
        (edit("quantization_config", {"quant_method": "fewbit", "version": 9}), "version 9 of the format"),
        (edit("model_type", "no such"), "transformers makes no model of it"),
        (edit("hidden_size", 128), "in the model of config.json"),
    ],
)
def test_damaged_folders_are_one_line(tmp_path, damage, message):
    write(tmp_path, embedding=False)
    damage(tmp_path)
    with pytest.raises(FewbitError, match=message) as found:
        load(tmp_path)
    assert "\n" not in str(found.value)


def test_the_command_streams_its_text_and_measures(tmp_path, capsys):
    from fewbit.cli.llm_generate import generate

    options = {"max_tokens": 6, "threads": None, "temperature": 0.0, "seed": 0, "activations": "float", "raw": True}
    wanted, _ = write(tmp_path, embedding=True)
    assert generate(tmp_path, "w1 w7", **options, json=True) == 0
    record = json.loads(capsys.readouterr().out)
    ids = wanted.generate(torch.tensor([[5, 11]]), max_new_tokens=6, do_sample=False)[0, 2:]
    tokens = [f"w{k - 4}" if k > 3 else ["<unk>", "<s>", "</s>", "."][k] for k in ids.tolist()]
    assert record["text"].split() == [t for t in tokens if t != "</s>"] and record["tokens"] == len(tokens)
    assert record["prompt_tokens"] == 2 and record["tokens_per_second"] > 0 and record["model_bytes"] < 60_000
    assert generate(tmp_path, "w1 w7", **options, json=False) == 0
    assert capsys.readouterr().out.split() == record["text"].split()
    texts = []
    for seed in (1, 1, 2):
        generate(tmp_path, "w1", **options | {"temperature": 5.0, "seed": seed}, json=True)
        texts.append(json.loads(capsys.readouterr().out)["text"])
    assert texts[0] == texts[1] != texts[2]
    for bad in ({"max_tokens": 0}, {"threads": 0}, {"temperature": -1.0}):
        with pytest.raises(FewbitError, match=f"--{next(iter(bad)).replace('_', '-')} -?[01]"):
            generate(tmp_path, "w1", **options | bad, json=True)
