"""Observations of which one step for all columns tells too little: scaled where sizes differ, said where it is an offset."""

import warnings

import numpy as np
import onnx_ir as ir
import pytest
from float_graphs import RNG, model, node, run, w

from fewbit.errors import FewbitWarning
from fewbit.graph import fold, read
from fewbit.graph.qdq import Scheme
from fewbit.graph.quantize import quantize

NODES = [node("Gemm", ["x", "w", "b"], ["h"], transB=1), node("Relu", ["h"], ["r"])]
NODES.append(node("Gemm", ["r", "v", "d"], ["y"], transB=1))
SIZES = np.array([400, 400, 1, 1], np.float32)  # distances in millimetres beside flags


def error(x: np.ndarray, weight: np.ndarray, scheme: Scheme) -> tuple[float, dict]:
    """(largest error as a share of the range of the action; exponents that columns were divided by)."""
    given = model(NODES, {"w": weight, "b": w(16), "v": w(3, 16) / 4, "d": w(3)}, ("n", 4))
    made, moved = quantize(fold.fold(read.prepare(given)), {"x": x}, scheme)
    want = run(given, x)[0]
    return float(np.abs(run(ir.to_proto(made), x)[0] - want).max() / np.ptp(want)), moved


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_flags_beside_large_numbers_are_scaled(method):
    x = np.concatenate([np.abs(w(300, 2)), RNG.random((300, 2)) < 0.5], 1).astype(np.float32) * SIZES
    with warnings.catch_warnings():
        warnings.simplefilter("error", FewbitWarning)
        found, moved = error(x, w(16, 4) / SIZES, Scheme(method=method))
    assert found < 0.03 and moved["x"][0] > moved["x"][2]


def test_columns_alike_are_left_alone():
    with warnings.catch_warnings():
        warnings.simplefilter("error", FewbitWarning)
        found, moved = error(w(300, 4), w(16, 4), Scheme(method="rtn"))
    assert found < 0.05 and not moved


def test_a_constant_column_is_no_coarse_one():
    x = w(300, 4)
    x[:, 3] = 777.77
    with warnings.catch_warnings():
        warnings.simplefilter("error", FewbitWarning)
        error(np.concatenate([x[:, :3] * 300, x[:, 3:]], 1), w(16, 4) / 300, Scheme(method="rtn"))


def test_an_offset_far_above_the_deviation_is_said():
    x = w(300, 4) + np.array([0, 0, 0, 30000], np.float32)
    with pytest.warns(FewbitWarning, match="input x: column .*3 varies by less than 32 steps"):
        error(x, w(16, 4), Scheme(method="rtn"))
