"""An If whose condition is a constant is one of its branches: how exporters write Squeezes and checks of known sizes."""

import onnx_ir as ir

from fewbit.graph.edit import const


def take_branches(graph: ir.Graph) -> bool:
    """Put the branch that is taken in each such node's place. True where something changed."""
    return any([_take(graph, node) for node in list(graph) if node.op_type == "If"])


def _take(graph: ir.Graph, node: ir.Node) -> bool:
    condition = const(node.inputs[0])
    if condition is None:
        return False
    branch = node.attributes["then_branch" if condition.reshape(-1)[0] else "else_branch"].as_graph()
    stem = node.name or node.outputs[0].name or "if"
    for name, value in list(branch.initializers.items()):
        del branch.initializers[name]
        value.name = f"{stem}.{name}"
        graph.register_initializer(value)
    made, nodes = list(branch.outputs), list(branch)
    branch.outputs.clear()
    branch.remove(nodes)
    for inner in nodes:
        inner.name = f"{stem}.{inner.name or inner.op_type}"
        for value in inner.outputs:
            value.name = f"{stem}.{value.name}" if value.name else value.name
    graph.insert_before(node, nodes)
    for old, new in zip(node.outputs, made, strict=True):
        _hand_over(graph, node, old, new)
    graph.remove(node, safe=True)
    return True


def _hand_over(graph: ir.Graph, node: ir.Node, old: ir.Value, new: ir.Value) -> None:
    """Every use of old reads new; a graph output keeps its name."""
    if old in graph.outputs:
        same = ir.node("Identity", [new], name=f"{old.name}.taken")
        graph.insert_before(node, same)
        made = same.outputs[0]
        made.name, old.name = old.name, f"{old.name}.if"
        made.shape, made.type = old.shape, old.type
        for k, out in enumerate(graph.outputs):
            if out is old:
                graph.outputs[k] = made
        new = made
    for user, index in list(old.uses()):
        user.replace_input_with(index, new)
