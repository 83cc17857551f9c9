"""Write a float graph as the QDQ artifact of docs/semantics.md ("The artifact").

Three decisions a tensor: the entry is 16 bits with one power-of-two scale (S1); what follows a ReLU is uint8 with zero
point 0 and the ReLU is its saturation (S4); every other function of one value gets 16 bits in and 8 out (S6).
"""

from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_ir as ir

from fewbit import solvers
from fewbit.errors import FewbitError
from fewbit.graph.elementwise import Chain, chain
from fewbit.graph.fold import add_constant, const, remove_unused
from fewbit.numerics import affine, semantics
from fewbit.numerics.formats import INTEGERS, IntFormat
from fewbit.numerics.ranges import Estimator
from fewbit.solvers import clip, rtn
from fewbit.solvers.statistics import Statistics

SQUASHING = {"Tanh", "Sigmoid"}


@dataclass(frozen=True)
class Scheme:
    """What was chosen: formats of weights, hidden activations and observations, the method (solvers), layers apart from it."""

    weights: str = "int8"
    activations: str = "uint8"
    inputs: str = "int16"
    method: str = "rtn"
    ranges: str = "minmax"  # of hidden activations: numerics/ranges
    layers: tuple[tuple[str, str], ...] = ()  # (name of the Gemm, format of its weights)


@dataclass(frozen=True)
class Layer:
    """A dense layer, what computes its input from the layer before (None: the entry), and the input's value."""

    gemm: ir.Node
    x: ir.Value
    function: Chain | None
    entry: bool


def layers(model: ir.Model) -> list[Layer]:
    """The dense layers in order; refuses a graph that has none."""
    found = []
    for node in model.graph:
        if node.op_type == "Gemm":
            x = node.inputs[0]
            assert x is not None
            found.append(Layer(node, x, chain(x, _is_gemm), not _depends_on_gemm(x)))
    if not found:
        raise FewbitError("the graph has no dense layer (Gemm or MatMul with constant weights); nothing to quantize")
    return found


def _is_gemm(value: ir.Value) -> bool:
    producer = value.producer()
    return producer is not None and producer.op_type == "Gemm"


def _depends_on_gemm(value: ir.Value) -> bool:
    producer = value.producer()
    return producer is not None and (
        producer.op_type == "Gemm" or any(_depends_on_gemm(i) for i in producer.inputs if i is not None)
    )


def tensors(model: ir.Model) -> tuple[list[str], list[str]]:
    """Names of the tensors whose ranges, and of those whose Statistics `write` needs."""
    inputs = [layer.x.name or "" for layer in layers(model)]
    return inputs + [layer.gemm.outputs[0].name or "" for layer in layers(model)], inputs


def _insert(graph: ir.Graph, value: ir.Value, scale: np.float32, zero: int, fmt: IntFormat, users: list) -> None:
    """QuantizeLinear, DequantizeLinear between value and the given (node, index) uses."""
    stem = value.name
    s = add_constant(graph, f"{stem}.scale", np.asarray(scale, np.float32))
    z = add_constant(graph, f"{stem}.zero_point", np.asarray(zero, fmt.dtype))
    q = ir.node("QuantizeLinear", [value, s, z], name=f"{stem}.quantize")
    d = ir.node("DequantizeLinear", [q.outputs[0], s, z], name=f"{stem}.dequantize")
    q.outputs[0].name, d.outputs[0].name = f"{stem}.codes", f"{stem}.dequantized"
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], [q, d])
    else:
        graph.insert_after(producer, [q, d])
    for node, index in users:
        node.replace_input_with(index, d.outputs[0])
    for k, out in enumerate(graph.outputs):
        if out is value:
            value.name, d.outputs[0].name = f"{stem}.float", stem
            d.outputs[0].shape, d.outputs[0].dtype = value.shape, value.dtype or ir.DataType.FLOAT
            graph.outputs[k] = d.outputs[0]


def write(
    model: ir.Model, ranges: dict[str, Estimator], scheme: Scheme, statistics: dict[str, Statistics] | None = None
) -> ir.Model:
    """Quantize model in place and return it. ranges, statistics: of the names that `tensors` gave."""
    graph, todo = model.graph, layers(model)
    scales: dict[int, np.float32] = {}
    done: dict[ir.Value, np.float32] = {}
    squash_exit = _exit_function(graph)
    names = {id(layer): layer.x.name or "" for layer in todo}
    for layer in todo:
        if layer.x not in done:
            done[layer.x] = _quantize_input(graph, layer, ranges, scheme, done)
        scales[id(layer)] = done[layer.x]
    if squash_exit is not None:
        end, function = squash_exit
        _quantize_root(graph, function, ranges, done)
        _insert(graph, end, np.float32(2.0**-15), 0, INTEGERS["int16"], list(end.uses()))
    formats, seen = dict(scheme.layers), statistics or {}
    for layer in todo:
        fmt = INTEGERS[formats.get(layer.gemm.name or "", scheme.weights)]
        _quantize_weight(graph, layer.gemm, scales[id(layer)], fmt, scheme.method, seen.get(names[id(layer)]))
    remove_unused(graph)
    return model


