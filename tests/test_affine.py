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
from fewbit.numerics.formats import INTEGERS

floats = st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=50).map(lambda v: np.array(v, np.float32))


@pytest.mark.parametrize("name", ["int8", "uint8", "int16", "uint16"])
@given(x=floats, scale=st.floats(2.0**-10, 100, width=32), zero=st.integers(0, 100))
def test_equals_the_onnx_reference(name, x, scale, zero):
    fmt = INTEGERS[name]
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


def inside(p, x):
    """x clipped to what the codes reach: within it the error is half a step, beyond it the codes saturate."""
    low, high = (
        affine.spread(p.scale.astype(np.float64) * (q - p.zero_point), x.shape, p.axis, p.group_size)
        for q in (p.format.quant_min, p.format.quant_max)
    )
    return np.clip(x, low, high)


GRANULARITIES = [(None, None), (0, None), (1, None), (-1, None), (0, 1), (1, 3), (1, 4), (2, 5), (2, 100)]


@pytest.mark.parametrize("axis, group_size", GRANULARITIES)
@pytest.mark.parametrize("name", [n for n in INTEGERS if n != "int32"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_round_trip_within_half_a_step_and_zero_exact(name, axis, group_size, symmetric):
    fmt = INTEGERS[name]
    if symmetric and not fmt.signed:
        return
    rng = np.random.default_rng(0)
    x = (rng.standard_t(2, (4, 6, 7)) * 10.0 ** rng.integers(-6, 6, (4, 6, 1))).astype(np.float32)
    p = affine.parameters(x, fmt, symmetric, axis, group_size)
    back = affine.to_floats(affine.to_codes(x, p), p).astype(np.float64)
    step = affine.spread(p.scale.astype(np.float64), x.shape, axis, group_size)
    assert (np.abs(back - inside(p, x)) <= step * (0.5 + 1e-5) * (1 + 1e-6 * fmt.levels)).all()
    assert (affine.to_floats(affine.to_codes(np.zeros_like(x), p), p) == 0).all()
    assert p.scale.dtype == np.float32 and p.scale.shape == p.zero_point.shape
    assert ((fmt.quant_min <= p.zero_point) & (p.zero_point <= fmt.quant_max)).all()


@pytest.mark.parametrize("axis, group_size", GRANULARITIES)
def test_granularity_equals_one_slice_at_a_time(axis, group_size):
    x = np.random.default_rng(1).normal(size=(4, 6, 7)).astype(np.float32)
    fmt = INTEGERS["uint4"]
    p = affine.parameters(x, fmt, False, axis, group_size)
    got = affine.to_floats(affine.to_codes(x, p), p)
    rows = [x] if axis is None else np.split(x, x.shape[axis], axis)
    if group_size is not None:  # each group of each line along axis on its own
        for index in np.ndindex(*np.delete(x.shape, axis)):
            line, mine = np.moveaxis(x, axis, -1)[index], np.moveaxis(got, axis, -1)[index]
            for k in range(0, len(line), group_size):
                one = affine.parameters(line[k : k + group_size], fmt, False)
                want = affine.to_floats(affine.to_codes(line[k : k + group_size], one), one)
                assert np.array_equal(mine[k : k + group_size], want)
        return
    want = []
    for row in rows:
        one = affine.parameters(row, fmt, False)
        want.append(affine.to_floats(affine.to_codes(row, one), one))
    assert np.array_equal(got, np.concatenate(want, axis or 0))


@given(floats)
def test_a_group_of_one_has_an_exact_scale(x):
    p = affine.parameters(x, INTEGERS["int8"], True, 0, 1)
    back = affine.to_floats(affine.to_codes(x, p), p)
    assert np.allclose(back, x, rtol=3e-7, atol=1e-35)


@given(floats, st.booleans())
def test_symmetric_codes_are_symmetric_and_all_codes_monotone(x, symmetric):
    p = affine.parameters(x, INTEGERS["int6"], symmetric)
    codes = affine.to_codes(np.sort(x), p)
    assert (np.diff(codes.astype(int)) >= 0).all()
    if symmetric:
        assert np.array_equal(affine.to_codes(-x, p), -affine.to_codes(x, p))


@pytest.mark.parametrize("x", [np.zeros(5), np.full(5, 3.0), np.full(5, -3.0), [7.0], [1e-42, 2e-42], [3e38, -3e38], [1e-38]])
@pytest.mark.parametrize("symmetric", [True, False])
def test_degenerate_arrays_come_back_finite_and_near(x, symmetric):
    x = np.array(x, np.float32)
    p = affine.parameters(x, INTEGERS["int8"], symmetric)
    back = affine.to_floats(affine.to_codes(x, p), p)
    assert np.isfinite(back).all() and p.scale >= affine.TINY
    if np.abs(x).max() > 1e-35:
        assert np.abs(back.astype(np.float64) - x).max() <= float(p.scale) * 0.51


def test_refusals_name_what_and_where():
    x = np.ones((3, 4), np.float32)
    for arguments, says in [
        (dict(axis=2), r"axis 2 does not exist in shape \[3, 4\]"),
        (dict(group_size=2), "needs the axis"),
        (dict(axis=0, group_size=0), "group_size 0"),
    ]:
        with pytest.raises(FewbitError, match=says):
            affine.parameters(x, INTEGERS["int8"], True, **arguments)
    with pytest.raises(FewbitError, match="no negative codes"):
        affine.parameters(x, INTEGERS["uint8"])
    with pytest.raises(FewbitError, match=r"shape \[0, 4\] has no element"):
        affine.parameters(x[:0], INTEGERS["int8"])


def test_infinity_saturates_and_nan_is_named():
    fmt = INTEGERS["int8"]
    assert affine.quantize(np.array([np.inf, -np.inf, np.nan]), 1.0, 3, fmt).tolist() == [127, -128, 3]
    with pytest.raises(FewbitError, match=r"element \(1,\) is nan"):
        affine.check_finite(np.array([0.0, np.nan]), "weights")


@pytest.mark.parametrize("name", ["int8", "uint8", "int16", "uint16", "int4", "uint4", "int2", "uint2"])
@pytest.mark.parametrize("axis, group_size", [(None, None), (0, None), (1, None), (1, 3), (0, 2)])
def test_granularity_equals_the_onnx_reference(name, axis, group_size):
    """QuantizeLinear and DequantizeLinear of the specification, blocked included, run by onnx's own evaluator."""
    fmt, rng = INTEGERS[name], np.random.default_rng(3)
    x = rng.normal(size=(4, 6)).astype(np.float32)
    p = affine.parameters(x, fmt, False, axis, group_size)
    kind = getattr(onnx.TensorProto, name.upper())
    attributes = {} if axis is None else dict(axis=axis) | ({} if group_size is None else dict(block_size=group_size))
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], **attributes),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], **attributes),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, list(x.shape))],
        [helper.make_tensor_value_info("q", kind, None), helper.make_tensor_value_info("y", 1, None)],
        [
            onnx.numpy_helper.from_array(p.scale, "s"),
            helper.make_tensor("z", kind, p.zero_point.shape, p.zero_point.reshape(-1).tolist()),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 25)])
    q, y = ReferenceEvaluator(model).run(None, {"x": x})
    assert np.array_equal(affine.to_codes(x, p).astype(int), q.astype(int))
    assert np.array_equal(affine.to_floats(affine.to_codes(x, p), p), y)


def test_a_power_of_two_reaches_what_it_is_for_and_is_never_zero():
    fmt = INTEGERS["int16"]
    for largest in (1e-30, 0.1, 1.0, 32767.0, 32768.0, 3e38):
        scale = affine.power_of_two_scale(largest, fmt)
        assert np.frexp(scale)[0] == 0.5 and scale * fmt.quant_max >= largest > scale / 2 * fmt.quant_max
    for none in (0.0, 1e-44):
        assert affine.power_of_two_scale(none, fmt) == 1
