"""What is to be quantized in a float graph: its layers, and the joins, where values that were computed or remembered meet.

A layer (Gemm, Conv) multiplies one value by constants. A join is a sum, difference or product of two live values, or a Concat one
of whose parts was computed: the gates of an LSTM or GRU, a residual. What lies between is a function of one value (elementwise).
"""

from dataclasses import dataclass

import onnx_ir as ir

from fewbit.errors import FewbitError
from fewbit.graph import metadata
from fewbit.graph.edit import const
from fewbit.graph.elementwise import Chain, chain
from fewbit.graph.fold_recurrent import GATES, refuse
from fewbit.graph.infer import is_float

LAYERS = {"Gemm", "Conv"}
CHOICES = {"ArgMax", "ArgMin"}  # what they give are numbers of elements, to which nothing is done in codes
MOVES = {"Identity", "Reshape", "Flatten", "Slice", "Split", "Transpose", "Squeeze", "Unsqueeze"}


@dataclass(frozen=True)
class Layer:
    """A Gemm or Conv; x: its input; source: the same before it was only moved about, where it is quantized; function: what made
    source from the value of a layer, join or state (None: no function of one value); entry: it depends on observations alone;
    wide: it is read at 16 bits, a Concat or a state."""

    node: ir.Node
    x: ir.Value
    source: ir.Value
    function: Chain | None
    entry: bool
    wide: bool


@dataclass(frozen=True)
class Shape:
    """A graph taken apart: layers and joins in order, the names of its state inputs, and of outputs by the input they become."""

    layers: list[Layer]
    joins: list[ir.Node]
    states: dict[str, str]

    def is_root(self, value: ir.Value) -> bool:
        """Is it what a layer or join made, or what was remembered, moved about or not?"""
        made = origin(value)
        producer = made.producer()
        return made.name in self.states or (producer is not None and (producer.op_type in LAYERS or producer in self.joins))


def origin(value: ir.Value) -> ir.Value:
    """The value before it was only moved about."""
    while (producer := value.producer()) is not None and producer.op_type in MOVES and producer.inputs[0] is not None:
        value = producer.inputs[0]
    return value


def readers(value: ir.Value) -> list[tuple[ir.Node | None, ir.Value]]:
    """(node, what it reads) of all that read the value, moved about or not; (None, it) where the graph gives it back."""
    found: list[tuple[ir.Node | None, ir.Value]] = []
    waiting = [value]
    while waiting:
        one = waiting.pop()
        found += [(None, one)] if one.is_graph_output() else []
        for node, index in one.uses():
            if node.op_type in MOVES and index == 0:
                waiting += node.outputs
            else:
                found.append((node, one))
    return found


def take_apart(model: ir.Model) -> Shape:
    """The graph's layers and joins; refuses a graph without a layer."""
    states = {s["input"]: s["output"] for s in metadata.state(model)}
    shape = Shape([], [], states)
    computed: set[ir.Value] = {v for v in model.graph.inputs if v.name in states}
    for node in model.graph:
        if node.op_type in GATES:
            refuse(node)
        if node.op_type in LAYERS:
            shape.layers.append(_layer(node, shape, computed))
            computed |= set(node.outputs)
        elif node.op_type not in CHOICES and any(i in computed for i in node.inputs):
            if _is_join(node, shape):
                shape.joins.append(node)
            computed |= set(node.outputs)
    if not shape.layers:
        raise FewbitError("the graph has no layer (Gemm, Conv, or MatMul with constant weights); nothing to quantize")
    return shape


def layers(model: ir.Model) -> list[Layer]:
    """The layers in order."""
    return take_apart(model).layers


def head(model: ir.Model) -> Layer:
    """The last layer on the way to the first output: others may make what is remembered."""
    leading: set[ir.Node] = set()
    waiting = [model.graph.outputs[0]]
    while waiting:
        node = waiting.pop().producer()
        if node is not None and node not in leading:
            leading.add(node)
            waiting += [i for i in node.inputs if i is not None]
    return [layer for layer in layers(model) if layer.node in leading][-1]


def _layer(node: ir.Node, shape: Shape, computed: set[ir.Value]) -> Layer:
    x = node.inputs[0]
    assert x is not None
    source = origin(x)
    wide = source.name in shape.states or source.producer() in shape.joins and source.producer().op_type == "Concat"  # type: ignore[union-attr]
    function = None if wide else chain(source, shape.is_root)
    return Layer(node, x, source, function, source not in computed and not wide, wide)


def _is_join(node: ir.Node, shape: Shape) -> bool:
    if not is_float(node.outputs[0]):
        return False  # indices and sizes stay what they are
    if node.op_type == "Concat":
        return True
    live = [i for i in node.inputs if i is not None and const(i) is None]
    return node.op_type in ("Add", "Sub", "Mul") and len(live) == 2 and chain(node.outputs[0], shape.is_root) is None
