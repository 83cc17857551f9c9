"""ONNX's LSTM and GRU operators of one step, as exporters write them, against ONNX Runtime on the operators themselves."""

import json
import subprocess
import sys

import executors
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import fewbit
from fewbit import pipeline, sources
from fewbit.cli.main import main
from fewbit.engine.load import load
from fewbit.graph.calibrate import session

N_IN, HIDDEN, OUT = 5, 6, 2
FEWBIT = [sys.executable, "-c", "from fewbit.cli.main import main; main()"]


class Exporter:
    """A policy around one or two such operators: how the observation gets its axis of time, and the layers their states."""

    def __init__(self, kind: str, layers: int = 1, time: str = "unsqueeze", by: str = "slice", bias: bool = True, **attributes):
        self.kind, self.rng, self.nodes, self.constants = kind, np.random.default_rng(layers), [], []
        names = ["h", "c"] if kind == "LSTM" else ["h"]
        x, shape = "observation", ["batch", 1, N_IN] if time == "transpose" else ["batch", N_IN]
        if time == "unsqueeze":
            x = self.op("Unsqueeze", x, self.constant(np.array([0])))
        elif time == "transpose":
            x = self.op("Transpose", x, perm=[1, 0, 2])
        held = {n: self.by_layer(n, layers, by) for n in names}
        left: dict[str, list[str]] = {n: [] for n in names}
        for k in range(layers):
            made = self.layer(x, N_IN if k == 0 else HIDDEN, [held[n][k] for n in names], bias, attributes)
            for n, out in zip(names, made[1:], strict=False):
                left[n].append(out)
            x = self.op("Squeeze", made[0], self.constant(np.array([1])))
        last = self.op("Squeeze", x, self.constant(np.array([0])))
        weight, offset = self.normal(OUT, HIDDEN), self.normal(OUT)
        self.nodes.append(helper.make_node("Gemm", [last, weight, offset], ["action"], transB=1))
        for n in names:
            node = ("Concat", left[n], {"axis": 0}) if layers > 1 else ("Identity", left[n], {})
            self.nodes.append(helper.make_node(node[0], node[1], [f"{n}_next"], **node[2]))
        states = [(n, [layers, "batch", HIDDEN]) for n in names]
        inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in [("observation", shape), *states]]
        ends = [("action", ["batch", OUT]), *((f"{n}_next", s) for n, s in states)]
        outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in ends]
        graph = helper.make_graph(self.nodes, "policy", inputs, outputs, self.constants)
        self.model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        self.states, self.shape = names, shape[1:]

    def op(self, op: str, *inputs: str, outputs: int = 1, **attributes) -> str:
        names = [f"{op.lower()}{len(self.nodes)}_{k}" for k in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, name=names[0], **attributes))
        return names[0]

    def constant(self, array: np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(array, f"constant{len(self.constants)}"))
        return self.constants[-1].name

    def normal(self, *shape: int) -> str:
        return self.constant(self.rng.normal(0, 0.5, shape).astype(np.float32))

    def by_layer(self, name: str, layers: int, by: str) -> list[str]:
        if layers == 1:
            return [name]
        if by == "split":
            first = self.op("Split", name, self.constant(np.ones(layers, np.int64)), outputs=layers, axis=0)
            return [f"{first[:-1]}{k}" for k in range(layers)]
        ends = [(self.constant(np.array([k])), self.constant(np.array([k + 1]))) for k in range(layers)]
        return [self.op("Slice", name, start, end, self.constant(np.array([0]))) for start, end in ends]

    def layer(self, x: str, width: int, held: list[str], bias: bool, attributes: dict) -> list[str]:
        rows = (4 if self.kind == "LSTM" else 3) * HIDDEN
        weights = [self.normal(1, rows, width), self.normal(1, rows, HIDDEN), self.normal(1, 2 * rows) if bias else ""]
        names = [f"{self.kind}{len(self.nodes)}{end}" for end in ("_y", "_h", "_c")[: 1 + len(held)]]
        node = helper.make_node(self.kind, [x, *weights, "", *held], names, name=names[0], hidden_size=HIDDEN, **attributes)
        self.nodes.append(node)
        return names

    def save(self, path) -> None:
        path.write_bytes(self.model.SerializeToString())


KINDS = [("LSTM", {}), ("GRU", {"linear_before_reset": 1}), ("GRU", {})]


