"""The .tflite that fewbit writes: LiteRT's interpreter gives every layer's codes; end to end is reported."""

import json
import subprocess
import sys
import warnings

import corpus
import ml_dtypes
import numpy as np
import pytest
from conftest import ROOT

import fewbit
from fewbit.engine.load import load
from fewbit.graph import metadata
from fewbit.graph.read import prepare, read
from fewbit.graph.strip import strip
from fewbit.targets import litert

interpreters = pytest.importorskip("ai_edge_litert.interpreter", reason="ai-edge-litert is not installed")

FEWBIT = [sys.executable, "-c", "from fewbit.cli.main import main; main()"]
SEEN = np.random.default_rng(0).normal(0, 2, (500, 17)).astype(np.float32)
FUNCTIONS = {"TANH": np.tanh, "LOGISTIC": lambda v: 1 / (1 + np.exp(-v))}


def interpreter(content: bytes, x: np.ndarray, elu: bool = False):
    """After one batch, all tensors kept, LiteRT's reference kernels (which have no Elu)."""
    kind = interpreters.OpResolverType
    chosen = {"experimental_op_resolver_type": kind.BUILTIN_WITHOUT_DEFAULT_DELEGATES if elu else kind.BUILTIN_REF}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = interpreters.Interpreter(model_content=content, experimental_preserve_all_tensors=True, **chosen)
    index = made.get_input_details()[0]["index"]
    made.resize_tensor_input(index, x.shape)
    made.allocate_tensors()
    made.set_tensor(index, x)
    made.invoke()
    return made


def action(made) -> np.ndarray:
    return made.get_tensor(made.get_output_details()[0]["index"])


def rmse(got: np.ndarray, want: np.ndarray) -> float:
    """Of the range of what is wanted."""
    return float(np.sqrt(np.mean((got - want) ** 2)) / np.ptp(want))


def layer_by_layer(made, squashed: int = 2) -> dict[str, float]:
    """Assert at most one code of every layer (`squashed` of tanh) fed the codes that it was fed; output's name -> share equal."""
    details = {t["index"]: t for t in made.get_tensor_details()}
    shares = {}
    for op in made._get_ops_details():
        out = details[op["outputs"][0]]
        x, *rest = (made.get_tensor(k) for k in op["inputs"])
        if x.dtype != np.int16 or out["dtype"] != np.int16:
            continue
        scale = {k: details[k]["quantization_parameters"]["scales"].astype(np.float64) for k in [*op["inputs"], out["index"]]}
        if op["op_name"] == "FULLY_CONNECTED":
            acc = x.astype(np.int64) @ rest[0].astype(np.int64).T + rest[1]
            assert rest[0].dtype == np.int8 and rest[1].dtype == np.int64
            want = np.rint(acc * (scale[op["inputs"][0]] * scale[op["inputs"][1]] / scale[out["index"]]))
        else:
            want = np.rint(FUNCTIONS[op["op_name"]](x * scale[op["inputs"][0]]) / scale[out["index"]])
        want, got = np.clip(want, -32768, 32767), made.get_tensor(out["index"])
        want = np.maximum(want, 0) if got.min() >= 0 else want  # a fused ReLU, which the file does not tell
        assert np.abs(got - want).max() <= (1 if rest else squashed), (op["op_name"], out["name"])
        shares[out["name"]] = float((got == want).mean())
    return shares


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_a_policy_written_by_the_command_line(weights, tmp_path, record_property):
    path, out = tmp_path / "policy.onnx", tmp_path / "policy.tflite"
    scheme = fewbit.Scheme(weights=weights, method="smooth+gptq")
    fewbit.quantize(ROOT / "demo" / "halfcheetah.zip", observations=SEEN, scheme=scheme).save(path)
    command = [*FEWBIT, "export", str(path), "--to", "litert", "-o", str(out), "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"files": [str(out)], "size_bytes": out.stat().st_size}
    made = interpreter(out.read_bytes(), SEEN)
    shares = layer_by_layer(made)
    assert len(shares) == 4  # three layers, and tanh
    got, want, floats = action(made), load(read(path), "reference")(SEEN), load(strip(read(path)), "reference")(SEEN)
    apart, nearer, theirs = rmse(got, want), rmse(got, floats), rmse(want, floats)
    equal = ", ".join(f"{s:.3%}" for s in shares.values())
    row = f"LiteRT {weights}: equal codes {equal}; action RMSE {apart:.1e} of the range from the artifact"
    record_property(
        "measured", f"{row}, {nearer:.1e} from the same weights without quantized activations (artifact {theirs:.1e})"
    )
    assert apart < 3e-2 and nearer < theirs  # hidden activations have 16 bits here and 8 in the artifact
    one = interpreters.Interpreter(model_path=str(out)).get_signature_runner()
    np.testing.assert_allclose(one(observation=SEEN[:1])["action"][0], got[0], atol=1e-3)


def test_the_file_keeps_codes_names_and_record(tmp_path):
    g = corpus.Graph(3)
    weight = g.rng.integers(-8, 8, (5, 9)).astype(ml_dtypes.int4)
    y = g.qdq(g.gemm(g.entry("int16", 9, 2.0**-8), 2.0**-8, weight, np.full(5, 0.01), np.arange(5)), "uint8", 0.02)
    y = g.gemm(y, 0.02, g.rng.integers(-128, 128, (3, 5)).astype(np.int8), np.full(3, 0.01), np.arange(3))
    case = g.case("kept", g.qdq(g.op("Elu", g.qdq(y, "int16", 2.0**-8)), "int8", 0.05))
    model = prepare(case.model)
    metadata.write(model, {"contract": "c"})
    content = litert.convert(model)
    assert content == litert.convert(model)
    assert content.index(weight.astype(np.int8).tobytes()) % 16 == 0
    made = interpreter(content, case.feeds["x0"], elu=True)
    assert made.get_input_details()[0]["name"] == "x0" and len(layer_by_layer(made)) == 2
    assert b'{"contract": "c", "target": "litert"}' in content
    want = load(model, "reference")(case.feeds["x0"])
    assert np.abs(action(made) - want).max() <= 2.01 * 0.05


@pytest.mark.parametrize("family", [corpus.linear, corpus.chains, corpus.tables])
def test_graphs_of_the_corpus_run_or_are_refused_by_name(family):
    ran = 0
    for case in family():
        try:
            content = litert.convert(prepare(case.model))
        except fewbit.FewbitError as e:
            assert "LiteRT" in str(e), case.name
            continue
        layer_by_layer(interpreter(content, case.feeds["x0"], "elu" in case.name))
        ran += 1
    assert ran > 5
