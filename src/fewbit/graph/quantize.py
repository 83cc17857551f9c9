"""A float graph, observations and a scheme -> the QDQ graph: observe, equalize, observe again, solve, write."""

import ml_dtypes  # noqa: F401  (NumPy must know bfloat16 before a graph that holds it is read)
import numpy as np
import onnx_ir as ir

from fewbit import solvers
from fewbit.graph import calibrate, dynamic, equalize, half, qdq


def quantize(original: ir.Model, feeds: dict[str, np.ndarray], scheme: qdq.Scheme) -> tuple[ir.Model, dict[str, list[int]]]:
    """(a new graph; exponents of the powers of two by which equalization divided a tensor's elements). feeds: [n, ...]."""
    if scheme.method == "dynamic":
        return dynamic.write(original), {}
    model = original.clone()
    if scheme.weights in half.DTYPES:
        return half.write(model, scheme.weights), {}
    moved: dict[str, list[int]] = {}
    ranges, statistics = calibrate.observe(model, feeds, *qdq.tensors(model), scheme.ranges)
    scaling = solvers.method(scheme.method).scaling
    if scaling:
        moved = equalize.equalize(model, statistics, scaling, scheme.weights)
        ranges, statistics = calibrate.observe(model, feeds, *qdq.tensors(model), scheme.ranges)
    return qdq.write(model, ranges, scheme, statistics), moved
