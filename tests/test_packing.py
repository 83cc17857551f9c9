"""Packing against Python bit strings and against onnx's own INT4 and INT2 tensors."""

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from fewbit.errors import FewbitError
from fewbit.numerics.packing import BITS, ORDERS, pack, unpack


def by_strings(codes, bits, order):
    text = "".join(format(c % (1 << bits), f"0{bits}b")[:: -1 if order == "low_first" else 1] for c in codes)
    text += "0" * (-len(text) % 8)
    return bytes(int(text[k : k + 8][:: -1 if order == "low_first" else 1], 2) for k in range(0, len(text), 8))


@given(st.data(), st.sampled_from(BITS), st.sampled_from(ORDERS), st.booleans())
def test_round_trip_and_bit_strings(data, bits, order, signed):
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    codes = np.array(data.draw(st.lists(st.integers(low, high), max_size=40)), np.int64)
    packed = pack(codes, bits, order)
    assert packed.tobytes() == by_strings(codes.tolist(), bits, order)
    assert unpack(packed, bits, codes.shape, signed, order).tolist() == codes.tolist()


@pytest.mark.parametrize("name, bits", [("INT4", 4), ("UINT4", 4), ("INT2", 2), ("UINT2", 2)])
def test_low_first_is_onnx(name, bits):
    signed = name[0] == "I"
    codes = np.random.default_rng(0).integers(-(1 << (bits - 1)) if signed else 0, 1 << (bits - signed), 23)
    tensor = helper.make_tensor("t", getattr(onnx.TensorProto, name), [23], codes.tolist())
    raw = bytes(v & 255 for v in tensor.int32_data) if tensor.int32_data else tensor.raw_data
    assert pack(codes, bits).tobytes() == raw


def test_three_bits_are_32_codes_in_three_words_as_gptq_checkpoints_hold_them():
    codes = np.random.default_rng(0).integers(0, 8, 32)
    whole = sum(int(c) << (3 * k) for k, c in enumerate(codes))
    assert pack(codes, 3).view("<u4").tolist() == [(whole >> (32 * k)) & 0xFFFFFFFF for k in range(3)]


def test_refusals():
    for arguments, says in [
        (([8, -1], 4), "code 8 at 0"),
        (([0, 16], 4), "code 16 at 1"),
        (([0, -5], 3), "code -5 at 1"),
        (([0], 5), "5 bits"),
        (([0], 4, "middle"), "middle"),
    ]:
        with pytest.raises(FewbitError, match=says):
            pack(np.array(arguments[0]), *arguments[1:])
    with pytest.raises(FewbitError, match="take 2 bytes, found 1"):
        unpack(np.zeros(1, np.uint8), 4, (3,))
