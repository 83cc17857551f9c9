"""A float graph, observations and a scheme -> the QDQ graph: observe, equalize, observe again, solve, write."""

from dataclasses import dataclass

import ml_dtypes  # noqa: F401  (NumPy must know bfloat16 before a graph that holds it is read)
import numpy as np
import onnx_ir as ir

from fewbit import solvers
from fewbit.errors import FewbitError
from fewbit.graph import calibrate, dynamic, equalize, half, qdq
from fewbit.graph.edit import const, label
from fewbit.graph.layers import layers
from fewbit.numerics.ranges import Estimator
from fewbit.solvers.statistics import Statistics


@dataclass(frozen=True)
class Prepared:
    """A float graph ready for `qdq.write`; moved: exponents of the powers of two by which a tensor's elements were divided."""

    model: ir.Model
    ranges: dict[str, Estimator]
    statistics: dict[str, Statistics]
    moved: dict[str, list[int]]


def prepare(original: ir.Model, feeds: dict[str, np.ndarray], scheme: qdq.Scheme) -> Prepared:
    """A copy of the float graph, its columns scaled if the method says so, with what was observed in it. feeds: [n, ...]."""
    _check(original)
    model, moved = original.clone(), {}
    ranges, statistics = calibrate.observe(model, feeds, *qdq.tensors(model), scheme.ranges)
    shares = scheme.inputs == "int16"  # one scale for all columns, which may be too coarse for some
    scaling = solvers.method(scheme.method).scaling or (equalize.EVEN if shares and equalize.coarse(model, statistics) else "")
    if scaling:
        moved = equalize.equalize(model, statistics, scaling, scheme.weights)
        ranges, statistics = calibrate.observe(model, feeds, *qdq.tensors(model), scheme.ranges)
    if shares:
        equalize.warn(equalize.coarse(model, statistics))
    return Prepared(model, ranges, statistics, moved)


def _check(original: ir.Model) -> None:
    for node in (layer.node for layer in layers(original)):
        weight = node.inputs[1]
        producer = None if weight is None else weight.producer()
        if producer is not None and producer.op_type == "DequantizeLinear":
            raise FewbitError(f"node {label(node)}: is quantized already; give the float network that it was made from")
        if weight is None or const(weight) is None:
            raise FewbitError(f"node {label(node)}: a weight that is computed at run time cannot be quantized")


def quantize(original: ir.Model, feeds: dict[str, np.ndarray], scheme: qdq.Scheme) -> tuple[ir.Model, dict[str, list[int]]]:
    """(a new graph; exponents of the powers of two by which equalization divided a tensor's elements). feeds: [n, ...]."""
    if scheme.method == "dynamic":
        return dynamic.write(original), {}
    if scheme.weights in half.DTYPES:
        return half.write(original.clone(), scheme.weights), {}
    ready = prepare(original, feeds, scheme)
    return qdq.write(ready.model, ready.ranges, scheme, ready.statistics), ready.moved
