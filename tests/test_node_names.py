"""Names of nodes are labels: where two are the same, or none is given, the network is read and every node is named."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import fewbit
from fewbit.graph import read

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 6)).astype(np.float32)


def network(names: list[str]) -> onnx.ModelProto:
    """Gemm, Tanh, Gemm with these names, over input x [n, 6]."""
    nodes = [
        helper.make_node("Gemm", ["x", "w0"], ["h"], names[0]),
        helper.make_node("Tanh", ["h"], ["t"], names[1]),
        helper.make_node("Gemm", ["t", "w1"], ["y"], names[2]),
    ]
    ends = [[helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", s])] for n, s in (("x", 6), ("y", 3))]
    sizes = {"w0": (6, 16), "w1": (16, 3)}
    constants = [numpy_helper.from_array(RNG.normal(size=s).astype(np.float32) / 4, k) for k, s in sizes.items()]
    graph = helper.make_graph(nodes, "g", *ends, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("names", [["node"] * 3, [""] * 3, ["", "h", "h"], ["y", "", "t"], ["h", "y", ""]])
def test_a_network_whose_nodes_share_names_or_have_none_is_quantized(names, tmp_path):
    proto = network(names)
    onnx.save(proto, tmp_path / "m.onnx")
    artifact = fewbit.quantize(tmp_path / "m.onnx", observations=X, scheme=fewbit.Scheme(method="rtn"))
    want = ReferenceEvaluator(proto).run(None, {"x": X})[0]
    for executor in ("native", "reference", "onnxruntime"):
        assert np.abs(fewbit.load(artifact.model, executor=executor)(X) - want).max() < 0.05 * np.ptp(want)
    assert artifact.record["verified"]["source"]["folded"] < 1e-5


def test_a_node_without_a_name_of_its_own_is_called_after_its_output():
    assert [n.name for n in read.prepare(network(["node", "node", "last"])).graph] == ["h", "t", "last"]
    assert [n.name for n in read.prepare(network(["", "", ""])).graph] == ["h", "t", "y"]
    assert [n.name for n in read.prepare(network(["t", "", ""])).graph] == ["t", "t_1", "y"]


def test_nodes_inside_a_branch_are_named_too():
    """If whose branches each hold a node that is called as one outside is."""
    proto = network(["node", "node", "node"])
    outs = [helper.make_tensor_value_info("chosen.inside", TensorProto.FLOAT, ["batch", 16])]
    branches = [
        helper.make_graph([helper.make_node(op, ["t"], ["chosen.inside"], "node")], op, [], outs) for op in ("Abs", "Neg")
    ]
    nodes = [*proto.graph.node]
    choose = helper.make_node("If", ["yes"], ["chosen"], "node", then_branch=branches[0], else_branch=branches[1])
    nodes[2].input[0] = "chosen"
    del proto.graph.node[:]
    proto.graph.node.extend([*nodes[:2], choose, nodes[2]])
    proto.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    names = [n.name for n in read.prepare(proto).graph.all_nodes()]
    assert len(names) == 6 and sorted(set(names)) == sorted(names)