@pytest.mark.parametrize("kind,attributes", KINDS, ids=["LSTM", "GRU-after", "GRU-before"])
@pytest.mark.parametrize(
    "layers,time,by,bias",
    [(1, "unsqueeze", "", True), (1, "transpose", "", False), (2, "unsqueeze", "slice", True), (3, "unsqueeze", "split", True)],
)
def test_one_step_is_the_operators(kind, attributes, layers, time, by, bias, tmp_path):
    made = Exporter(kind, layers, time, by, bias, **attributes)
    onnx.checker.check_model(made.model, full_check=True)
    made.save(tmp_path / "policy.onnx")
    source = sources.load(tmp_path / "policy.onnx")
    ops = {n.op_type for n in source.model.graph}
    assert not ops & {"LSTM", "GRU", "Unsqueeze", "Slice"} and ops <= {
        "Concat", "Gemm", "Split", "Sigmoid", "Tanh", "Mul", "Add", "Sub", "Squeeze", "Transpose",
    }, ops  # fmt: skip
    runner, policy = session(made.model), load(source.model, "onnxruntime")
    assert len(policy.states) == layers * len(made.states)
    declared = sources.load(tmp_path / "policy.onnx", state={n: (f"{n}_next", None) for n in made.states})
    assert declared.state == source.state and source.contract["action"] == {"action": [OUT]}
    rng = np.random.default_rng(0)
    state = {n: np.zeros((layers, 3, HIDDEN), np.float32) for n in made.states}
    for _ in range(20):
        seen = rng.normal(size=(3, *made.shape)).astype(np.float32)
        want, *left = runner.run(None, {"observation": seen} | state)
        state = dict(zip(made.states, left, strict=True))
        assert np.abs(policy(seen) - want).max() < 1e-5


@pytest.mark.parametrize("kind,attributes", KINDS, ids=["LSTM", "GRU-after", "GRU-before"])
@pytest.mark.parametrize("layers", [1, 2])
def test_quantized_it_is_the_same_bits_by_all(kind, attributes, layers, tmp_path):
    Exporter(kind, layers, **attributes).save(tmp_path / "policy.onnx")
    rng = np.random.default_rng(0)
    seen = rng.normal(size=(3, 40, N_IN)).astype(np.float32)
    artifact = fewbit.quantize(tmp_path / "policy.onnx", observations=seen, scheme=fewbit.Scheme(method="smooth+gptq"))
    float_, near = load(sources.load(tmp_path / "policy.onnx").model, "onnxruntime"), load(artifact.model)
    pairs = [(float_(seen[:, k]), near(seen[:, k])) for k in range(40)]
    want, got = (np.stack(p) for p in zip(*pairs, strict=True))
    assert np.sqrt(((want - got) ** 2).mean()) < 0.02 * np.ptp(want)
    executors.agree(artifact.model, seen, tmp_path)


@pytest.mark.parametrize(
    "attributes,reason",
    [(dict(direction="reverse"), "direction reverse"), (dict(clip=3.0), "activations of its own"),
     (dict(activations=["Sigmoid", "Relu", "Tanh"]), "activations of its own"), (dict(time="sequence"), "more than one step")],
)  # fmt: skip
def test_what_is_no_step_is_refused_by_name(attributes, reason, tmp_path):
    made = Exporter("LSTM", **attributes)
    if "time" in attributes:
        made.model.graph.input[0].type.tensor_type.shape.dim.add().dim_value = N_IN
        made.model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 3
    made.save(tmp_path / "policy.onnx")
    with pytest.raises(fewbit.FewbitError, match=f"LSTM with {reason}"):
        fewbit.quantize(
            tmp_path / "policy.onnx",
            observations=np.zeros((2, 3, N_IN), np.float32),
            scheme=fewbit.Scheme(method="rtn"),
            state={n: (f"{n}_next", None) for n in made.states},
        )


def plain(path) -> None:
    """A state without the operators: h' = tanh(W [x, h]), action = V h'."""
    rng = np.random.default_rng(0)
    arrays = {"w": rng.normal(0, 0.4, (HIDDEN, N_IN + HIDDEN)), "v": rng.normal(0, 0.4, (OUT, HIDDEN))}
    nodes = [
        helper.make_node("Concat", ["observation", "h"], ["both"], axis=1),
        helper.make_node("Gemm", ["both", "w"], ["before"], transB=1),
        helper.make_node("Tanh", ["before"], ["h_next"]),
        helper.make_node("Gemm", ["h_next", "v"], ["action"], transB=1),
    ]
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", k]) for n, k in
            [("observation", N_IN), ("h", HIDDEN), ("action", OUT), ("h_next", HIDDEN)]]  # fmt: skip
    constants = [numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items()]
    graph = helper.make_graph(nodes, "policy", info[:2], info[2:], constants)
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString())