def _exit_function(graph: ir.Graph) -> tuple[ir.Value, Chain] | None:
    """The squashing after the last layer, if any: (its output, the function)."""
    for node in reversed(list(graph)):
        if node.op_type in SQUASHING:
            end = node.outputs[0]
            function = chain(end, _is_gemm)
            if function is not None and not any(_reaches_gemm(u) for u, _ in end.uses()):
                return end, function
    return None


def _reaches_gemm(node: ir.Node) -> bool:
    return node.op_type == "Gemm" or any(_reaches_gemm(u) for o in node.outputs for u, _ in o.uses())


def _quantize_root(graph: ir.Graph, function: Chain, ranges: dict[str, Estimator], done: dict) -> None:
    """16 bits before a function of one value: 2^-12 before a squashing (S6), the calibrated range otherwise."""
    if function.root in done:
        return
    fmt, first = INTEGERS["int16"], function.nodes[0].op_type
    high = ranges[function.root.name or ""].range(fmt, True)[1]
    plain = all(n.op_type in SQUASHING | {"Clip"} for n in function.nodes) or first == "Clip"
    scale = np.float32(2.0**-12) if plain else affine.power_of_two_scale(1.25 * high, fmt)
    done[function.root] = scale
    _insert(graph, function.root, scale, 0, fmt, list(function.root.uses()))


def _quantize_input(graph: ir.Graph, layer: Layer, ranges: dict[str, Estimator], scheme: Scheme, done: dict) -> np.float32:
    """Quantize a layer's input for all the layers that share it; the scale."""
    estimator = ranges[layer.x.name or ""]
    users = [(n, i) for n, i in layer.x.uses() if n.op_type == "Gemm"]
    if layer.entry:
        fmt = INTEGERS[scheme.inputs]
        scale = affine.power_of_two_scale(2 * estimator.range(fmt, True)[1], fmt)  # unseen states reach twice as far
        _insert(graph, layer.x, scale, 0, fmt, users)
        return scale
    function = layer.function
    if function is not None and [n.op_type for n in function.nodes] == ["Relu"]:
        relu = function.nodes[0]
        if scheme.activations.startswith("uint"):
            high = estimator.range(INTEGERS[scheme.activations], False)[1]
            scale = np.float32(affine.asymmetric_scale(0.0, high, INTEGERS[scheme.activations])[0])
            _insert(graph, function.root, scale, 0, INTEGERS[scheme.activations], users)
            if not relu.outputs[0].uses():
                graph.remove(relu, safe=True)
            return scale
    if function is not None and function.nodes:
        _quantize_root(graph, function, ranges, done)
    signed = INTEGERS[scheme.activations.removeprefix("u")]
    if function is not None and function.nodes and function.nodes[-1].op_type == "Tanh" and signed.bits == 8:
        scale, zero = np.float32(2.0**-7), 0
    else:
        found = affine.asymmetric_scale(*estimator.range(signed, False), signed)
        scale, zero = np.float32(found[0]), int(found[1])
    _insert(graph, layer.x, scale, zero, signed, users)
    return scale


def _quantize_weight(
    graph: ir.Graph, gemm: ir.Node, scale_input: np.float32, fmt: IntFormat, method: str, statistics: Statistics | None
) -> None:
    weight, bias = const(gemm.inputs[1]), const(gemm.inputs[2])
    if weight is None or bias is None:
        raise FewbitError(f"node {gemm.name}: a weight that is computed at run time cannot be quantized")
    stem = (gemm.inputs[1].name or gemm.name) if gemm.inputs[1] is not None else gemm.name
    affine.check_finite(weight, f"weight {stem}")
    chosen = solvers.method(method)
    clipped = chosen.clip and statistics is not None
    scale = clip.channel_scale(weight, fmt, statistics) if clipped and statistics else rtn.channel_scale(weight, fmt)
    scale = semantics.raised_scale(bias, scale_input, scale)
    found = solvers.solve(chosen.solver, weight, scale, fmt, statistics)
    if chosen.bias and statistics is not None:
        lost = weight - found * scale.astype(np.float64)[:, None]
        bias = (bias + lost @ statistics.mean).astype(np.float32)
    codes = semantics.bias_codes(bias, scale_input, scale)
    stored = found.astype(ml_dtypes.int4) if fmt.bits <= 4 else found  # ONNX packs two INT4 in a byte
    for index, array, s in ((1, stored, scale), (2, codes, (scale_input * scale).astype(np.float32))):
        kind = "weight" if index == 1 else "bias"
        d = ir.node(
            "DequantizeLinear",
            [add_constant(graph, f"{stem}.{kind}_codes", array), add_constant(graph, f"{stem}.{kind}_scale", s)],
            attributes={"axis": 0},
            name=f"{stem}.{kind}_dequantize",
        )
        d.outputs[0].name = f"{stem}.{kind}_dequantized"
        graph.insert_before(gemm, d)
        gemm.replace_input_with(index, d.outputs[0])
