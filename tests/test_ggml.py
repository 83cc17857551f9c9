"""llama.cpp's weight types: our records read by its own package, and its records read by us."""

import numpy as np
import pytest

gguf = pytest.importorskip("gguf")

from fewbit.errors import FewbitError  # noqa: E402
from fewbit.numerics import ggml  # noqa: E402


def theirs(data: np.ndarray, kind: ggml.Type) -> np.ndarray:
    return gguf.quants.dequantize(data, gguf.GGMLQuantizationType(kind.number))


@pytest.mark.parametrize("name", ggml.TYPES)
def test_any_record_means_what_llama_cpp_says(name):
    """Random bytes: every code and every factor occurs."""
    kind = ggml.TYPES[name]
    random = np.random.default_rng(0)
    data = random.integers(0, 256, (64, kind.row_bytes(512)), dtype=np.uint8)
    records = data.view(kind.record)
    for factor in ("d", "m"):
        if factor in records.dtype.names:
            records[factor] = random.standard_normal(records.shape).astype(np.float16)
    assert (kind.block, kind.record.itemsize) == gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind.number)]
    parts = ggml.unpack(data, 512, kind)
    assert np.array_equal(parts.dequantized(), theirs(data, kind))
    assert len(np.unique(parts.codes)) == kind.top + 1


@pytest.mark.parametrize("name", ggml.TYPES)
def test_what_is_packed_comes_back(name):
    kind = ggml.TYPES[name]
    random = np.random.default_rng(1)
    codes = random.integers(0, kind.top + 1, (16, 512), dtype=np.uint8)
    scale, minimum = random.random((2, 16, 512 // kind.group), np.float32)
    scale, minimum = ggml.held(scale, minimum if kind.zero is None else 0 * minimum, kind)
    parts = ggml.Parts(codes, scale, minimum, kind)
    data = ggml.pack(parts)
    assert np.array_equal(theirs(data, kind), parts.dequantized())
    back = ggml.unpack(data, 512, kind)
    assert all(np.array_equal(a, b) for a, b in ((back.codes, codes), (back.scale, scale), (back.minimum, minimum)))
    assert all(np.array_equal(a, b) for a, b in zip(ggml.held(scale, minimum, kind), (scale, minimum), strict=True))


def test_what_a_type_cannot_hold_is_refused():
    q4_k, q4_0 = ggml.TYPES["q4_k"], ggml.TYPES["q4_0"]
    with pytest.raises(FewbitError, match="does not divide the 576 of a.b; q4_0, q4_1, q8_0, iq4_nl do"):
        ggml.check("a.b", 576, q4_k)
    with pytest.raises(FewbitError, match="not one that q4_0 holds"):
        ggml.pack(ggml.Parts(np.zeros((1, 32), np.uint8), np.full((1, 1), 0.1, np.float32), np.zeros((1, 1), np.float32), q4_0))
    with pytest.raises(FewbitError, match="18 bytes each"):
        ggml.unpack(np.zeros((1, 17), np.uint8), 32, q4_0)
