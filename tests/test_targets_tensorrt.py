"""TensorRT's rules hold in every rewritten graph, its codes are the reference's, and TensorRT-RTX builds it with int8 layers.

Engines are built without a GPU where the wheels of TensorRT-RTX are installed; what must run on a GPU skips by name.
"""

import importlib.util
import json
import subprocess
import sys
import types
from pathlib import Path

import corpus
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from conftest import ROBOTS, ROOT, ZOO
from onnx import TensorProto, helper
from onnx.utils import Extractor

from fewbit import sources, targets
from fewbit.engine import reference
from fewbit.engine.load import load
from fewbit.engine.lower import lower
from fewbit.errors import FewbitError, MissingExtra
from fewbit.graph import calibrate, metadata
from fewbit.graph.edit import const
from fewbit.graph.qdq import Scheme
from fewbit.graph.quantize import quantize
from fewbit.graph.read import prepare, read
from fewbit.graph.strip import strip
from fewbit.targets import tensorrt

FEWBIT = [sys.executable, "-c", "from fewbit.cli.main import main; main()"]
POLICIES = sorted([*ZOO.glob("*/*/*.zip"), *ROBOTS.glob("go1/policy.onnx"), ROOT / "demo" / "halfcheetah.zip"])
rtx = pytest.mark.skipif(not importlib.util.find_spec("tensorrt_rtx_bindings"), reason="needs the wheels of TensorRT-RTX")
gpu = pytest.mark.skipif(not importlib.util.find_spec("tensorrt"), reason="needs the tensorrt wheel and an NVIDIA GPU")


def name(path: Path) -> str:
    return path.parent.name if path.is_relative_to(ROOT / "demo") or path.suffix != ".zip" else "/".join(path.parts[-3:-1])


def artifact(path: Path, scheme: Scheme) -> tuple[ir.Model, dict[str, np.ndarray]]:
    """The artifact and 200 seeded observations."""
    source, rng = sources.load(path), np.random.default_rng(0)
    shapes = load(source.model, "onnxruntime").inputs
    feeds = {k: rng.normal(size=(200, *shape)).astype(np.float32) for k, shape in shapes.items()}
    return quantize(source.model, feeds, scheme)[0], feeds


def broken(model: ir.Model) -> list[str]:
    """Every rule of TensorRT that the graph breaks."""
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    said = [] if model.graph.opset_imports[""] == 20 else ["opset"]
    for node in model.graph:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            codes, zero = const(node.inputs[0]), const(node.inputs[2]) if len(node.inputs) > 2 else None
            kinds = {a.dtype for a in (codes, zero) if a is not None}
            if kinds != {np.dtype(np.int8)} or (zero is not None and zero.any()):
                said.append(f"{node.name}: codes {kinds}, zero point {zero}")
        if node.op_type in tensorrt.LAYERS and len(node.inputs) > 2:
            bias = const(node.inputs[2])
            said += [f"{node.name}: bias"] * (bias is None or bias.dtype != np.float32)
    return said


def boundary(value: ir.Value) -> set[str]:
    """The codes and graph inputs that a value is computed from, directly."""
    node = value.producer()
    if const(value) is not None:
        return set()
    if node is None or node.op_type == "QuantizeLinear":
        return {value.name or ""}
    return set().union(*(boundary(i) for i in node.inputs if i is not None))


def agree(model: ir.Model, feeds: dict[str, np.ndarray]) -> int:
    """ONNX Runtime without optimisation, given the reference's codes, gives each next code within one; how many were compared."""
    proto, registers = onnx.shape_inference.infer_shapes(ir.to_proto(model)), reference.run(lower(model), feeds)
    seen = feeds | registers
    count = 0
    for node in [n for n in model.graph if n.op_type == "QuantizeLinear"]:
        assert node.inputs[0] is not None
        given, out = sorted(boundary(node.inputs[0])), node.outputs[0].name or ""
        session = calibrate.session(Extractor(proto).extract_model(given, [out]), optimise=False)
        theirs = session.run(None, {k: seen[k] for k in given})[0]
        assert theirs.dtype == np.int8 and np.abs(theirs.astype(int) - registers[out]).max(initial=0) <= 1, out
        count += theirs.size
    return count


