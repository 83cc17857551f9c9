"""The planner against published checkpoints and arithmetic by hand; bad input is one line; a measured machine is finite."""

import json
import math
import struct

import numpy as np
import pytest
from conftest import ROOT

from fewbit import machine, plan
from fewbit.cli import plan as cli
from fewbit.devices import DEVICES, Device
from fewbit.errors import FewbitError


def llama_like(kind, hidden, layers, heads, kv_heads, intermediate, vocab, **more):
    sizes = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads}
    return {"model_type": kind, "intermediate_size": intermediate, "vocab_size": vocab} | sizes | more


GPT2 = {
    "model_type": "gpt2",
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "n_positions": 1024,
    "vocab_size": 50257,
    "n_inner": None,
}
GPT2_MASKS = 12 * 1024 * 1024 * 4  # its file keeps the causal mask of every layer beside the weights
LLAMA_3_8B = llama_like("llama", 4096, 32, 32, 8, 14336, 128256)
# Bytes: metadata.total_size of the repository's model.safetensors.index.json, or the size of its model.safetensors (*).
PUBLISHED = {
    "meta-llama/Meta-Llama-3-8B": (LLAMA_3_8B, "float16", 16_060_522_496),
    "meta-llama/Llama-2-7b-hf": (llama_like("llama", 4096, 32, 32, 32, 11008, 32000), "float16", 13_476_835_328),
    "mistralai/Mistral-7B-v0.1": (llama_like("mistral", 4096, 32, 32, 8, 14336, 32000), "float16", 14_483_464_192),
    "Qwen/Qwen2.5-7B": (llama_like("qwen2", 3584, 28, 28, 4, 18944, 152064), "float16", 15_231_233_024),
    "Qwen/Qwen2.5-0.5B *": (
        llama_like("qwen2", 896, 24, 14, 2, 4864, 151936, tie_word_embeddings=True),
        "float16",
        988_097_824,
    ),
    "Qwen/Qwen3-8B": (llama_like("qwen3", 4096, 36, 32, 8, 12288, 151936, head_dim=128), "float16", 16_381_470_720),
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0 *": (llama_like("llama", 2048, 22, 32, 4, 5632, 32000), "float16", 2_200_119_864),
    "openai-community/gpt2 *": (GPT2, "float32", 548_105_171 - GPT2_MASKS),
}


def folder(path, config):
    (path / "config.json").write_text(json.dumps(config))
    return path


def safetensors(path, tensors, kind="F16", width=2):
    header, start = {}, 0
    for name, shape in tensors.items():
        end = start + math.prod(shape) * width
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(start))
    return path


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_checkpoints(name, tmp_path):
    config, fmt, published = PUBLISHED[name]
    model = plan.load(str(folder(tmp_path, config)))
    assert plan.size(model, fmt, plan.Job()).weights == pytest.approx(published, rel=1e-4)


def test_a_bare_count():
    model, job = plan.load("7B"), plan.Job()
    weights = {fmt: plan.size(model, fmt, job).weights / 1e9 for fmt in plan.BITS}
    assert weights == {"float32": 28, "float16": 14, "int8": 7, "int4": 3.5, "int3": 2.625, "int2": 1.75}
    assert [plan.load(t).params for t in ("1.5B", "350M", "124e6", "70k")] == [1_500_000_000, 350_000_000, 124_000_000, 70_000]
    assert plan.load("70k").shape is None


def test_scales_and_zero_points():
    model = plan.Model("m", 1000 * 256, ((1000, 256),), 0, None, "")
    assert plan.size(model, "int8", plan.Job()).scales == 1000 * 4
    assert plan.size(model, "int4", plan.Job(group_size=128)).scales == 1000 * 2 * (2 + 0.5)
    assert plan.size(model, "int4", plan.Job(group_size=100)).scales == 1000 * 3 * (2 + 0.5)  # the last group is shorter
    assert plan.size(model, "float16", plan.Job()).scales == 0


def test_the_kv_cache_of_llama_3(tmp_path):
    model = plan.load(str(folder(tmp_path, LLAMA_3_8B)))
    assert plan.size(model, "int4", plan.Job(context=1000, batch=3)).kv == 2 * 32 * 8 * 128 * 2 * 1000 * 3
    assert plan.size(model, "int4", plan.Job(context=1000, kv="int8")).kv == 2 * 32 * 8 * (128 + 2) * 1000


def test_roofline_by_hand():
    device = Device("d", 16e9, 100e9, "by hand", {"float16": 10e12, "int8": 20e12})
    model, job = plan.load("7B"), plan.Job(context=1000, batch=4)
    kv = 2 * 32 * 8 * 128 * 2 * 1000 * 4
    bound = plan.roofline(model, "float16", device, job)
    assert bound.memory == pytest.approx(4 * 100e9 / (14e9 + kv))
    assert bound.compute == pytest.approx(10e12 / 14e9)
    assert bound.bound == bound.memory and bound.limit == "memory" and bound.fits
    assert not plan.roofline(model, "float32", device, job).fits
    assert plan.roofline(model, "int8", device, job).compute == pytest.approx(20e12 / 14e9)
    assert plan.roofline(model, "int4", device, job).arithmetic == "float16"  # int4 is unpacked to compute


