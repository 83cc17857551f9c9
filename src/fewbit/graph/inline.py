"""What a file writes in a roundabout way, plainly: local functions, defaults among inputs, absent arguments, CastLike, names."""

import itertools
from collections import Counter
from collections.abc import Iterator

import onnx
import onnx.shape_inference
from onnx import inliner

from fewbit.errors import FewbitError, first_line


def inline(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same network without local functions, initializers among its inputs, or empty names at the end of a node's arguments.

    Raises:
        FewbitError: a local function cannot be inlined; it is named.
    """
    if proto.functions:
        names = ", ".join(f"{f.domain}.{f.name}" for f in proto.functions[:4])
        try:
            proto = inliner.inline_local_functions(proto, convert_version=True)
        except Exception as e:
            raise FewbitError(
                f"its local functions ({names}) cannot be inlined: {first_line(e)}; export it without them"
            ) from None
    _drop_defaults(proto.graph)
    _drop_absent(proto.graph)
    return proto


def _drop_defaults(graph: onnx.GraphProto) -> None:
    """IR 3 lists every initializer among the inputs, as the default of one that nobody has to feed."""
    constants = {t.name for t in graph.initializer}
    kept = [v for v in graph.input if v.name not in constants]
    del graph.input[:]
    graph.input.extend(kept)


def _drop_absent(graph: onnx.GraphProto) -> None:
    """An optional argument may be absent at the end of the list, or be written there as an empty name."""
    for node in graph.node:
        while node.input and not node.input[-1]:
            del node.input[-1]
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                _drop_absent(inner)


def name_nodes(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same whose nodes each have a name of their own: one that has none, or another's, is called after its first output.

    Names are labels, of which ONNX demands nothing; but ONNX Runtime refuses one that is there twice, and messages name nodes.
    """
    nodes = list(_nodes(proto.graph))
    count = Counter(node.name for node in nodes)
    taken = {name for name, times in count.items() if times == 1}
    for node in nodes:
        if count[node.name] == 1 and node.name:
            continue
        stem = next((o for o in node.output if o), node.op_type)
        numbered = (f"{stem}_{k}" for k in itertools.count(1))
        node.name = next(name for name in itertools.chain([stem], numbered) if name not in taken)
        taken.add(node.name)
    return proto


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The graph's and those of the graphs inside them."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from _nodes(inner)


def cast_plainly(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same with each CastLike as a Cast to the type that the other tensor has, where shape inference knows it."""
    if not any(n.op_type == "CastLike" for n in proto.graph.node):
        return proto
    graph = onnx.shape_inference.infer_shapes(proto).graph
    types = {v.name: v.type.tensor_type.elem_type for v in [*graph.input, *graph.output, *graph.value_info]}
    types |= {t.name: t.data_type for t in graph.initializer}
    for node in proto.graph.node:
        if node.op_type == "CastLike" and types.get(node.input[1]):
            node.op_type = "Cast"
            node.attribute.append(onnx.helper.make_attribute("to", types[node.input[1]]))
            del node.input[1]
    return proto
