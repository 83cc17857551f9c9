"""Policies that lie: ONNX files and Stable-Baselines3 zips that ask for far more memory than they fill, or for nonsense."""

import io
import json
import tracemalloc
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT
from onnx import TensorProto, helper, numpy_helper

import fewbit
from fewbit import sources
from fewbit.errors import FewbitError

torch = pytest.importorskip("torch")
pytest.importorskip("stable_baselines3")

from fewbit.sources import normalizer, sb3  # noqa: E402

HUGE = 1 << 34
ONE, SIZE = np.ones(1, np.float32), np.array([HUGE])


def refused(read, path) -> None:
    tracemalloc.start()
    with pytest.raises(FewbitError) as caught:
        read(path)
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500 + len(str(path))


def onnx_file(path, nodes, constants=(), width=4, record=None):
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", w]) for n, w in (("x", width), ("y", None))]
    held = [numpy_helper.from_array(np.asarray(c), f"c{k}") for k, c in enumerate(constants)]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    if record is not None:
        helper.set_model_props(model, {"fewbit": record})
    path.write_bytes(model.SerializeToString())
    return path


CONSTANTS = {
    "ConstantOfShape": [SIZE],
    "Expand": [ONE, SIZE],
    "Tile": [ONE, SIZE],
    "Pad": [ONE, np.array([0, HUGE])],
    "Range": [np.float32(0), np.float32(HUGE), np.float32(1)],
    "Gather": [ONE, np.array([99])],
    "MatMul": [np.ones((1 << 17, 1), np.float32), np.ones((1, 1 << 17), np.float32)],
}


@pytest.mark.parametrize("kind", CONSTANTS)
def test_a_constant_that_no_file_holds_is_not_computed(tmp_path, kind):
    names = [f"c{k}" for k in range(len(CONSTANTS[kind]))]
    nodes = [helper.make_node(kind, names, ["b"]), helper.make_node("Add", ["x", "b"], ["y"])]
    path = onnx_file(tmp_path / "a.onnx", nodes, CONSTANTS[kind])
    for read in (sources.load, fewbit.load):
        refused(read, path)


@pytest.mark.parametrize("width", [0, -4, 1 << 40])
def test_an_observation_of_no_possible_size_is_refused(tmp_path, width):
    path = onnx_file(tmp_path / "a.onnx", [helper.make_node("Relu", ["x"], ["y"])], width=width)
    for read in (sources.load, fewbit.load):
        refused(read, path)


def test_a_record_nested_too_deep_is_none(tmp_path):
    path = onnx_file(tmp_path / "a.onnx", [helper.make_node("Relu", ["x"], ["y"])], record="[" * 100_000)
    assert fewbit.load(path)(np.full((1, 4), -1, np.float32)).tolist() == [[0] * 4]


def policy(path, change, **state):
    """The demo policy, its readable text and its tensors changed."""
    with zipfile.ZipFile(ROOT / "demo" / "halfcheetah.zip") as z:
        data, held = json.loads(z.read("data")), torch.load(io.BytesIO(z.read("policy.pth")), weights_only=True)
    change(data)
    torch.save(held | state, weights := io.BytesIO())
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("data", json.dumps(data))
        z.writestr("policy.pth", weights.getvalue())
    return path


def arguments(**given):
    return lambda data: data.update(policy_kwargs=given)


def observation(shape):
    return lambda data: data["observation_space"].update(_shape=shape, shape=shape)


LIES = {
    "layers of a million": arguments(net_arch=[10**6, 10**6]),
    "thousands of layers": arguments(net_arch=[4096] * 3000),
    "a layer below nothing": arguments(net_arch=[-5]),
    "half a layer": arguments(net_arch=[2.5]),
    "nested arguments": arguments(net_arch=json.loads("[" * 900 + "]" * 900)),
    "a huge observation": observation("(4000000000,)"),
    "an observation below nothing": observation("(-1,)"),
    "a class that is a number": lambda data: data["policy_class"].update(__module__=5),
    "a member that unpacks to far more": lambda data: data.update(a=" " * (1 << 27)),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_zip_that_lies_is_refused(tmp_path, lie):
    path = policy(tmp_path / "a.zip", LIES[lie])
    refused(sb3.build, path)


def test_a_tensor_that_declares_more_than_is_held_is_refused(tmp_path):
    path = policy(tmp_path / "a.zip", lambda data: None, **{"actor.mu.bias": torch.zeros(1).expand(HUGE)})
    refused(sb3.build, path)


def test_a_pickle_does_not_make_one_text_many(tmp_path):
    """Two hundred times the bytes of a megabyte, from its memo."""
    text, again = "a" * (1 << 20), b"h\x00h\x01h\x02\x86R"
    head = b"\x80\x02c_codecs\nencode\nq\x00X" + len(text).to_bytes(4, "little") + text.encode() + b"q\x01"
    (tmp_path / "v.pkl").write_bytes(head + b"X\x06\0\0\0latin1q\x02" + again * 200 + b".")
    refused(normalizer.read, tmp_path / "v.pkl")


def test_a_normalizer_whose_mean_and_variance_differ_in_shape_is_refused():
    rms = SimpleNamespace(mean=np.zeros(17), var=np.ones(()))
    with pytest.raises(FewbitError, match="which differ"):
        normalizer._normalizer({"norm_obs": True, "obs_rms": rms, "epsilon": 1e-8, "clip_obs": 10.0})
