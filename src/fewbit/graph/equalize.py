"""Move scale between neighbours: a layer's columns are multiplied, what feeds them is divided, the outputs stay.

What feeds a first layer is the entry: the normaliser's factor and clip take the division. What feeds another is the rows of
the layer before, through ReLU or LeakyReLU, which commute with a positive factor. Scales are powers of two
(solvers/scaling), so the float outputs stay bit for bit.
"""

import warnings
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from fewbit.errors import FewbitWarning
from fewbit.graph import wide
from fewbit.graph.edit import add_constant, const, new_node
from fewbit.graph.layers import Layer, take_apart
from fewbit.numerics import affine
from fewbit.numerics.formats import INTEGERS
from fewbit.solvers import scaling
from fewbit.solvers.statistics import Statistics

HOMOGENEOUS = {"Relu", "LeakyRelu"}
EVEN = "even"  # of observations alone, whatever the method, where one step for all columns is too coarse for some
STEPS = 32  # of a column's deviation: rounding then adds 1% of it


def equalize(model: ir.Model, statistics: dict[str, Statistics], rule: str, weights: str) -> dict[str, list[int]]:
    """Scale every layer's columns that can be, in place; tensor name -> exponents of what its elements were divided by."""
    groups: dict[ir.Value, list[Layer]] = {}
    shape = take_apart(model)
    shared = set(wide.values(model.graph, shape))
    for layer in shape.layers:
        if layer.source in shared or layer.wide or layer.node.op_type != "Gemm" or layer.source is not layer.x:
            continue  # what meets other values is shared with them; a Conv's columns are channels of patches
        groups.setdefault(layer.x, []).append(layer)
    moved: dict[str, list[int]] = {}
    for x, group in groups.items():
        name, before = x.name or "", _before(group)
        if name not in statistics or not (group[0].entry or before is not None):
            continue
        floor = scaling.ENTRY_FLOOR if before is None else scaling.HIDDEN_FLOOR
        weight = np.concatenate([_weight(layer.node) for layer in group])
        if rule == EVEN:
            if before is not None:
                continue
            scale = scaling.even(statistics[name], floor)
        elif rule == "cross_layer":
            if before is None:
                continue
            scale = scaling.cross_layer(weight, _weight(before))
        elif rule == "awq":
            scale = scaling.awq(weight, statistics[name], INTEGERS[weights], floor)
        else:
            scale = scaling.smooth(weight, statistics[name], floor)
        _multiply_columns(model.graph, group, scale)
        if before is not None:
            _divide_rows(model.graph, before, scale)
            moved[before.outputs[0].name or ""] = np.log2(scale).astype(int).tolist()
        else:
            _divide_entry(model.graph, x, scale, [layer.node for layer in group])
        moved[name] = np.log2(scale).astype(int).tolist()
    return moved


def coarse(model: ir.Model, statistics: dict[str, Statistics]) -> dict[str, list[int]]:
    """Observation that a first layer reads -> its columns whose deviation is less than STEPS steps of the shared 16 bits."""
    found = {}
    for layer in take_apart(model).layers:
        seen = statistics.get(layer.x.name or "")
        if seen is None or not layer.entry or layer.node.op_type != "Gemm" or layer.source is not layer.x:
            continue
        step = affine.power_of_two_scale(2 * float(seen.peak.max()), INTEGERS["int16"])
        deviation = np.sqrt(np.maximum(np.diag(seen.gram) - seen.mean**2, 0))
        moves = deviation > 1e-6 * seen.peak  # a constant's deviation is what float64 lost
        columns = np.flatnonzero(moves & (deviation < STEPS * float(step))).tolist()
        if columns:
            found[_observed(layer.x)] = columns
    return found


def _observed(value: ir.Value) -> str:
    """The name of the observation that a value was scaled and shifted from."""
    while (node := value.producer()) is not None and (live := [i for i in node.inputs if i is not None and const(i) is None]):
        value = live[0]
    return value.name or ""


def warn(columns: dict[str, list[int]]) -> None:
    """Say which columns lose what they tell."""
    for name, some in columns.items():
        listed = ", ".join(map(str, some[:8])) + (", ..." if len(some) > 8 else "")
        warnings.warn(
            f"input {name}: column {listed} varies by less than {STEPS} steps of the scale that its size asks for: it loses what "
            "it tells; take its offset out of the observation, or normalise it (VecNormalize)",
            FewbitWarning,
            stacklevel=2,
        )


def _before(group: list[Layer]) -> ir.Node | None:
    """The layer whose rows can take the division: nothing else may read what it makes."""
    function, x = group[0].function, group[0].x
    if function is None or not {n.op_type for n in function.nodes} <= HOMOGENEOUS:
        return None
    gemms = {id(layer.node) for layer in group}
    path = [function.root, *(n.outputs[0] for n in function.nodes)]
    alone = all(len(v.uses()) == 1 for v in path[:-1]) and all(id(n) in gemms for n, _ in x.uses())
    root = function.root.producer()
    if root is None or root.op_type != "Gemm":
        return None
    return root if alone and not any(v.is_graph_output() for v in path) else None


def _weight(gemm: ir.Node) -> np.ndarray:
    weight = const(gemm.inputs[1])
    assert weight is not None
    return weight


def _replace(graph: ir.Graph, node: ir.Node, index: int, change: Callable[[np.ndarray], np.ndarray]) -> None:
    value = node.inputs[index]
    array = const(value)
    assert value is not None and array is not None
    node.replace_input_with(index, add_constant(graph, value.name or "constant", change(array).astype(array.dtype)))
    if not value.uses() and value.name is not None and value.name in graph.initializers:
        del graph.initializers[value.name]


def _multiply_columns(graph: ir.Graph, group: list[Layer], scale: np.ndarray) -> None:
    for layer in group:
        _replace(graph, layer.node, 1, lambda w: w * scale)


def _divide_rows(graph: ir.Graph, gemm: ir.Node, scale: np.ndarray) -> None:
    _replace(graph, gemm, 1, lambda w: w / scale[:, None])
    _replace(graph, gemm, 2, lambda b: b / scale)


def _divide_entry(graph: ir.Graph, value: ir.Value, scale: np.ndarray, users: list[ir.Node]) -> None:
    """Divide through the clip's limits and into the normaliser's factor; a Mul of its own where there is none."""
    node = value.producer()
    constants = [k for k, i in enumerate(node.inputs) if const(i) is not None] if node is not None else []
    alone = all(any(n is u for u in users) for n, _ in value.uses()) and not value.is_graph_output()
    if node is not None and alone and len(node.inputs) == 2 and len(constants) == 1 and node.op_type in ("Min", "Max", "Mul"):
        other = node.inputs[1 - constants[0]]
        assert other is not None
        if node.op_type == "Mul":
            _replace(graph, node, constants[0], lambda c: c / scale)
            return
        _replace(graph, node, constants[0], lambda c: c / scale)
        _divide_entry(graph, other, scale, [node])
        return
    factor = add_constant(graph, f"{value.name}.column_scale", (1 / scale).astype(np.float32))
    mul = new_node(graph, "Mul", [value, factor], f"{value.name}.equalize", out=f"{value.name}.equalized")
    if node is None:
        graph.insert_before(graph[0], mul)
    else:
        graph.insert_after(node, mul)
    for user, index in list(value.uses()):
        if any(user is u for u in users):
            user.replace_input_with(index, mul.outputs[0])
