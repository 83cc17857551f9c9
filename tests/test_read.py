"""What is read of an ONNX file is the network in it: every dtype, every opset, however its weights and steps are written."""

import warnings

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import fewbit
from fewbit.engine.load import load
from fewbit.errors import FewbitError
from fewbit.graph.read import read

warnings.simplefilter("ignore")
RNG = np.random.default_rng(0)
W1, B1 = RNG.normal(size=(16, 6)).astype(np.float32) / 3, RNG.normal(size=16).astype(np.float32) / 3
W2, B2 = RNG.normal(size=(3, 16)).astype(np.float32) / 4, RNG.normal(size=3).astype(np.float32) / 3


def value(name: str, shape: list, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def network(kind: int = TensorProto.FLOAT, cast: bool = False, opset: int = 17, ir: int = 8) -> onnx.ModelProto:
    """Two dense layers over input x [n, 6]; cast: x is of that kind and is cast, else all of it is of that kind."""
    inner = TensorProto.FLOAT if cast else kind
    held = helper.tensor_dtype_to_np_dtype(inner)
    first = "x32" if cast else "x"
    nodes = [helper.make_node("Cast", ["x"], ["x32"], to=TensorProto.FLOAT)] if cast else []
    nodes += [
        helper.make_node("Gemm", [first, "w1", "b1"], ["h"], transB=1),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w2", "b2"], ["y"], transB=1),
    ]
    constants = [numpy_helper.from_array(a.astype(held), k) for k, a in {"w1": W1, "b1": B1, "w2": W2, "b2": B2}.items()]
    graph = helper.make_graph(nodes, "g", [value("x", [None, 6], kind)], [value("y", [None, 3], inner)], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)


def outputs(proto: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    return np.asarray(ReferenceEvaluator(proto).run(None, {"x": x})[0], np.float64)


def agrees(path, x: np.ndarray, want: np.ndarray, tolerance: float = 1e-5) -> None:
    """Every executor gives want of the file itself, and within a quantization's error of its int8 artifact."""
    artifact = fewbit.quantize(path, observations=x, scheme=fewbit.Scheme(method="rtn"))
    for model, most in ((read(path), tolerance), (artifact.model, 0.02)):
        for executor in ("native", "reference", "onnxruntime"):
            policy = load(model, executor)
            got = policy(x.astype(model.graph.inputs[0].dtype.numpy()) if executor == "native" else x)
            assert np.abs(got - want).max() < most * np.ptp(want), executor


INTEGERS = [TensorProto.INT8, TensorProto.UINT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64]


@pytest.mark.parametrize("kind", [TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.UINT16, *INTEGERS])
def test_an_input_of_any_dtype_that_is_cast_means_the_same_to_every_executor(kind, tmp_path):
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    x = (RNG.normal(size=(64, 6)) if dtype.kind == "f" else RNG.integers(0, 100, (64, 6))).astype(dtype)
    proto = network(kind, cast=True)
    onnx.save(proto, tmp_path / "m.onnx")
    agrees(tmp_path / "m.onnx", x, outputs(proto, x), 1e-3 if kind == TensorProto.FLOAT16 else 1e-5)


@pytest.mark.parametrize("kind", [TensorProto.DOUBLE, TensorProto.FLOAT16])
def test_a_network_of_another_float_type_is_read_as_float32(kind, tmp_path):
    x = RNG.normal(size=(64, 6)).astype(helper.tensor_dtype_to_np_dtype(kind))
    proto = network(kind)
    onnx.save(proto, tmp_path / "m.onnx")
    agrees(tmp_path / "m.onnx", x, outputs(proto, x), 5e-3 if kind == TensorProto.FLOAT16 else 1e-5)
    assert {v.dtype.name for v in [*read(tmp_path / "m.onnx").graph.inputs, *read(tmp_path / "m.onnx").graph.outputs]} == {
        "FLOAT"
    }


def test_float16_inside_between_casts_is_read_as_float32(tmp_path):
    """As onnxconverter-common writes it with keep_io_types."""
    proto = network(TensorProto.FLOAT16)
    proto.graph.node[0].input[0], proto.graph.node[2].output[0] = "x16", "y16"
    proto.graph.node.insert(0, helper.make_node("Cast", ["x"], ["x16"], to=TensorProto.FLOAT16))
    proto.graph.node.append(helper.make_node("Cast", ["y16"], ["y"], to=TensorProto.FLOAT))
    for v in (*proto.graph.input, *proto.graph.output):
        v.type.tensor_type.elem_type = TensorProto.FLOAT
    onnx.save(proto, tmp_path / "m.onnx")
    x = RNG.normal(size=(64, 6)).astype(np.float32)
    agrees(tmp_path / "m.onnx", x, outputs(proto, x), 5e-3)


def test_weights_stored_as_float16_stay_stored_so(tmp_path):
    onnx.save(network(), tmp_path / "m.onnx")
    artifact = fewbit.quantize(tmp_path / "m.onnx", observations=np.ones((8, 6), np.float32), scheme=fewbit.Scheme("float16"))
    artifact.save(tmp_path / "half.onnx")
    kinds = [v.dtype.name for v in read(tmp_path / "half.onnx").graph.initializers.values()]
    assert kinds.count("FLOAT16") == 2


def test_integers_that_are_computed_with_are_refused_by_name_natively(tmp_path):
    """The engine computes in float32: a sum of integers is the reference's, never another number."""
    nodes = [
        helper.make_node("Add", ["x", "one"], ["s"]),
        helper.make_node("Div", ["s", "two"], ["d"]),
        helper.make_node("Cast", ["d"], ["y"], to=TensorProto.FLOAT),
    ]
    constants = [numpy_helper.from_array(np.array([v]), k) for k, v in (("one", 1), ("two", 2))]
    graph = helper.make_graph(nodes, "g", [value("x", [None, 2], TensorProto.INT64)], [value("y", [None, 2])], constants)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(proto, tmp_path / "m.onnx")
    x = np.array([[1, 2], [-4, 7]])
    with pytest.raises(FewbitError, match="value d: Div of int64 is not run by the engine|value s: Add of int64"):
        load(tmp_path / "m.onnx", "native")
    for executor in ("reference", "onnxruntime"):
        assert np.array_equal(load(tmp_path / "m.onnx", executor)(x), [[1, 1], [-1, 4]])


def test_a_feed_is_made_the_inputs_dtype_and_refused_where_it_cannot_be(tmp_path):
    onnx.save(network(TensorProto.INT32, cast=True), tmp_path / "m.onnx")
    onnx.save(network(), tmp_path / "f.onnx")
    whole = RNG.integers(0, 9, (4, 6))
    for executor in ("reference", "onnxruntime"):
        integers, floats = load(tmp_path / "m.onnx", executor), load(tmp_path / "f.onnx", executor)
        for dtype in (np.int64, np.float64, np.uint8, np.float32):
            assert np.allclose(integers(whole.astype(dtype)), floats(whole.astype(dtype)), atol=1e-5)
        with pytest.raises(FewbitError, match="input x takes int32, and the observation holds float64 numbers that are none"):
            integers(whole + 0.5)


def test_a_float64_input_that_the_engine_is_given_is_read_as_float64():
    """Of a graph that never passed through read, which leaves none."""
    import onnx_ir as ir

    model = ir.from_proto(network(TensorProto.DOUBLE, cast=True, opset=21, ir=10))
    x = RNG.normal(size=(5, 6))
    assert np.allclose(load(model)(x), outputs(network(TensorProto.DOUBLE, cast=True), x), atol=1e-5)
    x[3, 2] = np.nan
    with pytest.raises(FewbitError, match=r"element \(3, 2\) is NaN"):
        load(model)(x)


def test_a_torch_tensor_is_taken_as_observations(tmp_path):
    import torch

    onnx.save(network(), tmp_path / "m.onnx")
    x = torch.randn(16, 6, requires_grad=True)
    made = [fewbit.quantize(tmp_path / "m.onnx", observations=o).to_bytes() for o in (x, x.detach().numpy())]
    assert made[0] == made[1]


@pytest.mark.parametrize("opset", range(7, 25))
def test_every_opset_from_7_to_24_is_the_same_network(opset, tmp_path):
    proto = network(opset=opset, ir=3 if opset == 7 else 8 if opset < 22 else 10)
    if proto.ir_version == 3:
        proto.graph.input.extend(value(t.name, t.dims) for t in proto.graph.initializer)
    onnx.save(proto, tmp_path / "m.onnx")
    x = RNG.normal(size=(32, 6)).astype(np.float32)
    agrees(tmp_path / "m.onnx", x, outputs(network(), x))


def test_an_opset_that_is_too_old_or_too_new_is_named(tmp_path):
    for opset, says in ((6, "it is of opset 6; export it again with"), (99, "it is of opset 99, newer than this onnx's")):
        onnx.save(network(opset=opset), tmp_path / "m.onnx")
        with pytest.raises(FewbitError, match=says):
            read(tmp_path / "m.onnx")
    onnx.save(network(ir=99), tmp_path / "m.onnx")
    with pytest.raises(FewbitError, match="it is of IR version 99, newer than this onnx's"):
        read(tmp_path / "m.onnx")


def test_an_operator_younger_than_opset_21_is_written_as_what_it_is_defined_to_be(tmp_path):
    proto = network(opset=24, ir=10)
    proto.graph.node[1].CopyFrom(helper.make_node("Swish", ["h"], ["r"], alpha=1.0))
    onnx.save(proto, tmp_path / "m.onnx")
    x = RNG.normal(size=(32, 6)).astype(np.float32)
    hidden = x @ W1.T + B1
    want = hidden / (1 + np.exp(-hidden)) @ W2.T + B2
    assert np.allclose(load(tmp_path / "m.onnx", "onnxruntime")(x), want, atol=1e-5)
    artifact = fewbit.quantize(tmp_path / "m.onnx", observations=x, scheme=fewbit.Scheme(method="rtn"))
    assert np.abs(load(artifact.model)(x) - want).max() < 0.02 * np.ptp(want)


def test_local_functions_are_inlined(tmp_path):
    """Called twice, one within the other, with an attribute that the caller gives."""
    scaled = helper.make_node("LeakyRelu", ["a"], ["b"])
    scaled.attribute.append(onnx.AttributeProto(name="alpha", ref_attr_name="slope", type=onnx.AttributeProto.FLOAT))
    inner = helper.make_function("own", "Act", ["a"], ["b"], [scaled], [helper.make_opsetid("", 17)], ["slope"])
    steps = [
        helper.make_node("Gemm", ["a", "w", "c"], ["p"], transB=1),
        helper.make_node("Act", ["p"], ["b"], domain="own", slope=0.5),
    ]
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    dense = helper.make_function("own", "Dense", ["a", "w", "c"], ["b"], steps, imports)
    proto = network()
    nodes = [
        helper.make_node("Dense", ["x", "w1", "b1"], ["r"], domain="own"),
        helper.make_node("Dense", ["r", "w2", "b2"], ["y"], domain="own"),
    ]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    proto.functions.extend([inner, dense])
    proto.opset_import.append(helper.make_opsetid("own", 1))
    onnx.save(proto, tmp_path / "m.onnx")
    x = RNG.normal(size=(32, 6)).astype(np.float32)
    hidden = x @ W1.T + B1
    want = np.where(hidden > 0, hidden, hidden / 2) @ W2.T + B2
    agrees(tmp_path / "m.onnx", x, np.where(want > 0, want, want / 2))


def test_functions_that_call_each_other_in_a_circle_are_refused(tmp_path):
    calls = helper.make_node("Again", ["a"], ["b"], domain="own")
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    proto = network()
    proto.graph.node[1].CopyFrom(helper.make_node("Again", ["h"], ["r"], domain="own"))
    proto.functions.append(helper.make_function("own", "Again", ["a"], ["b"], [calls], imports))
    proto.opset_import.append(helper.make_opsetid("own", 1))
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises(FewbitError, match="Cycle detected in model-local function references: own::Again"):
        read(tmp_path / "m.onnx")


def test_an_absent_argument_written_as_an_empty_name_is_absent(tmp_path):
    proto = network()
    for node in proto.graph.node:
        if node.op_type == "Gemm":
            node.input[2] = ""
    onnx.save(proto, tmp_path / "m.onnx")
    x = RNG.normal(size=(32, 6)).astype(np.float32)
    agrees(tmp_path / "m.onnx", x, np.maximum(x @ W1.T, 0) @ W2.T)


def external(folder, **changes: str) -> None:
    """network() in folder/m.onnx with its weights in folder/m.onnx.data; changes: of the first tensor's place there."""
    proto = network()
    onnx.save(proto, folder / "m.onnx", save_as_external_data=True, size_threshold=0, location="m.onnx.data")
    proto = onnx.load(folder / "m.onnx", load_external_data=False)
    for entry in proto.graph.initializer[0].external_data:
        entry.value = changes.get(entry.key, entry.value)
    onnx.save(proto, folder / "m.onnx")


def test_weights_in_a_file_beside_the_model_are_read(tmp_path):
    external(tmp_path)
    x = RNG.normal(size=(32, 6)).astype(np.float32)
    agrees(tmp_path / "m.onnx", x, outputs(network(), x))


def test_the_digest_of_a_model_is_of_its_weights_too(tmp_path):
    from fewbit import sources

    external(tmp_path)
    before = sources.load(tmp_path / "m.onnx").digest
    data = bytearray((tmp_path / "m.onnx.data").read_bytes())
    data[1] ^= 1
    (tmp_path / "m.onnx.data").write_bytes(data)
    assert sources.load(tmp_path / "m.onnx").digest != before


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"location": "/etc/passwd"}, "no place in the model's own folder"),
        ({"location": "../other/m.onnx.data"}, "no place in the model's own folder"),
        ({"location": "a/../m.onnx.data"}, "no place in the model's own folder"),
        ({"location": "C:\\m.onnx.data"}, "no place in the model's own folder"),
        ({"location": ""}, "no place in the model's own folder"),
        ({"location": "gone.data"}, "not beside the model; copy that file there too"),
        ({"location": "."}, "which is no file"),
        ({"location": "link.data"}, "a link that leaves the model's folder"),
        ({"offset": "-8"}, "from byte -8 of"),
        ({"offset": "99999999"}, "one is cut short"),
        ({"offset": "many"}, "is no number"),
        ({"length": "4"}, "has 4 for it"),
    ],
)
def test_weights_that_lie_elsewhere_or_do_not_fit_are_refused_by_name(changes, says, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    external(folder, **changes)
    (tmp_path / "secret").write_bytes(bytes(4096))
    (folder / "link.data").symlink_to(tmp_path / "secret")
    with pytest.raises(FewbitError, match=says) as refused:
        read(folder / "m.onnx")
    assert "initializer w1" in str(refused.value)


def test_a_pipe_beside_the_model_is_not_opened(tmp_path):
    import os

    external(tmp_path, location="pipe")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FewbitError, match="which is no file"):
        read(tmp_path / "m.onnx")


