"""What can be computed before the network runs is: nodes of constants, and what passes a value on as it is."""

import math

import numpy as np
import onnx
import onnx.shape_inference
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from fewbit.errors import FewbitError, first_line
from fewbit.graph import read
from fewbit.graph.edit import add_constant, const, label, replace_node, replace_value

RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}
_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
_LEFT = RANDOM | {"QuantizeLinear", "DequantizeLinear", "Dropout", "BatchNormalization"}


def fold_constants(graph: ir.Graph) -> bool:
    """One pass over the graph, in place; True where something changed."""
    return any([_identity(graph, node) or _constant(graph, node) for node in list(graph)])


def refuse_random(node: ir.Node) -> None:
    """What draws numbers, or is still being trained: no artifact could be compared with such a network, or be it."""
    name = node.name or node.outputs[0].name
    if node.op_type in RANDOM and node.domain == "":
        raise FewbitError(f"node {name}: {node.op_type} draws random numbers; export the policy's deterministic action")
    training = node.op_type == "BatchNormalization" and _flag(node)
    if node.domain == "" and (training or node.op_type == "Dropout"):
        raise FewbitError(f"node {name}: {node.op_type} in training mode; call eval() before the export, and export it again")


def _flag(node: ir.Node) -> bool:
    return "training_mode" in node.attributes and node.attributes["training_mode"].value != 0


def _identity(graph: ir.Graph, node: ir.Node) -> bool:
    x, out = node.inputs[0] if node.inputs else None, node.outputs[0]
    if x is None or node.domain or out.is_graph_output():
        return False
    if node.op_type == "Dropout":
        mode = node.inputs[2] if len(node.inputs) > 2 else None
        still = const(mode)
        if (mode is not None and still is None) or (still is not None and still.any()):
            return False
        if any(o.uses() or o.is_graph_output() for o in node.outputs[1:]):
            return False
    elif node.op_type != "Identity":
        return False
    replace_node(graph, node, x)
    return True


def _constant(graph: ir.Graph, node: ir.Node) -> bool:
    if node.domain or node.op_type in _LEFT or (node.op_type == "Identity" and node.outputs[0].is_graph_output()):
        return False
    if any(a.type in _GRAPHS for a in node.attributes.values()):
        return False
    if any(i is not None and const(i) is None for i in node.inputs):
        return False
    results = _computed(node)
    if not all(isinstance(r, np.ndarray | np.generic) for r in results):
        return False  # a sequence, which no initializer holds
    for out, result in zip([o for o in node.outputs if o.name], results, strict=True):
        replace_value(graph, out, add_constant(graph, f"{out.name}.const", np.asarray(result)))
    graph.remove(node, safe=True)
    return True


def _computed(node: ir.Node) -> list[np.ndarray]:
    """The node's outputs; refused before they are made where one is far larger than any network's, whatever the file says."""
    feeds = {i.name or "": a for i in node.inputs if i is not None and (a := const(i)) is not None}
    kind = onnx.helper.np_dtype_to_tensor_dtype
    inputs = [onnx.helper.make_tensor_value_info(n, kind(a.dtype), a.shape) for n, a in feeds.items()]
    numbers = [onnx.numpy_helper.from_array(a, n) for n, a in feeds.items() if a.size <= 16]  # shapes, counts, ends
    outs = [onnx.helper.make_empty_tensor_value_info(o.name) for o in node.outputs if o.name]
    graph = onnx.helper.make_graph([ir.to_proto(node)], "one", inputs, outs, numbers)
    one = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", read.OPSET)])
    try:
        for out in onnx.shape_inference.infer_shapes(one, data_prop=True).graph.output:
            count = math.prod(d.dim_value for d in out.type.tensor_type.shape.dim)
            if count > read.MAX_ELEMENTS:
                raise FewbitError(f"node {label(node)} ({node.op_type}) makes a constant of {count} elements; export it again")
        return list(ReferenceEvaluator(one).run(None, feeds))
    except FewbitError:
        raise
    except Exception as e:
        raise FewbitError(f"node {label(node)} ({node.op_type}) cannot be computed ({first_line(e)}); export it again") from None
