"""A network that was exported with a batch of fixed size is read with any, row by row the same; or refused with what to do."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import fewbit
from fewbit.engine.load import load
from fewbit.errors import FewbitError
from fewbit.graph.read import read

RNG = np.random.default_rng(0)


def value(name: str, shape: list) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def model(nodes: list, given: list, made: list, **constants: np.ndarray) -> onnx.ModelProto:
    held = [numpy_helper.from_array(np.asarray(a), k) for k, a in constants.items()]
    graph = helper.make_graph(nodes, "g", given, made, held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def weight(*shape: int) -> np.ndarray:
    return (RNG.normal(size=shape) / 3).astype(np.float32)


def numbers(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def rows_agree(proto: onnx.ModelProto, path, batch: int = 1) -> None:
    """Seven rows at once give what each gives in the file's own batch."""
    onnx.save(proto, path)
    shape = [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim]
    x = RNG.normal(size=(7 * batch, *shape[1:])).astype(np.float32)
    run = ReferenceEvaluator(proto).run
    want = np.concatenate([np.reshape(run(None, {"x": x[k : k + batch]})[0], (batch, -1)) for k in range(0, len(x), batch)])
    got = load(read(path), "onnxruntime")(x)
    assert np.abs(got.reshape(len(x), -1) - want).max() < 1e-5


def test_a_flattened_image(tmp_path):
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"]),
        helper.make_node("Reshape", ["c", "s"], ["f"]),
        helper.make_node("Gemm", ["f", "w"], ["y"], transB=1),
    ]
    k, w = weight(4, 2, 3, 3), weight(3, 64)
    for batch in (1, 5):
        ends = [value("x", [batch, 2, 6, 6])], [value("y", [batch, 3])]
        rows_agree(model(nodes, *ends, k=k, w=w, s=numbers(batch, 64)), tmp_path / "m.onnx", batch)
        rows_agree(model(nodes, *ends, k=k, w=w, s=numbers(batch, -1)), tmp_path / "m.onnx", batch)