def test_memory_bound_alone_and_compute_bound_in_a_large_batch():
    model = plan.load("7B")
    for name in ("H100", "A100", "RTX 4090", "Raspberry Pi 5", "laptop"):
        alone = plan.roofline(model, "float16", DEVICES[name], plan.Job(context=128))
        many = plan.roofline(model, "float16", DEVICES[name], plan.Job(context=128, batch=512))
        assert (alone.limit, many.limit) == ("memory", "compute"), name
        assert many.bound > alone.bound


def test_an_untied_embedding_is_looked_up_and_not_read(tmp_path):
    model = plan.load(str(folder(tmp_path, LLAMA_3_8B)))
    assert model.lookup == 128256 * 4096
    bound = plan.roofline(model, "float16", DEVICES["H100"], plan.Job(context=1))
    assert bound.memory == pytest.approx(3.35e12 / (2 * (model.params - model.lookup) + 2 * 32 * 8 * 128 * 2))


def test_a_policy_and_its_artifact(tmp_path):
    import fewbit

    source = str(ROOT / "demo" / "halfcheetah.zip")
    model = plan.load(source)
    assert model.matrices == ((256, 17), (256, 256), (6, 256)) and model.multiplied == 256 * 17 + 256 * 256 + 6 * 256
    bound = plan.roofline(model, "int8", DEVICES["STM32H7"], plan.Job())
    assert bound.in_cache and bound.limit == "compute" and bound.compute == 1.92e9 / (2 * model.multiplied)
    observations = np.random.default_rng(0).standard_normal((64, 17)).astype(np.float32)
    fewbit.quantize(source, observations=observations).save(tmp_path / "a.onnx")
    assert plan.load(str(tmp_path / "a.onnx")).matrices == model.matrices


def test_safetensors_headers_count_weights_and_nothing_else(tmp_path):
    config = llama_like("llama", 8, 1, 2, 2, 16, 32, tie_word_embeddings=True)
    folder(tmp_path, config)
    tensors = {"model.embed_tokens.weight": (32, 8), "lm_head.weight": (32, 8), "model.norm.weight": (8,)}
    tensors |= {"model.layers.0.mlp.up_proj.weight": (16, 8), "model.layers.0.self_attn.rotary_emb.inv_freq": (4,)}
    safetensors(tmp_path / "model.safetensors", tensors)
    safetensors(tmp_path / "copy.safetensors", {"again": (100, 100)})  # a second copy beside the checkpoint
    model = plan.load(str(tmp_path))
    assert model.params == 32 * 8 + 8 + 16 * 8 and model.vectors == 8 and model.lookup == 0
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    safetensors(tmp_path / "model-1.safetensors", {"a": (100, 10)})
    safetensors(tmp_path / "model-2.safetensors", {"b": (10, 10)})
    refused(lambda: plan.load(str(tmp_path)), "has model.safetensors and an index of other files")
    (tmp_path / "model.safetensors").unlink()
    assert plan.load(str(tmp_path)).params == 1100


def refused(call, says):
    with pytest.raises(FewbitError) as e:
        call()
    assert says in str(e.value) and len(str(e.value).splitlines()) == 1


@pytest.mark.parametrize("text", ["7X", "-7B", "0", "1e400", "none/such", "x" * 5000])
def test_no_parameter_count(text):
    refused(lambda: plan.load(text), "neither a parameter count")


