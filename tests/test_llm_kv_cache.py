"""The int8 cache against transformers' own given rounded keys and values: windows that slide, beams, the command line."""

import json

import pytest
import tiny_llm
import torch
import transformers
from typer.testing import CliRunner

from fewbit.cli.main import app
from fewbit.llm import calibration, kv_cache, perplexity

FAMILIES = ("llama", "mistral", "gemma3")  # everywhere the whole past, a window everywhere, both in turns


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("cache")
    tiny_llm.text(home / "text.txt")
    for family in FAMILIES:
        tiny_llm.save(home / family, family)
    return home


class Rounding(transformers.DynamicCache):
    """Floats, each key and value rounded by the formula on its way in."""

    def update(self, keys, values, *args, **kwargs):
        return super().update(rounded(keys), rounded(values), *args, **kwargs)


def rounded(x):
    scale = (x.abs().amax(-1, keepdim=True) / 127).half().float()
    scale[scale == 0] = 1
    return torch.clamp(torch.round(x / scale), -127, 127) * scale


def test_packing_costs_half_a_step_at_most():
    x = torch.randn(2, 3, 5, 64) * torch.exp(3 * torch.randn(2, 3, 5, 1))
    x[0, 0, 0] = 0
    packed = kv_cache.pack(x)
    assert packed.dtype == torch.int8 and packed.shape == (2, 3, 5, 66)
    assert torch.equal(kv_cache.unpack(packed, torch.float32), rounded(x))
    scale = x.abs().amax(-1, keepdim=True) / 127
    assert bool(((rounded(x) - x).abs() <= 0.57 * scale).all())  # half a step, and 127 times what float16 does to it


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("beams", [1, 3])
def test_generation_is_that_of_rounded_keys_and_values(home, family, beams):
    model = perplexity.load(home / family)
    ids = calibration.tokens(home / family, home / "text.txt")[None, :24]
    how = {"max_new_tokens": 12, "num_beams": beams, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    given = kv_cache.arguments(model)
    ours = model.generate(ids, **given, **how)
    name = next(k for k in given if k != "use_cache")
    theirs = model.generate(ids, **{name: Rounding(config=model.config), "use_cache": True}, **how)
    assert torch.equal(ours.sequences, theirs.sequences)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(ours.logits, theirs.logits, strict=True))
    for layer, other in zip(given[name].layers, ours.past_key_values.layers, strict=True):
        assert layer is other and layer.keys.dtype == layer.values.dtype == torch.int8


def test_the_command_line(home):
    arguments = ["llm", "perplexity", home / "llama", "--text", home / "text.txt", "--against", home / "llama", "--json"]
    done = CliRunner().invoke(app, [str(a) for a in (*arguments, "--window", 64, "--windows", 4, "--kv", "int8")])
    assert 1e-6 < json.loads(done.stdout)["kl"] < 0.01
    done = CliRunner().invoke(app, ["llm", "generate", str(home / "llama"), "weight", "--kv", "int4"])
    assert done.exit_code != 0
