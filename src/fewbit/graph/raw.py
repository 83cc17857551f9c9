"""A graph that takes raw sensor integers: its observation becomes float32(raw) * factor + offset, one factor a dimension.

What a sensor counts in (an encoder's ticks, an IMU's codes) is then a constant of the network; the caller's loop has no floats.
"""

import numpy as np
import onnx_ir as ir

from fewbit.errors import FewbitError
from fewbit.graph.edit import add_constant, fresh, new_node

TYPES = ("int8", "uint8", "int16", "uint16", "int32")


def take_integers(model: ir.Model, dtype: str, factor: np.ndarray, offset: np.ndarray | None = None) -> ir.Model:
    """A copy whose first input is integers of dtype. factor, offset: [observation's shape] or one number, finite."""
    if dtype not in TYPES:
        raise FewbitError(f"--raw {dtype} is no type of a sensor; choose one of {', '.join(TYPES)}")
    model = model.clone()
    graph = model.graph
    given = graph.inputs[0]
    shape = tuple(d for d in (given.shape or [])[1:] if isinstance(d, int))
    if given.dtype != ir.DataType.FLOAT:
        raise FewbitError(f"--raw: input {given.name} takes integers already")
    users, name = list(given.uses()), given.name or "observation"
    given.name = fresh(graph, f"{name}.replaced")
    value = ir.Value(name=name, shape=given.shape, type=ir.TensorType(ir.DataType.from_numpy(np.dtype(dtype))))
    steps = [new_node(graph, "Cast", [value], f"{name}.float", {"to": ir.DataType.FLOAT})]
    for op, array in (("Mul", factor), ("Add", offset)):
        if array is not None:
            constant = add_constant(graph, f"{name}.{op.lower()}", _fitting(array, shape, op))
            steps.append(new_node(graph, op, [steps[-1].outputs[0], constant], f"{name}.{op}"))
    for node in steps:
        node.outputs[0].shape, node.outputs[0].dtype = given.shape, ir.DataType.FLOAT
    graph.inputs[0] = value
    graph.insert_before(graph[0], steps)
    for node, index in users:
        node.replace_input_with(index, steps[-1].outputs[0])
    return model


def _fitting(array: np.ndarray, shape: tuple[int, ...], op: str) -> np.ndarray:
    what = "--raw-factors" if op == "Mul" else "--raw-offsets"
    array = np.asarray(array, np.float32)
    if array.size != 1 and array.shape != shape:
        raise FewbitError(f"{what} has shape {list(array.shape)}, the observation {list(shape)}")
    if not np.isfinite(array).all():
        raise FewbitError(f"{what} holds NaN or infinity")
    return array.reshape(()) if array.size == 1 else array
