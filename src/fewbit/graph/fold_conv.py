"""Convolutions and pools of one kind: pads written as numbers, groups of a Conv as one kernel with zeros between them."""

import numpy as np
import onnx_ir as ir

from fewbit.errors import FewbitError
from fewbit.graph.edit import add_constant, const
from fewbit.graph.infer import size

WINDOWED = ("Conv", "MaxPool", "AveragePool", "LpPool")
MOST = 1 << 22  # weights of a kernel whose groups were few and large enough to be written so


def fold_conv(graph: ir.Graph) -> bool:
    """Pads in numbers, and every Conv of constant weights with one group. True where something changed."""
    changed = [_explicit_pads(node) for node in graph if node.op_type in WINDOWED]
    return any(changed + [_one_group(graph, node) for node in list(graph) if node.op_type == "Conv"])


def refuse_conv(node: ir.Node) -> None:
    """Refuse a Conv that could not be written so, by what keeps it from it."""
    if node.op_type != "Conv" or node.domain not in ("", "ai.onnx"):
        return
    weight, groups = const(node.inputs[1]), _number(node, "group", 1)
    if groups > 1 and weight is not None:
        raise FewbitError(
            f"node {node.name}: a Conv of {groups} groups run as one group, of {weight.size * groups:,} weights, is too large; "
            "export it without groups"
        )
    if (word := _auto_pad(node)).startswith("SAME"):
        what = f"a Conv with auto_pad {word} of an image whose size is not fixed"
        raise FewbitError(f"node {node.name}: {what}; export it with a fixed size, or with explicit pads")


def _explicit_pads(node: ir.Node) -> bool:
    """auto_pad in numbers, as ONNX defines them: as many positions as the image is strides long, whatever ceil_mode says."""
    word, x = _auto_pad(node), node.inputs[0]
    kernel = _kernel(node)
    if word == "NOTSET" or not kernel:
        return False
    count = len(kernel)
    images = [size(x, k + 2) for k in range(count)]
    if word != "VALID" and None in images:
        return False
    strides, dilations = (_numbers(node, name, count) for name in ("strides", "dilations"))
    pads = [0] * (2 * count)
    for k, (image, stride, dilation) in enumerate(zip(images, strides, dilations, strict=True)):
        if word == "VALID" or image is None:
            continue
        span = (kernel[k] - 1) * dilation + 1
        missing = (-(-image // stride) - 1) * stride + span - image
        if missing < 0 and node.op_type != "Conv":
            raise FewbitError(
                f"node {node.name}: a {node.op_type} with auto_pad {word} whose strides are longer than its kernel is read in "
                "two ways by runtimes; export it with explicit pads"
            )
        missing = max(missing, 0)
        less = missing // 2
        pads[k], pads[count + k] = (less, missing - less) if word == "SAME_UPPER" else (missing - less, less)
    del node.attributes["auto_pad"]
    node.attributes.pop("ceil_mode", None)
    node.attributes["pads"] = ir.AttrInt64s("pads", pads)
    return True


def _kernel(node: ir.Node) -> tuple[int, ...]:
    """Sizes of the window; () where they are not known."""
    if node.op_type != "Conv":
        return tuple(node.attributes["kernel_shape"].value) if "kernel_shape" in node.attributes else ()
    weight = const(node.inputs[1])
    return () if weight is None else weight.shape[2:]


def _one_group(graph: ir.Graph, node: ir.Node) -> bool:
    """Kernels [out, in / groups, ...] of several groups, each at its own channels of [out, in, ...]."""
    value, groups = node.inputs[1], _number(node, "group", 1)
    weight = const(value)
    if groups == 1 or weight is None or value is None or weight.size * groups > MOST:
        return False
    rows, channels = len(weight) // groups, weight.shape[1]
    dense = np.zeros((len(weight), channels * groups, *weight.shape[2:]), weight.dtype)
    for k in range(groups):
        own = slice(k * rows, (k + 1) * rows)
        dense[own, k * channels : (k + 1) * channels] = weight[own]
    node.replace_input_with(1, add_constant(graph, f"{value.name}.one_group", dense))
    del node.attributes["group"]
    return True


def _auto_pad(node: ir.Node) -> str:
    return node.attributes["auto_pad"].as_string() if "auto_pad" in node.attributes else "NOTSET"


def _number(node: ir.Node, name: str, default: int) -> int:
    return int(node.attributes[name].value) if name in node.attributes else default


def _numbers(node: ir.Node, name: str, count: int) -> list[int]:
    return list(node.attributes[name].value) if name in node.attributes else [1] * count
