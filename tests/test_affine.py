"""Quantization of arrays against the ONNX specification's reference evaluator and against its own promises."""

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper
from onnx.reference import ReferenceEvaluator

from fewbit.errors import FewbitError
from fewbit.numerics import affine

floats = st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=50).map(lambda v: np.array(v, np.float32))


@pytest.mark.parametrize("name", ["int8", "uint8", "int16", "uint16"])
@given(x=floats, scale=st.floats(2.0**-10, 100, width=32), zero=st.integers(0, 100))
def test_equals_the_onnx_reference(name, x, scale, zero):
    fmt = affine.FORMATS[name]
    kind = helper.np_dtype_to_tensor_dtype(fmt.dtype)
    node = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"])
    graph = helper.make_graph(
        [node],
        "g",
        [
            helper.make_tensor_value_info("x", 1, None),
            helper.make_tensor_value_info("s", 1, []),
            helper.make_tensor_value_info("z", kind, []),
        ],
        [helper.make_tensor_value_info("q", kind, None)],
    )
    model = helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)])
    want = ReferenceEvaluator(model).run(None, {"x": x, "s": np.float32(scale), "z": np.array(zero, fmt.dtype)})[0]
    assert np.array_equal(affine.quantize(x, np.float32(scale), zero, fmt), want)


@given(floats)
def test_round_trip_within_half_a_step_and_zero_exact(x):
    fmt = affine.FORMATS["uint8"]
    scale, zero = affine.asymmetric_scale(x.min(), x.max(), fmt)
    back = affine.dequantize(affine.quantize(x, scale, zero, fmt), scale, zero)
    assert np.abs(back - x).max() <= 1.01 * float(scale)  # half a step, and half for the zero point's own rounding
    assert affine.dequantize(affine.quantize(np.zeros(1), scale, zero, fmt), scale, zero)[0] == 0


@given(floats)
def test_symmetric_codes_are_symmetric(x):
    fmt = affine.FORMATS["int8"]
    scale = affine.symmetric_scale(np.abs(x).max(), fmt)
    assert np.array_equal(affine.quantize(-x, scale, 0, fmt), -affine.quantize(x, scale, 0, fmt))


def test_infinity_saturates_and_nan_is_named():
    fmt = affine.FORMATS["int8"]
    assert affine.quantize(np.array([np.inf, -np.inf, np.nan]), 1.0, 3, fmt).tolist() == [127, -128, 3]
    with pytest.raises(FewbitError, match=r"element \(1,\) is nan"):
        affine.check_finite(np.array([0.0, np.nan]), "weights")