SCHEMES = {
    "default": Scheme(),
    "int4": Scheme(weights="int4"),
    "int6, int8 activations": Scheme(weights="int6", activations="int8"),
    "gptq": Scheme(method="smooth+gptq"),
}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("path", [ROOT / "demo" / "halfcheetah.zip", ROBOTS / "go1/policy.onnx"], ids=name)
def test_rules_numbers_and_codes(path, scheme):
    if not path.exists():
        pytest.skip(f"no {path}")
    model, feeds = artifact(path, SCHEMES[scheme])
    metadata.write(model, {"scheme": scheme})
    made = tensorrt.rewrite(model)
    assert broken(made) == [] and metadata.read(made) == {"scheme": scheme}
    assert [v.name for v in (*made.graph.inputs, *made.graph.outputs)] == [
        v.name for v in (*model.graph.inputs, *model.graph.outputs)
    ]
    for ours, theirs in zip(layers(strip(model)), layers(strip(made)), strict=True):  # weights and biases: the artifact's numbers
        assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert agree(made, feeds) > 0
    want = load(made, "onnxruntime")(feeds)
    for executor in ("native", "reference"):  # the file runs here too, its layers in float32
        apart = load(made, executor)(feeds) - want
        assert np.sqrt(np.mean(apart**2.0)) <= 0.01 * np.ptp(want)
    again = tensorrt.rewrite(made)
    assert metadata.to_bytes(again) == metadata.to_bytes(made)


def ends(model: ir.Model) -> list[str]:
    return [v.name for v in (*model.graph.inputs, *model.graph.outputs)]


def layers(model: ir.Model) -> list[list[np.ndarray]]:
    found = [[const(i) for i in n.inputs[1:]] for n in model.graph if n.op_type in tensorrt.LAYERS]
    assert all(a is not None for one in found for a in one)
    return found


def test_the_whole_corpus_keeps_the_rules_and_its_codes():
    compared = 0
    for case in corpus.cases():
        made = tensorrt.rewrite(prepare(case.model))
        assert broken(made) == [], case.name
        compared += agree(made, case.feeds)
    assert compared > 10_000


@pytest.mark.parametrize("kind, zero", [("uint8", 0), ("uint8", 77), ("int8", -128), ("int8", -120), ("int8", 5), ("uint8", 255)])
def test_the_new_grid_covers_the_old_range_and_what_was_a_relu_is_one(kind, zero):
    g = corpus.Graph(0)
    low, high = corpus.LIMITS[kind]
    x = np.linspace(low - zero - 40, high - zero + 40, 400).astype(np.float32)[:, None] * np.float32(0.1)
    case = g.case("grid", g.qdq(g.input(x), kind, 0.1, zero))
    model = prepare(case.model)
    made = tensorrt.rewrite(model)
    scale = next(float(const(n.inputs[1])) for n in made.graph if n.op_type == "QuantizeLinear")
    before, after = (load(m, "onnxruntime")(case.feeds) for m in (model, made))
    inside = (x >= np.float32(low - zero) * 0.1) & (x <= np.float32(high - zero) * 0.1)
    assert inside.sum() > 200 and np.abs(after - x)[inside].max() <= scale / 2 + 1e-5
    assert -1e-4 <= 127 * scale - np.abs(before).max() < 0.11
    assert (after.min() == 0) == (zero == low)


def test_weights_with_zero_points_are_the_same_numbers_or_within_half_a_step():
    for case in corpus.narrow_weights():
        model = prepare(case.model)
        want, got = (layers(strip(m))[0][0] for m in (model, tensorrt.rewrite(model)))
        weight = next(n for n in model.graph if n.op_type == "DequantizeLinear" and const(n.inputs[0]) is not None)
        exact = not case.name.split(" behind")[0].endswith(("zero 3", "zero 5"))  # the others fit int8 less their zero point
        assert (np.abs(want - got).max(axis=1) <= (0 if exact else const(weight.inputs[1]))).all()


def test_what_has_no_place_in_tensorrt_is_refused_by_name():
    source = sources.load(ROOT / "demo" / "halfcheetah.zip")
    from fewbit.graph import dynamic

    with pytest.raises(FewbitError, match="TensorRT has no DynamicQuantizeLinear"):
        tensorrt.rewrite(dynamic.write(source.model))
    g = corpus.Graph(0)
    s, z = g.constant(np.float32(0.1)), g.constant(np.uint8(0))
    q = g.op("QuantizeLinear", g.input(np.ones((2, 3))), s, z)
    case = g.case("other scale", g.op("DequantizeLinear", q, g.constant(np.float32(0.2)), z))
    with pytest.raises(FewbitError, match="its codes are read in other ways"):
        tensorrt.rewrite(prepare(case.model))


def build(model: ir.Model) -> dict[str, str]:
    """{layer: type} of a rewritten model by the log of TensorRT-RTX, and that it is what the graph asks for."""
    from fewbit.targets import tensorrt_rtx

    assert len(tensorrt.serialize(tensorrt_rtx.trt, metadata.to_bytes(model))) > 1000
    asked = {n.name or "": "int8" if n.inputs[1].producer() else "float32" for n in model.graph if n.op_type in tensorrt.LAYERS}
    found = tensorrt_rtx.kernels([line for _, line in tensorrt.log_of(tensorrt_rtx.trt).lines], list(asked))
    assert found == asked
    return found


