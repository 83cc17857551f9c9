"""Formats against ml_dtypes, torch and onnx, which typed in what we derive; every 8- and 16-bit pattern."""

import json
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fewbit.errors import FewbitError
from fewbit.numerics.formats import CODEBOOKS, FLOATS, INTEGERS, cast, find

SMALL = [f for f in FLOATS.values() if f.bits <= 16]
TORCH = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float8_e4m3fn": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2,
    "float8_e8m0fnu": torch.float8_e8m0fnu,
}


def patterns(fmt):
    codes = np.arange(1 << fmt.bits, dtype=np.uint16 if fmt.bits > 8 else np.uint8)
    return codes, codes.view(fmt.dtype).astype(np.float64)


@pytest.mark.parametrize("fmt", SMALL, ids=lambda f: f.name)
def test_every_pattern_decodes_as_ml_dtypes(fmt):
    codes, want = patterns(fmt)
    np.testing.assert_array_equal(fmt.decode(codes), want)


@pytest.mark.parametrize("fmt", list(FLOATS.values()), ids=lambda f: f.name)
def test_derived_properties_equal_ml_dtypes_finfo(fmt):
    info = ml_dtypes.finfo(fmt.dtype)
    assert fmt.max == float(info.max) and fmt.epsilon == float(info.eps)
    if fmt.name != "float8_e8m0fnu":  # which has no normal distinct from its smallest, and finfo says 2^-126
        assert fmt.smallest_normal == float(info.smallest_normal) and fmt.smallest_subnormal == float(info.smallest_subnormal)
    if fmt.bits <= 16:
        finite = patterns(fmt)[1]
        assert fmt.levels == len(np.unique(finite[np.isfinite(finite)]))
        assert fmt.max == finite[np.isfinite(finite)].max()
        assert fmt.smallest_subnormal == finite[finite > 0].min()


@pytest.mark.parametrize("fmt", [f for f in SMALL if f.signed], ids=lambda f: f.name)
def test_cast_of_every_16_bit_pattern_equals_ml_dtypes_and_torch(fmt):
    for source in ("float16", "bfloat16"):
        x = patterns(FLOATS[source])[1]
        x = x[np.isfinite(x)] if fmt.specials == "none" else x
        got = cast(x, fmt, "infinity" if fmt.specials != "none" else None).values
        with np.errstate(over="ignore"):
            np.testing.assert_array_equal(got, x.astype(np.float32).astype(fmt.dtype).astype(np.float64))
        if fmt.name in TORCH:
            got = cast(x, fmt, "saturate").values if fmt.name == "float8_e4m3fn" else got  # where torch saturates
            np.testing.assert_array_equal(got, torch.tensor(x).float().to(TORCH[fmt.name]).double().numpy())


def test_cast_of_every_8_bit_pattern_to_every_float_and_back_is_itself():
    for fmt in SMALL:
        values = patterns(fmt)[1]
        values = values[np.isfinite(values)]
        found = cast(values, fmt)
        assert np.array_equal(found.values, values) and not found.overflowed.any()


@given(st.floats(width=64, allow_nan=False, allow_infinity=False), st.sampled_from([f for f in FLOATS.values() if f.signed]))
def test_cast_is_nearest(x, fmt):
    """Against a definition by neighbours, from float64, where a detour over float32 would round twice."""
    found = cast(x, fmt, "saturate")
    if abs(x) > fmt.max:
        assert abs(found.values) == fmt.max
        return
    value = float(found.values)
    step = max(abs(value), fmt.smallest_normal) * fmt.epsilon
    near = [float(cast(v, fmt, "saturate").values) for v in (value - step, value + step)]
    assert all(abs(value - x) <= abs(n - x) for n in near)


def test_overflow_and_underflow_are_said():
    x = np.array([70000.0, -70000.0, 1e-9, 1.0, 0.0])
    half = cast(x, FLOATS["float16"])
    assert half.values.tolist() == [np.inf, -np.inf, 0.0, 1.0, 0.0]
    assert half.overflowed.tolist() == [True, True, False, False, False]
    assert half.underflowed.tolist() == [False, False, True, False, False]
    assert cast(x, FLOATS["float16"], "saturate").values[0] == 65504
    assert cast(70000.0, FLOATS["bfloat16"]).values == 70144
    assert np.isnan(cast(1e6, FLOATS["float8_e4m3fn"], "infinity").values)
    assert cast(1e6, FLOATS["float8_e4m3fn"]).values == 448
    assert not cast(np.inf, FLOATS["float16"]).overflowed


@pytest.mark.parametrize("name, arguments, says", [
    ("float4_e2m1fn", (1.0, "infinity"), "can only saturate"),
    ("float6_e2m3fn", (np.nan,), "cannot hold NaN"),
    ("float8_e8m0fnu", (-1.0,), "powers of two only"),
    ("float16", (1.0, "wrap"), "choose saturate or infinity"),
])  # fmt: skip
def test_cast_refuses_by_name(name, arguments, says):
    x, *rest = arguments
    with pytest.raises(FewbitError, match=says):
        cast(np.array([x]), FLOATS[name], *rest)


def test_integers():
    assert [INTEGERS[n].levels for n in ("int8", "uint4", "int3", "ternary")] == [256, 16, 8, 3]
    assert (INTEGERS["ternary"].quant_min, INTEGERS["ternary"].quant_max) == (-1, 1)
    for name in ("int4", "uint4", "int2", "uint2"):
        info = ml_dtypes.iinfo(getattr(ml_dtypes, name))
        assert (INTEGERS[name].quant_min, INTEGERS[name].quant_max) == (info.min, info.max)


def test_nf4_is_what_its_authors_published():
    """bitsandbytes, functional.py (create_normal_map), quoted to seven digits."""
    published = [
        -1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0,
        0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0,
    ]  # fmt: skip
    assert np.abs(np.array(CODEBOOKS["nf4"].values) - published).max() < 3e-7
    x = np.linspace(-1.2, 1.2, 4001)
    want = np.abs(x[:, None] - np.array(CODEBOOKS["nf4"].values)).argmin(axis=1)
    assert np.array_equal(CODEBOOKS["nf4"].encode(x), want)


def run(*arguments):
    code = "from fewbit.cli.main import main; main()"
    return subprocess.run([sys.executable, "-c", code, "formats", *arguments], capture_output=True, text=True)


def test_the_command_shows_why_bfloat16_trains_and_float16_overflows():
    out = run("float16", "bfloat16", "--value", "70000").stdout
    assert "inf (overflow)" in out and "70144" in out
    every = json.loads(run("--json").stdout)
    assert every["float8_e4m3fn"]["max"] == 448 and every["mxfp4"]["bits"] == 4.25 and len(every) > 25
    wrong = run("float17")
    assert wrong.returncode == 2 and "choose one of" in wrong.stderr and wrong.stderr.count("\n") == 1


def test_an_unknown_format():
    with pytest.raises(FewbitError, match="float17 is unknown"):
        find("float17")
