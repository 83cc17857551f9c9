"""Convolutions with auto_pad or groups are the same network in every executor, or refused by name before calibration."""

import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from c_policy import CPolicy
from onnx import TensorProto, helper, numpy_helper

import fewbit
from fewbit import FewbitError
from fewbit.engine.lower import lower
from fewbit.graph import calibrate, fold_conv

RNG = np.random.default_rng(0)


def network(image: list, kernel: tuple, **attributes) -> onnx.ModelProto:
    """Conv, Relu, global mean, Gemm over x [batch, *image]; the kernel [out, in / groups, ...]."""
    nodes = [
        helper.make_node("Conv", ["x", "k", "b"], ["c"], "conv", **attributes),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("Conv", ["r", "k2"], ["d"], "pointwise"),
        helper.make_node("Flatten", ["d"], ["y"], "flat"),
    ]
    out = kernel[0]
    held = {
        "k": RNG.normal(size=kernel) / 2,
        "b": RNG.normal(size=out) / 4,
        "k2": RNG.normal(size=(2, out, *[1] * (len(kernel) - 2))),
    }
    constants = [numpy_helper.from_array(v.astype(np.float32), k) for k, v in held.items()]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, d) for n, d in (("x", ["batch", *image]), ("y", ["batch", None]))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def torch_network(proto: onnx.ModelProto, x: np.ndarray, **arguments) -> np.ndarray:
    """The same by torch, the first convolution with these arguments."""
    k, b, k2 = (torch.from_numpy(numpy_helper.to_array(t).copy()) for t in proto.graph.initializer)
    convolution = torch.nn.functional.conv2d if k.ndim == 4 else torch.nn.functional.conv1d
    return convolution(convolution(torch.from_numpy(x), k, b, **arguments).relu(), k2).flatten(1).numpy()


def agrees(proto: onnx.ModelProto, path: Path, by_torch: dict | None = None, compiled: bool = True) -> None:
    """Each executor's int8 artifact is near what ONNX Runtime makes of the file, or torch with such arguments of its convolution;
    ours have the same bits, compiled C too."""
    onnx.save(proto, path)
    x = RNG.normal(size=(40, *(d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim[1:]))).astype(np.float32)
    want = ort.InferenceSession(path).run(None, {"x": x})[0] if by_torch is None else torch_network(proto, x, **by_torch)
    artifact = fewbit.quantize(path, observations=x, scheme=fewbit.Scheme(method="rtn"))
    assert artifact.record["verified"]["source"]["folded"] < 1e-5
    made = {e: fewbit.load(artifact.model, executor=e)(x) for e in ("native", "reference", "onnxruntime")}
    for executor, y in made.items():
        assert y.shape == want.shape and np.abs(y - want).max() < 0.05 * np.ptp(want), executor
    assert np.array_equal(made["native"], made["reference"])
    if compiled:
        in_c = CPolicy(lower(artifact.model), Path(tempfile.mkdtemp(dir=path.parent)))
        assert np.array_equal(in_c(x), made["reference"])


@pytest.mark.parametrize("word", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("image", [[2, 7, 6], [2, 9]])
@pytest.mark.parametrize("attributes", [{}, {"strides": 2}, {"strides": 3}, {"strides": 2, "dilations": 1}])
def test_auto_pad_is_written_in_numbers(word, image, attributes, tmp_path):
    count = len(image) - 1
    given = {k: [v] * count for k, v in attributes.items()}
    for size in (2, 3):
        agrees(network(image, (3, 2, *[size] * count), auto_pad=word, **given), tmp_path / "m.onnx", compiled=False)


@pytest.mark.parametrize(
    "groups, kernel", [(2, (6, 2, 3, 3)), (4, (4, 1, 3, 3)), (4, (8, 1, 2, 3)), (2, (4, 2, 1, 1)), (4, (4, 1, 3))]
)
def test_groups_are_one_kernel_with_zeros_between_them(groups, kernel, tmp_path):
    image = [4, 6, 5][: len(kernel) - 1]
    agrees(network(image, kernel, group=groups), tmp_path / "m.onnx")
    agrees(network(image, kernel, group=groups, auto_pad="SAME_UPPER", strides=[2] * (len(kernel) - 2)), tmp_path / "m.onnx")


@pytest.mark.parametrize("image", [[2, 9, 8], [2, 9]])
@pytest.mark.parametrize("size", [2, 3])
def test_auto_pad_of_a_dilated_kernel_which_onnx_runtime_does_not_run(size, image, tmp_path):
    count = len(image) - 1
    proto = network(image, (3, 2, *[size] * count), auto_pad="SAME_UPPER", dilations=[2] * count)
    agrees(proto, tmp_path / "m.onnx", {"padding": "same", "dilation": 2})


def pooled(op: str, **attributes) -> onnx.ModelProto:
    nodes = [helper.make_node(op, ["x"], ["p"], "pool", **attributes), helper.make_node("Flatten", ["p"], ["y"])]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, d) for n, d in (("x", ["b", 2, 9, 8]), ("y", ["b", None]))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=8)


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize("word", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("strides", [[1, 1], [2, 3]])
def test_auto_pad_of_a_pool_is_written_in_numbers(op, word, strides, tmp_path):
    proto = pooled(op, kernel_shape=[2, 3], auto_pad=word, strides=strides)
    onnx.save(proto, tmp_path / "m.onnx")
    x = RNG.normal(size=(4, 2, 9, 8)).astype(np.float32)
    folded = ir.to_proto(fewbit.sources.load(tmp_path / "m.onnx").model)
    assert "auto_pad" not in {a.name for n in folded.graph.node for a in n.attribute}
    want, got = (ort.InferenceSession(m.SerializeToString()).run(None, {"x": x})[0] for m in (proto, folded))
    assert np.array_equal(want, got)


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
def test_auto_pad_of_a_pool_that_leaves_gaps_is_refused_by_name(op, tmp_path):
    onnx.save(pooled(op, kernel_shape=[3, 1], auto_pad="SAME_UPPER", strides=[1, 2]), tmp_path / "m.onnx")
    with pytest.raises(FewbitError, match=f"node pool: a {op} with auto_pad SAME_UPPER whose strides are longer than its kernel"):
        fewbit.sources.load(tmp_path / "m.onnx")


def test_groups_that_would_be_too_large_are_refused_before_calibration(tmp_path, monkeypatch):
    monkeypatch.setattr(fold_conv, "MOST", 100)
    onnx.save(network([4, 6, 5], (4, 1, 3, 3), group=4), tmp_path / "m.onnx")
    with (
        mock.patch.object(calibrate, "observe") as observe,
        pytest.raises(FewbitError, match=r"node conv: a Conv of 4 groups run as one group, of 144 weights, is too large; export"),
    ):
        fewbit.quantize(tmp_path / "m.onnx", observations=np.zeros((4, 4, 6, 5), np.float32))
    assert not observe.called


def test_auto_pad_of_an_image_of_any_size_is_refused_by_name(tmp_path):
    onnx.save(network([2, "height", 6], (3, 2, 3, 3), auto_pad="SAME_UPPER"), tmp_path / "m.onnx")
    with pytest.raises(FewbitError, match="node conv: a Conv with auto_pad SAME_UPPER of an image whose size is not fixed"):
        fewbit.sources.load(tmp_path / "m.onnx")