def test_the_links_of_a_hugging_face_snapshot_are_followed_to_its_own_blobs(tmp_path):
    repository = tmp_path / "models--a--b"
    snapshot, blobs = repository / "snapshots" / "abc", repository / "blobs"
    snapshot.mkdir(parents=True), blobs.mkdir()
    external(snapshot)
    for name in ("m.onnx", "m.onnx.data"):
        (snapshot / name).rename(blobs / name)
        (snapshot / name).symlink_to(blobs / name)
    x = RNG.normal(size=(4, 6)).astype(np.float32)
    assert np.allclose(load(snapshot / "m.onnx", "onnxruntime")(x), outputs(network(), x), atol=1e-5)


def test_weights_of_2_gib_are_refused_before_they_are_read(tmp_path):
    external(tmp_path)
    proto = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    proto.graph.initializer[0].dims[0] = 1 << 29
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises(FewbitError, match="2 GiB of weights or more"):
        read(tmp_path / "m.onnx")


def branching(condition: str) -> onnx.ModelProto:
    """y is one Gemm or another, as a constant or the columns of x say; each branch has initializers of its own."""
    proto = network()
    last = proto.graph.node.pop()
    branches = {}
    for name, sign in (("then_branch", 1), ("else_branch", -1)):
        held = [numpy_helper.from_array(sign * B2, "own"), numpy_helper.from_array(sign * W2, "w")]
        step = helper.make_node("Gemm", ["r", "w", "own"], ["made"], transB=1)
        branches[name] = helper.make_graph([step], name, [], [value("made", [None, 3])], held)
    assert last.output[0] == "y"
    steps = {
        "constant": [helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.array(False)))],
        "computed": [
            helper.make_node("Shape", ["x"], ["s"]),
            helper.make_node("Gather", ["s", "one"], ["columns"]),
            helper.make_node("Equal", ["columns", "six"], ["c"]),
        ],
    }[condition]
    proto.graph.initializer.extend([numpy_helper.from_array(np.array(v), k) for k, v in (("one", 1), ("six", 6))])
    proto.graph.node.extend([*steps, helper.make_node("If", ["c"], ["y"], **branches)])
    return proto


@pytest.mark.parametrize("condition", ["constant", "computed"])
def test_an_if_whose_condition_is_known_is_the_branch_that_is_taken(condition, tmp_path):
    onnx.save(branching(condition), tmp_path / "m.onnx")
    x = RNG.normal(size=(32, 6)).astype(np.float32)
    want = outputs(network(), x) * (1 if condition == "computed" else -1)
    artifact = fewbit.quantize(tmp_path / "m.onnx", observations=x, scheme=fewbit.Scheme(method="rtn"))
    assert "If" not in {n.op_type for n in artifact.model.graph}
    assert [v.name for v in artifact.model.graph.outputs] == ["y"]
    for executor in ("native", "reference", "onnxruntime"):
        assert np.abs(load(artifact.model, executor)(x) - want).max() < 0.02 * np.ptp(want)