def test_a_state_declared_on_the_command_line(tmp_path):
    plain(tmp_path / "policy.onnx")
    np.save(tmp_path / "seen.npy", np.random.default_rng(0).normal(size=(3, 40, N_IN)).astype(np.float32))
    given = [*FEWBIT, "quantize", str(tmp_path / "policy.onnx"), "-o", str(tmp_path / "out.onnx")]
    given += ["--observations", str(tmp_path / "seen.npy"), "--method", "rtn"]
    for wrong, message in [
        ([], "the policy takes observation, h, one array is not enough; give a .npz file"),
        (["--state", "h"], "--state h: give INPUT=OUTPUT"),
        (["--state", "g=h_next"], "it has no input g; it has observation, h"),
        (["--state", "h=next"], "it has no output next; it has action, h_next"),
        (["--state", "h=action"], "the input is [6] behind the batch, the output [2]"),
        (["--state", "h=h_next", "--state", "observation=action"], "is [5] behind the batch, the output [2]"),
    ]:
        done = subprocess.run([*given, *wrong], capture_output=True, text=True)
        assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr
        assert not (tmp_path / "out.onnx").exists()
    done = subprocess.run([*given, "--state", "h=h_next"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    executors.agree(load_model(tmp_path / "out.onnx"), np.load(tmp_path / "seen.npy"), tmp_path)
    rows = pipeline.diff(tmp_path / "policy.onnx", tmp_path / "out.onnx", tmp_path / "seen.npy")
    assert rows


def load_model(path):
    from fewbit.graph.read import read

    return read(path)


PAIR = {"input": "h", "output": "h_next"}
DAMAGED = [
    "h", 5, {"input": "h"}, ["h"], [None], [{"input": "h"}],
    [{"output": "h_next"}], [PAIR | {"input": "g"}], [PAIR | {"output": 3}],
    [PAIR | {"input": ["h"]}], [PAIR, PAIR], [PAIR, {"input": "observation", "output": "action"}], [PAIR | {"initial": [0.0]}],
    [PAIR | {"initial": "zeros"}], [PAIR | {"initial": [float("nan")] * HIDDEN}], [PAIR | {"initial": [1e400] * HIDDEN}],
    [PAIR | {"initial": {"a": 1}}], [PAIR | {"initial": [[1], [2, 3]]}], [PAIR | {"initial": [10**400] * HIDDEN}],
]  # fmt: skip


@pytest.fixture(scope="module")
def remembering(tmp_path_factory):
    folder = tmp_path_factory.mktemp("remembering")
    plain(folder / "policy.onnx")
    seen = np.random.default_rng(0).normal(size=(3, 40, N_IN)).astype(np.float32)
    state, scheme = {"h": ("h_next", None)}, fewbit.Scheme(method="rtn")
    fewbit.quantize(folder / "policy.onnx", observations=seen, scheme=scheme, state=state).save(folder / "out.onnx")
    return folder / "out.onnx"


@pytest.mark.parametrize("state", DAMAGED, ids=str)
def test_a_damaged_record_of_the_state(state, remembering, tmp_path, capfd, monkeypatch):
    """One clear line and exit 2 by every verb that reads an artifact, and by quantize of such a file."""
    model = onnx.load(remembering)
    (record,) = [p for p in model.metadata_props if p.key == "fewbit"]
    record.value = json.dumps(json.loads(record.value) | {"state": state})
    onnx.save(model, tmp_path / "out.onnx")
    np.save(tmp_path / "seen.npy", np.zeros((2, 3, N_IN), np.float32))
    out, seen = str(tmp_path / "out.onnx"), ["--observations", str(tmp_path / "seen.npy")]
    for arguments in (
        ["inspect", out], ["evaluate", out, "--env", "Pendulum-v1"], ["export", out, "--to", "c", "-o", str(tmp_path / "c")],
        ["bench", out], ["quantize", out, "-o", str(tmp_path / "again.onnx"), *seen], ["diff", out, out, *seen],
    ):  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["fewbit", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        said = capfd.readouterr().err
        assert left.value.code == 2 and said.count("\n") == 1 and "its record of the state is damaged" in said, (arguments, said)
    assert {p.name for p in tmp_path.iterdir()} == {"out.onnx", "seen.npy"}


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_torchs_own_layers_in_a_module(kind, tmp_path):
    """torch.nn.LSTM and GRU of two layers, whose export is these operators; an initial state that is not zero."""

    class Policy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.memory = torch.nn.Linear(N_IN, 8), getattr(torch.nn, kind)(8, HIDDEN, 2)
            self.head = torch.nn.Linear(HIDDEN, OUT)

        def forward(self, x, *states):  # each [n, 2, hidden] or, here, its layers apart
            held = [torch.stack(states[k : k + 2]) for k in range(0, len(states), 2)]
            y, left = self.memory(torch.relu(self.first(x)).unsqueeze(0), tuple(held) if kind == "LSTM" else held[0])
            left = left if kind == "LSTM" else (left,)
            return (self.head(y.squeeze(0)), *(s[k] for s in left for k in range(2)))

    torch.manual_seed(0)
    module, rng = Policy().eval(), np.random.default_rng(0)
    names = [f"{s}{k}" for s in ("hc" if kind == "LSTM" else "h") for k in range(2)]
    first = {n: rng.uniform(-0.5, 0.5, HIDDEN).astype(np.float32) for n in names}
    state = {n: (f"{n}_next", v) for n, v in first.items()}
    policy = load(sources.load(module, state=state).model, "onnxruntime")
    held = [torch.tensor(first[n]).expand(3, HIDDEN) for n in names]
    seen = rng.normal(size=(3, 30, N_IN)).astype(np.float32)
    with torch.no_grad():
        for k in range(30):
            want, *held = module(torch.tensor(seen[:, k]), *held)
            assert np.abs(policy(seen[:, k]) - want.numpy()).max() < 1e-5
    artifact = fewbit.quantize(module, observations=seen, scheme=fewbit.Scheme(method="rtn"), state=state)
    executors.agree(artifact.model, seen, tmp_path)