@rtx
@pytest.mark.parametrize("path", POLICIES, ids=name)
def test_every_policy_builds_with_int8_behind_the_first_layer(path, record_property):
    model, feeds = artifact(path, Scheme())
    made = tensorrt.rewrite(model)
    assert broken(made) == []
    agree(made, feeds)
    found = list(build(made).values())
    assert found.count("float32") >= 1 and (len(found) == 1 or found.count("int8") >= 1)
    record_property("measured", f"TensorRT-RTX {name(path):48} {' '.join(found)}")


@rtx
@pytest.mark.parametrize("family", ["convolutions", "narrow_weights", "recurrent"])
def test_the_corpus_builds_with_int8_where_codes_are_read(family):
    built = [build(tensorrt.rewrite(prepare(case.model))) for case in getattr(corpus, family)()]
    assert "int8" in [t for one in built for t in one.values()] or family == "recurrent"  # whose inputs have 16 bits


@rtx
def test_the_command_line_writes_file_and_engine(tmp_path):
    model, _ = artifact(ROOT / "demo" / "halfcheetah.zip", Scheme())
    path, file, engine = tmp_path / "policy.onnx", tmp_path / "policy.trt.onnx", tmp_path / "policy.engine"
    path.write_bytes(metadata.to_bytes(model))
    targets.export(path, "onnx", file, target="tensorrt")
    assert metadata.read(read(file))["target"] == "tensorrt" and broken(tensorrt.rewrite(read(file))) == []
    command = [*FEWBIT, "export", str(path), "--to", "tensorrt-rtx", "-o", str(engine)]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["runtime"].startswith("TensorRT-RTX 1.") and said["size_bytes"] == engine.stat().st_size > 0
    assert sorted(said["layers"].values()) == ["float32", "int8", "int8"]
    assert "int8" in subprocess.run(command, capture_output=True, text=True).stdout


@rtx
def test_what_cannot_be_built_is_one_line_and_leaves_no_file(tmp_path):
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", *rest]) for n, rest in (("x", [3, 3]), ("y", [])))
    nodes = [helper.make_node("Det", ["x"], ["y"], "det")]
    model = helper.make_model(helper.make_graph(nodes, "g", [x], [y]), opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    good = metadata.to_bytes(artifact(ROOT / "demo" / "halfcheetah.zip", Scheme())[0])
    for content, says in ((model.SerializeToString(), "Det"), (good[:5000], "not an ONNX file"), (b"", "is empty")):
        (tmp_path / "bad.onnx").write_bytes(content)
        command = [*FEWBIT, "export", str(tmp_path / "bad.onnx"), "--to", "tensorrt-rtx", "-o", str(tmp_path / "out.engine")]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and says in done.stderr, done.stderr
        assert [p.name for p in tmp_path.iterdir()] == ["bad.onnx"]
    from fewbit.targets import tensorrt_rtx

    with pytest.raises(FewbitError, match="TensorRT cannot read this graph: .*parse"):
        tensorrt.serialize(tensorrt_rtx.trt, b"garbage")


def test_missing_wheels_name_their_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingExtra, match=r"fewbit\[tensorrt\]"):
        tensorrt.load(tensorrt.rewrite(prepare(next(corpus.chains()).model)))
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", None)
    monkeypatch.delitem(sys.modules, "fewbit.targets.tensorrt_rtx", raising=False)
    with pytest.raises(MissingExtra, match=r"tensorrt_rtx_bindings .*fewbit\[tensorrt-rtx\]"):
        targets.export(Path("x.onnx"), "tensorrt-rtx", Path("x.engine"))


def test_a_machine_without_a_gpu_is_told_so(monkeypatch):
    runtime = types.SimpleNamespace(cudaGetDeviceCount=lambda: (100, 0))
    monkeypatch.setattr(tensorrt, "_modules", lambda: (None, runtime))
    with pytest.raises(FewbitError, match="an NVIDIA GPU, and this machine shows none"):
        tensorrt.load(prepare(next(corpus.chains()).model))


@gpu
@pytest.mark.parametrize("path", POLICIES, ids=name)
def test_a_gpu_agrees_and_its_latency_is_reported(path, record_property):
    from fewbit.bench import medians

    model, feeds = artifact(path, Scheme())
    made = tensorrt.rewrite(model)
    try:
        policy = tensorrt.load(made)
    except FewbitError as e:
        pytest.skip(str(e))
    got, want = policy(feeds).astype(np.float64), load(made, "onnxruntime")(feeds).astype(np.float64)
    apart = float(np.sqrt(np.mean((got - want) ** 2)) / (np.ptp(want) or 1))  # a flipped code grows on its way: as bench judges
    assert apart <= 0.02
    one = {k: v[:1] for k, v in feeds.items()}
    us = medians({"tensorrt": lambda _: policy(one)}, np.empty(0))["tensorrt"]
    record_property("measured", f"TensorRT {name(path):48} RMS apart {apart:.1e} of the range, {us:.1f} us an action")