def test_bad_files_and_options(tmp_path):
    refused(lambda: plan.load("none.zip"), "no such file")
    refused(lambda: plan.load(str(tmp_path)), "config.json: no such file")
    (tmp_path / "config.json").write_text('{"model_type": "ll')
    refused(lambda: plan.load(str(tmp_path)), "not a JSON object, or truncated")
    for change, says in [
        ({"model_type": "mixtral"}, "model_type 'mixtral' is not known; known are gpt2, llama"),
        ({"model_type": None}, "model_type 'None'"),
        ({"hidden_size": "4096"}, "hidden_size is 4096; it must be"),
        ({"num_hidden_layers": None}, "num_hidden_layers is None"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
        ({"num_attention_heads": 8192}, "head_dim is 0"),
    ]:
        folder(tmp_path, LLAMA_3_8B | change)
        refused(lambda: plan.load(str(tmp_path)), says)
    refused(lambda: plan.Job(batch=0), "--batch 0")
    refused(lambda: plan.Job(group_size=-1), "--group-size -1")
    refused(lambda: plan.Job(kv="int4"), "choose one of float16, int8")


def test_a_damaged_safetensors_file_is_one_line_however_it_is_damaged(tmp_path):
    folder(tmp_path, llama_like("llama", 8, 1, 2, 2, 16, 32, tie_word_embeddings=True))
    path = safetensors(tmp_path / "model.safetensors", {"model.embed_tokens.weight": (32, 8), "up.weight": (16, 8)})
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for cut in range(0, len(whole), 7):
        path.write_bytes(whole[:cut])
        refused(lambda: plan.load(str(tmp_path)), "model.safetensors: ")
    for _ in range(500):
        data = bytearray(whole)
        data[int(rng.integers(200))] ^= int(rng.integers(1, 256))
        path.write_bytes(bytes(data))
        try:
            plan.load(str(tmp_path))
        except FewbitError as e:
            assert len(str(e).splitlines()) == 1
    safetensors(path, {"model.layers.0.qweight": (4, 4)}, "I32", 4)
    refused(lambda: plan.load(str(tmp_path)), "already quantized (model.layers.0.qweight is I32)")
    path.write_bytes(struct.pack("<Q", 10**18) + b"{}")
    refused(lambda: plan.load(str(tmp_path)), "no room for its header")


def test_devices():
    for name, d in DEVICES.items():
        assert d.name == name and d.source and d.memory > 0 and d.bandwidth > 0 and {"float32", "int8"} <= set(d.ops)
    assert cli.find("rtx4090") is DEVICES["RTX 4090"] and cli.find("jetson-orin-nano") is DEVICES["Jetson Orin Nano"]
    own = cli.find("bandwidth=100,memory=16GB,ops=5")
    assert (own.bandwidth, own.memory, own.ops["int8"]) == (100e9, 16e9, 5e12)
    own = cli.find("memory=512KB, bandwidth=1.5TB/s, ops=500GFLOPS")
    assert (own.bandwidth, own.memory, own.ops["float32"]) == (1.5e12, 512e3, 500e9)
    assert cli.find("bandwidth=1,memory=1").ops == {}
    for text, says in [
        ("TPU", "not known; choose one of H100"),
        ("bandwidth=1", "bandwidth and memory are both needed"),
        ("bandwidth=fast,memory=1", "bandwidth=fast is not understood"),
        ("bandwidth=0,memory=1", "bandwidth=0 is not understood"),
        ("bandwidth=1,memory=1,cores=4", "cores=4 is not understood"),
        ("bandwidth=1,memory=1,", "empty is not understood"),
    ]:
        refused(lambda text=text: cli.find(text), says)


def test_the_command_line(capsys):
    assert cli.plan("7B", json=True) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["formats"]["int4"]["weights"] == 3.5e9 and set(found["devices"]) == set(DEVICES)
    assert found["devices"]["H100"]["formats"]["int4"]["limit"] == "memory"
    assert cli.plan("7B", ["H100", "STM32F4", "bandwidth=1,memory=100"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "assumed to be those of Mistral-7B" in out and "STM32F4: no format fits" in out and "memory-bound" in out


def test_every_reason_is_a_sentence(tmp_path):
    for text, job in [("7B", plan.Job(batch=b, context=c)) for b in (1, 64, 4096) for c in (1, 4096)] + [("70k", plan.Job())]:
        model = plan.load(text)
        sizes = {fmt: plan.size(model, fmt, job) for fmt in plan.BITS}
        for device in [*DEVICES.values(), Device("bare", 1e12, 1e9, "")]:
            bounds = {fmt: plan.roofline(model, fmt, device, job) for fmt in plan.BITS}
            reason = cli.why(device, bounds, sizes, job.batch)
            assert reason and "nan" not in reason and "inf" not in reason and len(reason) < 200


def test_here_measures_finite_positive_numbers(capsys, monkeypatch):
    monkeypatch.setattr(machine.best, "__defaults__", (0.005,))
    monkeypatch.setattr(machine, "STREAM", 1 << 20)
    monkeypatch.setattr(machine.wall, "__defaults__", (1 << 20,))
    assert cli.plan("124M", ["here", "laptop"], json=True) == 0
    out = capsys.readouterr().out
    found = json.loads(out)
    here = found["devices"]["here"]
    numbers = [here["memory"], here["bandwidth"], *here["ops"].values(), here["formats"]["int8"]["bound"]]
    points = found["memory_wall"]["points"]
    numbers += [p[k] for p in points for k in ("predicted", "measured", "bytes")]
    assert all(math.isfinite(x) and x > 0 for x in numbers)
    assert {p["format"] for p in points} == {"float32", "int8"} and max(p["bytes"] for p in points) == 1 << 20
    assert "MatMulInteger" in found["memory_wall"]["kernels"]["int8"]
    assert cli.plan("124M", ["here"]) == 0 and "memory wall" in capsys.readouterr().out


def test_the_int8_product_is_the_product():
    x = np.ones((1, 64))
    np.testing.assert_array_equal(machine.product("int8", 64)()[0], x @ np.ones((64, 64)))
