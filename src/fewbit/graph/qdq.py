"""Write a float graph as the QDQ artifact of docs/semantics.md ("The artifact").

Three decisions a tensor: the entry is 16 bits with one power-of-two scale (S1); what follows a ReLU is uint8 with zero
point 0 and the ReLU is its saturation (S4); every other function of one value gets 16 bits in and 8 out (S6).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from fewbit.graph import wide
from fewbit.graph.edit import add_constant, const, new_node, remove_unused
from fewbit.graph.elementwise import Chain, chain
from fewbit.graph.layers import LAYERS, MOVES, Layer, origin, readers, take_apart
from fewbit.graph.pairs import hand_over, insert, repeat_behind_moves
from fewbit.graph.patches import Window, window
from fewbit.graph.weights import reads_bytes, write_weight
from fewbit.graph.wide import SQUASHING
from fewbit.numerics import affine
from fewbit.numerics.formats import INTEGERS, IntFormat
from fewbit.numerics.ranges import Estimator
from fewbit.solvers.statistics import Statistics

SATURATING = ("onnxruntime", "openvino")  # whose int8 kernels add two products in 16 bits on x86 without VNNI


@dataclass(frozen=True)
class Scheme:
    """What is asked for, and was chosen.

    Attributes:
        weights: int8, int6, int4, int3, int2, ternary, int16; float16 or bfloat16 (a cast); auto, with method auto.
        activations: of hidden layers: uint8 (behind a ReLU; int8 elsewhere), int8, uint16 or int16.
        inputs: observations: int16 or int8.
        method: auto (a search), qat, dynamic; or, joined by +, at most one of smooth, awq, cross_layer, then clip, bias, and one
            of rtn, gptq, adaround (fewbit.solvers).
        ranges: of hidden activations: minmax, moving_average, percentile, mse, entropy (numerics/ranges).
        layers: (name of a layer's node, format of its weights), for layers apart from the rest.
        target: any, or the runtime by whose rules it is written: onnxruntime, openvino, tensorrt.
    """

    weights: str = "int8"
    activations: str = "uint8"
    inputs: str = "int16"
    method: str = "rtn"
    ranges: str = "minmax"
    layers: tuple[tuple[str, str], ...] = ()
    target: str = "any"


def tensors(model: ir.Model) -> tuple[list[str], dict[str, Window | None]]:
    """Names of the tensors whose ranges, and of those whose Statistics `write` needs (of a Conv, seen through its window)."""
    shape = take_apart(model)
    inputs = {layer.x.name or "": _window(layer.node) for layer in shape.layers}
    sources = [layer.source.name or "" for layer in shape.layers]
    made = [layer.node.outputs[0].name or "" for layer in shape.layers]
    return [*sources, *made, *(v.name or "" for v in wide.values(model.graph, shape))], inputs


def _window(node: ir.Node) -> Window | None:
    if node.op_type != "Conv":
        return None
    weight = const(node.inputs[1])
    attributes = {k: a.as_string() if a.type == ir.AttributeType.STRING else a.value for k, a in node.attributes.items()}
    return None if weight is None else window(attributes, weight.shape[2:], node.name or "")


def write(
    model: ir.Model, ranges: dict[str, Estimator], scheme: Scheme, statistics: dict[str, Statistics] | None = None
) -> ir.Model:
    """Quantize model in place and return it. ranges, statistics: of the names that `tensors` gave."""
    graph, shape = model.graph, take_apart(model)
    widened = wide.plan(graph, shape, ranges)
    done: dict[Any, np.float32] = {w.value: w.scale for w in widened}
    squash_exit = _exit_function(graph, done)
    names = {id(layer): layer.x.name or "" for layer in shape.layers}
    read_scales = [_quantize_input(graph, layer, ranges, scheme, done) for layer in shape.layers]
    for one in widened:
        users = [u for u in one.value.uses() if u[0].op_type != "QuantizeLinear"]
        insert(graph, one.value, one.scale, 0, INTEGERS["int16"], users)
    if squash_exit is not None:
        end, function = squash_exit
        _quantize_root(graph, function, ranges, done)
        insert(graph, end, np.float32(2.0**-15), 0, INTEGERS["int16"], list(end.uses()))
    formats, seen = dict(scheme.layers), statistics or {}
    for layer, scale in zip(shape.layers, read_scales, strict=True):
        fmt = INTEGERS[formats.get(layer.node.name or "", scheme.weights)]
        if scheme.target != "any" and not reads_bytes(layer.node):
            fmt = INTEGERS["int16"]  # a layer that other runtimes run in float: as good as its own weights
        limited = scheme.target in SATURATING and fmt.bits <= 8 and reads_bytes(layer.node)
        write_weight(graph, layer.node, scale, fmt, scheme.method, limited, seen.get(names[id(layer)]))
    repeat_behind_moves(graph)
    remove_unused(graph)
    return model


def _exit_function(graph: ir.Graph, done: dict) -> tuple[ir.Value, Chain] | None:
    """The squashing after the last layer, if any: (its output, the function)."""
    for node in reversed(list(graph)):
        if node.op_type in SQUASHING and node.outputs[0] not in done:
            end = node.outputs[0]
            function = chain(end, _is_layer)
            if function is not None and not _reaches_layer(end):
                return end, function
    return None


def _is_layer(value: ir.Value) -> bool:
    producer = value.producer()
    return producer is not None and producer.op_type in LAYERS


def _reaches_layer(value: ir.Value) -> bool:
    waiting, seen = [value], {value}
    while waiting:
        users = [node for node, _ in waiting.pop().uses()]
        if any(node.op_type in LAYERS for node in users):
            return True
        new = [o for node in users for o in node.outputs if o not in seen]
        seen.update(new)
        waiting += new
    return False


def _quantize_root(graph: ir.Graph, function: Chain, ranges: dict[str, Estimator], done: dict) -> None:
    """16 bits before a function of one value: 2^-12 where its readers are flat beyond 8 (S6), the calibrated range otherwise."""
    root = origin(function.root)
    if root in done:
        return
    fmt = INTEGERS["int16"]
    high = wide.range_of(ranges[root.name or ""], fmt, True)[1]
    flat = all(_flat_beyond_8(node, value) or (node is None and value is root) for node, value in readers(root))
    scale = np.float32(2.0**-12) if flat else affine.power_of_two_scale(1.25 * high, fmt)
    done[root] = scale
    insert(
        graph, root, scale, 0, fmt, list(root.uses()), flat and root.is_graph_output()
    )  # the graph gives back what is not squashed yet


def _flat_beyond_8(node: ir.Node | None, x: ir.Value) -> bool:
    """Does the node make the same of everything above 8, and of everything below -8: a squashing, or a clip to less?"""
    if node is None or node.op_type != "Clip":
        return node is not None and node.op_type in SQUASHING
    limits = [const(i) for i in [*node.inputs[1:3], None, None][:2]]
    return node.inputs[0] is x and all(c is not None and c.size == 1 and abs(float(c.reshape(()))) < 8 for c in limits)


def _quantize_input(graph: ir.Graph, layer: Layer, ranges: dict[str, Estimator], scheme: Scheme, done: dict) -> np.float32:
    """Quantize a layer's input for all the layers that share it; the scale."""
    source = layer.source
    if layer.wide or (layer.entry and source in done):
        return done[source]
    key = (source, "layers")
    if key not in done:
        done[key] = _input_scale(graph, layer, ranges, scheme, done)
    return done[key]


def _input_scale(graph: ir.Graph, layer: Layer, ranges: dict[str, Estimator], scheme: Scheme, done: dict) -> np.float32:
    source = layer.source
    estimator = ranges[source.name or ""]
    users = [(n, i) for n, i in source.uses() if n.op_type in LAYERS | MOVES]
    if layer.entry:
        pixels = _pixels(source)
        if pixels is not None:
            _read_pixels(graph, *pixels, users)
            return pixels[1]
        fmt = INTEGERS[scheme.inputs]
        scale = affine.power_of_two_scale(2 * wide.range_of(estimator, fmt, True)[1], fmt)  # unseen states reach twice as far
        insert(graph, source, scale, 0, fmt, users)
        return scale
    function = layer.function
    if function is not None and [n.op_type for n in function.nodes] == ["Relu"]:
        relu = function.nodes[0]
        if scheme.activations.startswith("uint"):
            high = wide.range_of(estimator, INTEGERS[scheme.activations], False)[1]
            scale = np.float32(affine.asymmetric_scale(0.0, high, INTEGERS[scheme.activations])[0])
            reading = _saturated(graph, function.root, relu, scale, INTEGERS[scheme.activations], users, done)
            if relu.outputs[0] not in done:
                hand_over(graph, relu.outputs[0], reading)
                if not relu.outputs[0].uses():
                    graph.remove(relu, safe=True)
            return scale
    if function is not None and function.nodes and origin(function.root) not in done:
        _quantize_root(graph, function, ranges, done)
    signed = INTEGERS[scheme.activations.removeprefix("u")]
    if function is not None and function.nodes and function.nodes[-1].op_type == "Tanh" and signed.bits == 8:
        scale, zero = np.float32(2.0**-7), 0
    else:
        found = affine.asymmetric_scale(*wide.range_of(estimator, signed, False), signed)
        scale, zero = np.float32(found[0]), int(found[1])
    insert(graph, source, scale, zero, signed, users, source in done)
    return scale


def _saturated(
    graph: ir.Graph,
    root: ir.Value,
    relu: ir.Node,
    scale: np.float32,
    fmt: IntFormat,
    users: list[tuple[ir.Node, int]],
    done: dict,
) -> ir.Value:
    """The reading of root's codes, none of them below zero (S4), given to users; quantized before it is moved where that does."""
    made = origin(root)
    if made is not root and made not in done and [node for node, _ in readers(made)] == [relu]:
        insert(graph, made, scale, 0, fmt, list(made.uses()))
        for node, index in users:
            node.replace_input_with(index, root)
        return root
    beside = root in done or root.is_graph_output()  # which gives what stands before the ReLU
    return insert(graph, root, scale, 0, fmt, users, beside)


def _pixels(source: ir.Value) -> tuple[ir.Value, np.float32] | None:
    """The image and what one of its steps is worth, where source is an 8-bit input divided by (or times) a constant."""
    node = source.producer()
    if node is None or node.op_type not in ("Div", "Mul") or node.inputs[0] is None:
        return None
    factor, cast = const(node.inputs[1]), node.inputs[0].producer()
    image = cast.inputs[0] if cast is not None and cast.op_type == "Cast" else None
    if factor is None or factor.size != 1 or image is None or not image.is_graph_input() or image.dtype != ir.DataType.UINT8:
        return None
    worth = float(factor.reshape(()))
    return image, np.float32(1 / worth if node.op_type == "Div" else worth)


def _read_pixels(graph: ir.Graph, image: ir.Value, scale: np.float32, users: list[tuple[ir.Node, int]]) -> None:
    """An 8-bit image is codes already: nothing is cast, divided and rounded, its steps are read."""
    s = add_constant(graph, f"{image.name}.scale", np.asarray(scale, np.float32))
    z = add_constant(graph, f"{image.name}.zero_point", np.asarray(0, np.uint8))
    d = new_node(graph, "DequantizeLinear", [image, s, z], f"{image.name}.dequantize", out=f"{image.name}.dequantized")
    graph.insert_before(graph[0], d)
    for node, index in users:
        node.replace_input_with(index, d.outputs[0])
