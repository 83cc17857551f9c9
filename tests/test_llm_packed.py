"""Packed weights: what is written is read back, and what a damaged file holds is said in one line."""

import json

import numpy as np
import pytest

from fewbit import FewbitError
from fewbit.llm import packed
from fewbit.llm.packed import Layer, Recipe


def weight(bits: int, out: int = 5, width: int = 24, group_size: int = 8, symmetric: bool = False, seed: int = 0):
    """(PackedWeight, its codes, its zero points) of random integers."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 1 << bits, (out, width))
    zero = None if symmetric else rng.integers(0, 1 << bits, (out, width // group_size))
    scale = packed.stored_scale(rng.uniform(1e-4, 1, (out, width // group_size)))
    return packed.pack(codes, scale, zero, bits, group_size), codes, zero


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_written_and_read_back(bits, symmetric):
    made, codes, zero = weight(bits, symmetric=symmetric)
    held = packed.tensors("a.b", made)
    found = packed.read("a.b", held.get, Layer(f"int{bits}", 8, symmetric), "here")
    assert found.shape == (5, 24) and np.array_equal(packed.unpack(found), codes)
    assert set(held) == {"a.b.codes", "a.b.scale"} | (set() if symmetric else {"a.b.zero_point"})
    zero = np.full((5, 3), 2 ** (bits - 1)) if zero is None else zero
    weights = packed.dequantize(found)
    for o, k in np.ndindex(5, 24):
        assert weights[o, k] == np.float32(made.scale[o, k // 8]) * np.float32(int(codes[o, k]) - int(zero[o, k // 8]))


@pytest.mark.parametrize("bits", [4, 3, 2])
def test_a_row_is_one_little_endian_number(bits):
    """And starts on a byte of its own: 5 codes of 3 bits take two."""
    made, codes, _ = weight(bits, 3, 5, 5)
    assert made.codes.shape == (3, -(-5 * bits // 8))
    for row, wanted in zip(made.codes, codes, strict=True):
        number = sum(int(c) << (bits * k) for k, c in enumerate(wanted))
        assert int.from_bytes(row.tobytes(), "little") == number
    assert np.array_equal(packed.unpack(made), codes)


def test_large_weights_are_unpacked_in_pieces(monkeypatch):
    monkeypatch.setattr(packed, "CHUNK", 100)
    made, codes, _ = weight(3, 37, 40, 8)
    assert np.array_equal(packed.unpack(made), codes)


def test_a_scale_is_stored_as_float16():
    found = packed.stored_scale(np.array([0.0, 1e-9, 0.1, 1e6]))
    assert found.dtype == np.float32 and np.array_equal(found, found.astype(np.float16)) and found[0] > 0
    with pytest.raises(FewbitError, match="not what float16 holds; take stored_scale"):
        packed.pack(np.zeros((1, 8)), np.array([[0.1]], np.float32), None, 4, 8)


@pytest.mark.parametrize(
    "codes, zero, group_size, message",
    [
        (np.full((1, 8), 16), None, 8, "codes from 16 to 16; 4 bits hold 0 to 15"),
        (np.zeros((1, 8)), np.array([[-1]]), 8, "zero_point from -1 to -1"),
        (np.zeros((1, 12)), None, 8, "12 columns are not whole groups of 8"),
        (np.zeros((1, 8)), np.zeros((1, 2)), 8, r"zero_point is \[1, 2\]; \[out, groups\] is \[1, 1\]"),
    ],
)
def test_what_cannot_be_packed_is_said(codes, zero, group_size, message):
    with pytest.raises(FewbitError, match=message):
        packed.pack(codes, np.ones((1, 1)), zero, 4, group_size)


def test_the_config_entry_round_trips_as_json():
    recipe = Recipe(Layer("int4", 64, False), "gptq", {"head": Layer("int8", 32, True), "same": Layer("int4", 64, False)}, ("x",))
    found = packed.from_config(json.loads(json.dumps(packed.to_config(recipe))), "config.json")
    assert found.of("head") == Layer("int8", 32, True) and found.of("same") == found.of("any") == Layer("int4", 64, False)
    assert set(found.layers) == {"head"} and found.method == "gptq" and found.skipped == ("x",)


GOOD = {"quant_method": "fewbit", "version": 1, "weights": "int4", "group_size": 8, "symmetric": False}


@pytest.mark.parametrize(
    "config, message",
    [
        (None, "it has no quantization_config; give a folder that `fewbit llm quantize` wrote"),
        ({"quant_method": "awq"}, "says quant_method 'awq'"),
        (GOOD | {"version": 2}, "version 2 of the format; this fewbit reads 1"),
        (GOOD | {"weights": "int5"}, "weights are 'int5'; known are int8, int4, int3, int2"),
        (GOOD | {"group_size": 0}, "group_size 0"),
        (GOOD | {"layers": {"a": {}}}, "layer a: weights are 'None'"),
        (GOOD | {"layers": []}, "layers must be an object"),
    ],
)
def test_a_config_that_is_none_of_ours(config, message):
    with pytest.raises(FewbitError, match=message):
        packed.from_config(config, "config.json")


def damage(**changes):
    held = packed.tensors("a", weight(4)[0])
    for key, change in changes.items():
        held[f"a.{key}"] = change(held[f"a.{key}"])
    return {k: v for k, v in held.items() if v is not None}


def nan(scale):
    scale = scale.copy()
    scale[2, 1] = np.nan
    return scale


@pytest.mark.parametrize(
    "held, message",
    [
        (damage(codes=lambda a: None), "tensor a.codes is missing; quantize again"),
        (damage(zero_point=lambda a: None), "tensor a.zero_point is missing"),
        (damage(codes=lambda a: a[:, 1:]), r"a.codes is \[5, 11\]; int4 in groups of 8 with scales \[5, 3\] need \[5, 12\]"),
        (damage(zero_point=lambda a: a[:4]), r"a.zero_point is \[4, 3\]"),
        (damage(scale=lambda a: a.astype(np.float32)), r"a.scale is float32 \[5, 3\]; a matrix of float16 is expected"),
        (damage(scale=lambda a: a[0]), r"a.scale is float16 \[3\]"),
        (damage(scale=nan), r"a.scale: element \(2, 1\) is nan; quantize again"),
        (damage(zero_point=lambda a: a + 16), "does not fit 4 bits"),
    ],
)
def test_damaged_tensors_are_one_line(held, message):
    with pytest.raises(FewbitError, match=message):
        packed.read("a", held.get, Layer("int4", 8, False), "here")
