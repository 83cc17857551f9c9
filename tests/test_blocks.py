"""Block formats against a scalar transcription of OCP Microscaling Formats 1.0, section 6.3, with Python numbers."""

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewbit.errors import FewbitError
from fewbit.numerics import blocks
from fewbit.numerics.formats import BLOCKS

MX = [f for f in BLOCKS.values() if f.name.startswith("mx")]


def by_the_specification(block: list[float], fmt) -> list[float]:
    largest = max(abs(v) for v in block)
    if largest == 0:
        return [0.0] * len(block)
    emax = math.floor(math.log2(float(ml_dtypes.finfo(fmt.element.dtype).max)))
    shared = 2.0 ** max(math.frexp(largest)[1] - 1 - emax, -127)
    top = float(ml_dtypes.finfo(fmt.element.dtype).max)
    scaled = np.clip(np.array(block, np.float64) / shared, -top, top)
    return (scaled.astype(np.float32).astype(fmt.element.dtype).astype(np.float64) * shared).tolist()


@pytest.mark.parametrize("fmt", MX, ids=lambda f: f.name)
@given(values=st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=70))
def test_mx_is_the_specification(fmt, values):
    x = np.array(values, np.float32)
    got = blocks.dequantize(blocks.quantize(x, fmt))
    want = [v for k in range(0, len(x), 32) for v in by_the_specification(x[k : k + 32].tolist(), fmt)]
    np.testing.assert_array_equal(got, np.array(want, np.float32))


@pytest.mark.parametrize("fmt", list(BLOCKS.values()), ids=lambda f: f.name)
def test_errors_stay_within_half_a_gap_and_zero_stays_zero(fmt):
    x = np.random.default_rng(0).normal(size=(8, 100)).astype(np.float32)
    x[:, :40] = 0
    found = blocks.quantize(x, fmt)
    back = blocks.dequantize(found)
    assert found.scales.shape == (8, -(-100 // fmt.block_size)) and found.scales.dtype == fmt.scale.dtype
    assert found.elements.dtype == fmt.element.dtype
    assert (back[:, :40] == 0).all()
    step = np.repeat(found.scales.astype(float) * float(found.tensor_scale), fmt.block_size, axis=-1)[:, :100]
    info = ml_dtypes.finfo(fmt.element.dtype) if fmt.name != "nf4_block64" else None
    beyond = np.maximum(np.abs(x) - float(info.max) * step, 0) if info else 0  # what saturates by design of the power of two
    half = np.maximum(np.abs(x) * float(info.eps), float(info.smallest_subnormal) * step) / 2 if info else 0.152 * step
    assert (np.abs(back - x) <= half * (1 + 1e-6) + beyond).all()


def test_nvfp4_puts_the_largest_block_on_the_largest_scale():
    x = np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32)
    found = blocks.quantize(x, BLOCKS["nvfp4"])
    assert found.scales.astype(float).max() == 448
    assert found.tensor_scale == np.float32(np.abs(x).max().astype(np.float64) / (6 * 448))
    again = blocks.quantize(blocks.dequantize(found), BLOCKS["nvfp4"])
    assert np.allclose(blocks.dequantize(again), blocks.dequantize(found), rtol=1e-6)


def test_refusals():
    with pytest.raises(FewbitError, match=r"element \(1,\) is nan"):
        blocks.quantize(np.array([1.0, np.nan]), BLOCKS["mxfp4"])
    with pytest.raises(FewbitError, match="has no blocks"):
        blocks.quantize(np.zeros((3, 0)), BLOCKS["mxfp4"])