def test_attention_whose_batch_lies_between_tokens_and_heads(tmp_path):
    """As torch writes MultiheadAttention: the batch first, second, and merged with the heads."""
    heads = [helper.make_node("Reshape", [f"p{k}", "heads"], [f"h{k}"]) for k in range(3)]
    heads += [helper.make_node("Transpose", [f"h{k}"], [f"t{k}"], perm=[1, 2, 0] if k == 1 else [1, 0, 2]) for k in range(3)]
    nodes = [
        helper.make_node("Reshape", ["x", "tokens"], ["a"]),
        helper.make_node("Transpose", ["a"], ["b"], perm=[1, 0, 2]),
        *(helper.make_node("MatMul", ["b", f"w{k}"], [f"p{k}"]) for k in range(3)),
        *heads,
        helper.make_node("MatMul", ["t0", "t1"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["shares"], axis=-1),
        helper.make_node("MatMul", ["shares", "t2"], ["mixed"]),
        helper.make_node("Transpose", ["mixed"], ["back"], perm=[1, 0, 2]),
        helper.make_node("Reshape", ["back", "rows"], ["r"]),
        helper.make_node("Gemm", ["r", "wo"], ["o"]),
        helper.make_node("Reshape", ["o", "again"], ["q"]),
        helper.make_node("Transpose", ["q"], ["z"], perm=[1, 0, 2]),
        helper.make_node("Reshape", ["z", "flat"], ["y"]),
    ]
    sizes = dict(tokens=numbers(1, 3, 8), heads=numbers(3, 2, 4), rows=numbers(3, 8), again=numbers(3, 1, 8), flat=numbers(1, -1))
    weights = {f"w{k}": weight(8, 8) for k in range(3)} | {"wo": weight(8, 8)}
    rows_agree(model(nodes, [value("x", [1, 24])], [value("y", [1, 24])], **sizes, **weights), tmp_path / "m.onnx")


def test_squeezes_that_meant_another_axis_or_the_batch(tmp_path):
    """Without axes, a Squeeze takes the batch of one away too."""
    middle = [
        helper.make_node("Unsqueeze", ["x", "one"], ["u"]),
        helper.make_node("Squeeze", ["u"], ["s"]),
        helper.make_node("MatMul", ["s", "w"], ["y"]),
    ]
    rows_agree(model(middle, [value("x", [1, 6])], [value("y", [3])], one=numbers(1), w=weight(6, 3)), tmp_path / "a.onnx")
    last = [helper.make_node("MatMul", ["x", "w"], ["z"]), helper.make_node("Squeeze", ["z", "zero"], ["y"])]
    rows_agree(model(last, [value("x", [1, 6])], [value("y", [3])], zero=numbers(0), w=weight(6, 3)), tmp_path / "b.onnx")


@pytest.mark.parametrize("op", ["ReduceMean", "Gather", "Softmax"])
def test_rows_that_are_mixed_are_refused_and_told_how_to_export(op, tmp_path):
    """In a batch of one nothing shows it: a mean over the batch, the first row alone."""
    if op == "ReduceMean":
        node = helper.make_node(op, ["x"], ["r"], axes=[0], keepdims=1)
    elif op == "Gather":
        node = helper.make_node(op, ["x", "zeros"], ["r"], axis=0)
    else:
        node = helper.make_node(op, ["x"], ["r"], axis=0)
    nodes = [node, helper.make_node("MatMul", ["r", "w"], ["y"])]
    if op == "Softmax":
        nodes.insert(1, helper.make_node("Mul", ["r", "x"], ["r2"]))
        nodes[2].input[0] = "r2"
    constants = {"w": weight(6, 3), "zeros": numbers(0)}
    onnx.save(model(nodes, [value("x", [1, 6])], [value("y", [1, 3])], **constants), tmp_path / "m.onnx")
    with pytest.raises(FewbitError, match=r"its batch of 1 is fixed .* export it with a free batch: dynamic_shapes") as refused:
        read(tmp_path / "m.onnx")
    assert "ONNXRuntimeError" not in str(refused.value)


def test_a_recurrent_state_has_its_batch_second(tmp_path):
    nodes = [
        helper.make_node("Unsqueeze", ["x", "zero"], ["u"]),
        helper.make_node("GRU", ["u", "w", "r", "", "", "h"], ["all", "h_out"], hidden_size=4),
        helper.make_node("Transpose", ["all"], ["t"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["t", "s"], ["q"]),
        helper.make_node("Squeeze", ["q", "zero"], ["z"]),
        helper.make_node("MatMul", ["z", "head"], ["y"]),
    ]
    ends = [value("x", [1, 6]), value("h", [1, 1, 4])], [value("y", [1, 3]), value("h_out", [1, 1, 4])]
    constants = dict(zero=numbers(0), s=numbers(1, 1, 4), w=weight(1, 12, 6), r=weight(1, 12, 4), head=weight(4, 3))
    proto = model(nodes, *ends, **constants)
    onnx.save(proto, tmp_path / "m.onnx")
    import fewbit
    from fewbit import sources

    policy = load(sources.load(tmp_path / "m.onnx").model, "onnxruntime")
    seen, h, run = (
        RNG.normal(size=(5, 2, 6)).astype(np.float32),
        [np.zeros((1, 1, 4), np.float32)] * 2,
        ReferenceEvaluator(proto).run,
    )
    for x in seen:
        made = [run(None, {"x": x[k : k + 1], "h": h[k]}) for k in range(2)]
        h = [m[1] for m in made]
        assert np.abs(policy(x) - np.concatenate([m[0] for m in made])).max() < 1e-5
    assert fewbit.quantize(tmp_path / "m.onnx", observations=RNG.normal(size=(4, 20, 6)), scheme=fewbit.Scheme(method="rtn"))


def test_a_constant_row_is_joined_to_a_state_that_has_its_batch_second(tmp_path):
    nodes = [
        helper.make_node("Unsqueeze", ["x", "zero"], ["u"]),
        helper.make_node("GRU", ["u", "w", "r", "", "", "h"], ["", "h_out"], hidden_size=4),
        helper.make_node("Squeeze", ["h_out", "zero"], ["z"]),
        helper.make_node("Expand", ["row", "size"], ["e"]),
        helper.make_node("Concat", ["e", "z"], ["y"], axis=-1),
    ]
    ends = [value("x", [1, 6]), value("h", [1, 1, 4])], [value("y", [1, 7]), value("h_out", [1, 1, 4])]
    row, size = weight(1, 3), numbers(1, 3)
    proto = model(nodes, *ends, zero=numbers(0), w=weight(1, 12, 6), r=weight(1, 12, 4), row=row, size=size)
    onnx.save(proto, tmp_path / "m.onnx")
    assert [[str(d) for d in v.shape] for v in read(tmp_path / "m.onnx").graph.outputs] == [["batch", "7"], ["1", "batch", "4"]]
    made = fewbit.quantize(tmp_path / "m.onnx", observations=RNG.normal(size=(5, 20, 6)), scheme=fewbit.Scheme(method="rtn"))
    seen = RNG.normal(size=(2, 6)).astype(np.float32)
    zeros = np.zeros((1, 1, 4), np.float32)
    want = np.concatenate([ReferenceEvaluator(proto).run(["y"], {"x": seen[k : k + 1], "h": zeros})[0] for k in range(2)])
    assert np.abs(load(made.model)(seen) - want).max() < 0.05 * np.ptp(want)


def test_an_output_that_no_input_reaches_keeps_its_shape(tmp_path):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("Identity", ["spread"], ["std"])]
    for batch in (1, None):
        ends = [value("x", [batch, 6])], [value("y", [batch, 3]), value("std", [3])]
        onnx.save(model(nodes, *ends, w=weight(6, 3), spread=weight(3)), tmp_path / "m.onnx")
        shapes = {v.name: [str(d) for d in v.shape] for v in read(tmp_path / "m.onnx").graph.outputs}
        assert shapes == {"y": ["batch", "3"], "std": ["3"]}


def test_a_network_that_draws_random_numbers_is_not_judged_by_them(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("RandomNormalLike", ["m"], ["n"]),
        helper.make_node("Add", ["m", "n"], ["y"]),
    ]
    onnx.save(model(nodes, [value("x", [1, 6])], [value("y", [1, 3])], w=weight(6, 3)), tmp_path / "m.onnx")
    assert len(read(tmp_path / "m.onnx").graph) == 3


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("first", [True, False])
def test_a_constant_row_that_is_joined_to_each_row(batch, first, tmp_path):
    """As torch writes a learned token, expanded to a batch of known size, and concatenated."""
    token = weight(1, 2)
    for written in ("Expand", "Tile", "initializer"):
        made = {
            "Expand": [helper.make_node("Expand", ["token", "size"], ["t"])],
            "Tile": [helper.make_node("Tile", ["token", "times"], ["t"])],
            "initializer": [helper.make_node("Identity", ["tokens"], ["t"])],
        }[written]
        nodes = [
            *made,
            helper.make_node("Concat", ["t", "x"] if first else ["x", "t"], ["c"], axis=-1 if first else 1),
            helper.make_node("Gemm", ["c", "w"], ["y"], transB=1),
        ]
        held = dict(token=token, tokens=np.repeat(token, batch, 0), size=numbers(batch, 2), times=numbers(batch, 1))
        rows_agree(
            model(nodes, [value("x", [batch, 4])], [value("y", [batch, 3])], w=weight(3, 6), **held), tmp_path / "m.onnx", batch
        )


def test_a_row_that_is_repeated_and_a_reshape_behind_it(tmp_path):
    nodes = [
        helper.make_node("Reshape", ["x", "tokens"], ["a"]),
        helper.make_node("Concat", ["token", "a"], ["c"], axis=1),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Reshape", ["r", "flat"], ["y"]),
    ]
    held = dict(token=weight(1, 1, 4), tokens=numbers(1, 3, 4), flat=numbers(1, 16))
    rows_agree(model(nodes, [value("x", [1, 12])], [value("y", [1, 16])], **held), tmp_path / "m.onnx")


@pytest.mark.parametrize("batch", [1, 4])
def test_an_expand_to_a_fixed_batch(batch, tmp_path):
    nodes = [
        helper.make_node("Unsqueeze", ["x", "axis"], ["u"]),
        helper.make_node("Expand", ["u", "size"], ["e"]),
        helper.make_node("Mul", ["e", "k"], ["m"]),
        helper.make_node("ReduceSum", ["m", "axis"], ["y"], keepdims=0),
    ]
    held = dict(axis=numbers(1), size=numbers(batch, 5, 3), k=weight(5, 3))
    rows_agree(model(nodes, [value("x", [batch, 3])], [value("y", [batch, 3])], **held), tmp_path / "m.onnx", batch)


def test_constant_rows_that_differ_are_refused(tmp_path):
    nodes = [helper.make_node("Concat", ["x", "rows"], ["y"], axis=1)]
    onnx.save(model(nodes, [value("x", [3, 4])], [value("y", [3, 6])], rows=weight(3, 2)), tmp_path / "m.onnx")
    with pytest.raises(FewbitError, match="its batch of 3 is fixed in the graph.* export it with a free batch"):
        read(tmp_path / "m.onnx")


def test_a_joined_constant_row_is_the_same_in_every_executor(tmp_path):
    nodes = [
        helper.make_node("Expand", ["token", "size"], ["t"]),
        helper.make_node("Concat", ["x", "t"], ["c"], axis=1),
        helper.make_node("Gemm", ["c", "w"], ["y"], transB=1),
    ]
    proto = model(nodes, [value("x", [1, 4])], [value("y", [1, 3])], token=weight(1, 2), size=numbers(1, 2), w=weight(3, 6))
    onnx.save(proto, tmp_path / "m.onnx")
    x = RNG.normal(size=(32, 4)).astype(np.float32)
    want = np.concatenate([ReferenceEvaluator(proto).run(None, {"x": row[None]})[0] for row in x])
    artifact = fewbit.quantize(tmp_path / "m.onnx", observations=x, scheme=fewbit.Scheme(method="rtn"))
    made = [load(artifact.model, executor)(x) for executor in ("native", "reference", "onnxruntime")]
    assert np.array_equal(made[0], made[1]) and all(np.abs(y - want).max() < 0.03 * np.ptp(want) for y in made)
