"""Some nodes of a graph put into a model-local function, as torch's dynamo exporter and jax2onnx write modules."""

import numpy as np
import onnx
from onnx import helper


def wrap(model: onnx.ModelProto, rng: np.random.Generator) -> onnx.ModelProto:
    """The same network, a run of its nodes a call of a function of its own domain; an attribute of it perhaps the function's."""
    nodes = list(model.graph.node)
    start = int(rng.integers(len(nodes)))
    inside = nodes[start : start + int(rng.integers(1, 4))]
    made = [o for n in inside for o in n.output if o]
    used = list(dict.fromkeys(i for n in inside for i in n.input if i and i not in made))
    after = [i for n in nodes[start + len(inside) :] for i in n.input] + [o.name for o in model.graph.output]
    given = [o for o in made if o in after]
    if not given or not used:
        return model
    opset = model.opset_import[0].version
    body, attributes = [], {}
    for node in inside:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        for a in copy.attribute:
            if a.type == onnx.AttributeProto.FLOAT and not attributes and rng.random() < 0.5:
                attributes["strength"] = a.f
                reference = onnx.AttributeProto(name=a.name, type=a.type, ref_attr_name="strength")
                a.CopyFrom(reference)
        body.append(copy)
    domain = ["pkg.module", "local", "com.custom"][int(rng.integers(3))]
    imports = [helper.make_opsetid("", opset)]
    function = helper.make_function(domain, "Block", used, given, body, imports, list(attributes))
    call = helper.make_node("Block", used, given, name=inside[0].name, domain=domain, **attributes)
    del model.graph.node[:]
    model.graph.node.extend([*nodes[:start], call, *nodes[start + len(inside) :]])
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid(domain, 1))
    model.ir_version = max(model.ir_version, 8)
    return model
