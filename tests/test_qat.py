"""Training under quantization: the module's codes are the artifact's, gradients are LSQ's, a killed run ends as any other."""

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from conftest import ROOT

import fewbit
from fewbit import sources
from fewbit.engine import native, reference
from fewbit.engine.load import load, quickest
from fewbit.engine.lower import lower
from fewbit.graph import metadata
from fewbit.graph.layers import layers
from fewbit.graph.qdq import Scheme
from fewbit.graph.read import read
from fewbit.sources import recurrent, torch_module
from fewbit.train import checkpoint, distill, torch_run
from fewbit.train.qat import Codes
from fewbit.train.student import student, teacher
from fewbit.training import Training

Linear = torch.nn.Linear


class Residual(torch.nn.Module):
    """A sum, a product and a concatenation of what layers made."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = Linear(6, 16), Linear(16, 16), Linear(16, 16), Linear(32, 3)

    def forward(self, x):
        h = torch.relu(self.a(x))
        s = self.b(h) + self.c(h)
        return torch.tanh(self.d(torch.cat([s, torch.sigmoid(self.b(h)) * torch.tanh(s)], 1)))


class Step(torch.nn.Module):
    """One step of a GRU."""

    def __init__(self):
        super().__init__()
        self.cell, self.head = torch.nn.GRUCell(6, 12), Linear(12, 2)

    def forward(self, x, h):
        c = self.cell
        new = recurrent.gru(x, h, (c.weight_ih, c.weight_hh, c.bias_ih, c.bias_hh))
        return torch.tanh(self.head(new)), new


class Unnamed(torch.nn.Module):
    """Its inputs are named by whoever exports it."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *inputs):
        return self.inner(*inputs)


def dense(activation):
    return torch.nn.Sequential(Linear(6, 24), activation, Linear(24, 24), activation, Linear(24, 3), torch.nn.Tanh())


def image():
    n = torch.nn
    layers = [n.Conv2d(2, 5, 3, stride=2, padding=1), n.ReLU(), n.Conv2d(5, 4, 2), n.ReLU(), n.Flatten(), Linear(16, 3)]
    return torch.nn.Sequential(*layers)


NETS = {
    "relu": lambda: dense(torch.nn.ReLU()),
    "elu": lambda: dense(torch.nn.ELU()),
    "silu": lambda: dense(torch.nn.SiLU()),
    "tanh": lambda: dense(torch.nn.Tanh()),
    "joins": Residual,
    "image": image,
}


def source(name: str) -> tuple[sources.Source, dict[str, np.ndarray]]:
    """A network with the seed's weights, and observations of it."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, *((2, 6, 6) if name == "image" else (6,)))).astype(np.float32)
    if name != "gru":
        found = torch_module.load(NETS[name](), x.shape[1:])
        return found, {found.model.graph.inputs[0].name or "": x}
    model = torch_module.export(Unnamed(Step()), {"observation": torch.zeros(2, 6), "h": torch.zeros(2, 12)}, ("action", "h_out"))
    feeds = {"observation": x, "h": rng.uniform(-1, 1, (300, 12)).astype(np.float32)}
    return sources.Source(model, "gru", "", {}, ({"input": "h", "output": "h_out"},)), feeds


@pytest.mark.parametrize("weights", ["int8", "int4", "int2", "ternary"])
@pytest.mark.parametrize("name", [*NETS, "gru"])
def test_the_artifact_gives_the_modules_codes(name, weights):
    """Every register, after every parameter was shaken; and the engine's actions."""
    original, feeds = source(name)
    made = student(original.model, feeds, Scheme(weights))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in made.module.parameters():
            parameter += 0.3 * torch.randn_like(parameter) * (1 if parameter.ndim > 1 else 0.3)
    seen = {k: np.concatenate([v, 9 * v]) for k, v in feeds.items()}  # what saturates too
    registers = made.module({k: torch.from_numpy(v) for k, v in seen.items()})
    program = lower(made.artifact())
    want = reference.run(program, seen)
    compared = 0
    for name_, got in registers.items():
        if name_ in want and name_ not in seen:
            values = got.steps + got.reading.zero_point if isinstance(got, Codes) else got
            assert np.array_equal(values.detach().numpy().astype(want[name_].dtype), want[name_]), name_
            compared += isinstance(got, Codes)
    assert compared >= 2 and want[program.outputs[0]].std() > 0.01
    native.load(program)
    action = quickest(made.artifact())(seen)
    assert np.array_equal(action, registers[program.outputs[0]].detach().numpy())


@pytest.mark.parametrize("bits", [22, 19, 12])
def test_multipliers_are_the_specifications(bits):
    from fewbit.numerics import semantics

    rng = np.random.default_rng(0)
    ratios = np.concatenate([2.0 ** rng.uniform(-45, 3, 2000), [0.5, 1 - 2.0**-40, 2.0**-41, 2.0**-39]])
    got = torch_run.fixed(torch.tensor(ratios), bits).numpy()
    want = [m / 2.0**s for m, s in (semantics.multiplier(r, (1 << (53 - bits)) - 1, bits) for r in ratios)]
    assert np.array_equal(got, want)


def test_training_without_an_environment_beats_every_other_method():
    torch.manual_seed(0)
    net = dense(torch.nn.ReLU())
    x = np.random.default_rng(0).normal(size=(3000, 6)).astype(np.float32)
    want = net(torch.tensor(x)).detach().numpy()
    errors = {}
    for method in ("rtn", "smooth+gptq", "qat"):
        made = fewbit.quantize(net, observations=x, scheme=Scheme("int3", method=method), training=Training(steps=1500))
        errors[method] = float(((load(made.model)(x) - want) ** 2).mean())
    assert errors["qat"] < 0.6 * min(errors["rtn"], errors["smooth+gptq"]), errors
    assert made.record["training"]["step"] == 1500 and made.record["recipe"]["training_steps"] == 1500


def test_a_classifier_is_trained_on_its_data_loader():
    """By cross-entropy against the float network's own preferences, labels unused."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(Linear(6, 32), torch.nn.ReLU(), Linear(32, 5))
    x = torch.randn(2000, 6)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, torch.zeros(2000)), batch_size=100)
    best, agree = net(x).argmax(1).numpy(), {}
    for method in ("smooth+gptq", "qat"):
        how = Training(steps=1000, loss="cross_entropy")
        made = fewbit.quantize(net, observations=loader, scheme=Scheme("int2", method=method), training=how)
        agree[method] = (load(made.model)(x.numpy()).argmax(1) == best).mean()
    assert agree["qat"] > 0.9 and agree["qat"] > agree["smooth+gptq"] + 0.02, agree
    with pytest.raises(fewbit.FewbitError, match="choose one of mse, cross_entropy"):
        fewbit.quantize(net, observations=x.numpy(), scheme=Scheme("int2", method="qat"), training=Training(loss="hinge"))
    with pytest.raises(fewbit.FewbitError, match="--train-steps 0"):
        fewbit.quantize(net, observations=x.numpy(), scheme=Scheme("int2", method="qat"), training=Training(steps=0))


def test_trained_weights_go_back_into_the_float_graph():
    """Under the same names; untouched, they are the same weights."""
    original, feeds = source("relu")
    made = student(original.model, feeds, Scheme("int4"))
    before, after = (load(m, "onnxruntime")(feeds) for m in (original.model, made.trained()))
    assert np.allclose(before, after, atol=1e-5)
    assert set(made.trained().graph.initializers) == set(made.floats.graph.initializers)


class Killed(Exception):
    pass


def test_a_killed_run_ends_as_if_it_had_not_been(tmp_path):
    original, feeds = source("relu")
    plan = distill.Plan(steps=90, rounds=3)
    path = tmp_path / "run.part"

    def run(file, die: bool) -> ir.Model:
        made = student(original.model, feeds, Scheme("int2"))
        task = distill.Task(teacher(original.model), lambda m: 0.0, lambda m, k: {k_: v[k::7] for k_, v in feeds.items()})
        resume, save = checkpoint.functions(file, "this run")

        def saving(r):
            save(r)
            if die and r.done["step"] == 60:
                raise Killed

        distill.fit(made, feeds, task, plan, resume=resume, save=saving)
        return made.artifact()

    whole = run(None, False)
    with pytest.raises(Killed):
        run(path, True)
    assert metadata.to_bytes(run(path, False)) == metadata.to_bytes(whole)


def test_a_checkpoint_of_another_run_is_started_over_and_a_damaged_one_refused(tmp_path):
    original, feeds = source("relu")
    made, path = student(original.model, feeds, Scheme("int4")), tmp_path / "run.part"
    task = distill.Task(teacher(original.model), lambda m: 0.0)
    run = distill.begin(made, feeds, task, distill.Plan())
    checkpoint.functions(path, "one")[1](run)
    run.done["step"] = 5
    checkpoint.functions(path, "two")[0](run)
    assert run.done["step"] == 5
    checkpoint.functions(path, "one")[0](run)
    assert run.done["step"] == 0
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(fewbit.FewbitError, match="remove it to start over"):
        checkpoint.functions(path, "one")[0](run)


def test_the_best_round_is_kept():
    original, feeds = source("relu")
    scores = iter([1.0, 3.0, 2.0])
    made, seen = student(original.model, feeds, Scheme("int4")), []
    task = distill.Task(teacher(original.model), lambda m: seen.append(metadata.to_bytes(m)) or next(scores))
    record = distill.fit(made, feeds, task, distill.Plan(steps=30, rounds=3))
    assert metadata.to_bytes(made.artifact()) == seen[1] != seen[2]
    assert record["best"] == 3.0 and [s for s, _ in record["rounds"]] == [10, 20, 30]


def test_bits_are_lowered_gradually_and_only_what_is_asked_for_is_chosen():
    original, feeds = source("relu")
    made, acted = student(original.model, feeds, Scheme("int2")), []
    task = distill.Task(teacher(original.model), lambda m: 1.0, lambda m, k: acted.append(most(m)) or feeds)
    record = distill.fit(made, feeds, task, distill.Plan(steps=60, rounds=10))
    assert [s is None for _, s in record["rounds"]] == [True] * 3 + [False] * 7
    assert acted[:3] == [8, 4, 4] and acted[3] == most(made.artifact()) == 2


def most(model: ir.Model) -> int:
    """The largest code of a weight."""
    return max(int(np.abs(s.weight).max()) for s in lower(model).steps if hasattr(s, "weight"))


def test_layers_apart_and_nothing_to_learn_from():
    original, feeds = source("relu")
    with pytest.raises(fewbit.FewbitError, match="nothing to calibrate on"):
        fewbit.quantize(dense(torch.nn.ReLU()), scheme=Scheme("int4", method="qat"))
    head = layers(original.model)[-1].node.name or ""
    made = student(original.model, feeds, replace(Scheme("int4"), layers=((head, "int8"),)))
    assert [layer.format.name for layer in made.module.layers.children()] == ["int4", "int4", "int8"]


@pytest.mark.slow
def test_int4_of_a_real_policy_is_trained_within_a_minute():
    """The shipped HalfCheetah policy, of which rounding keeps little at int4."""
    path, kept = ROOT / "demo" / "halfcheetah.zip", {}
    for method in ("rtn", "qat"):
        how = Training(steps=3000)
        made = fewbit.quantize(path, "HalfCheetah-v5", scheme=Scheme("int4", method=method), episodes=5, training=how)
        kept[method] = made.record["evidence"]["kept"]
    assert kept["rtn"] < 0.9 and kept["qat"] > 0.95, kept


def test_the_command_goes_on_after_a_kill(tmp_path):
    """A checkpoint lies beside the output while it trains; killed and started again it ends with the same codes."""
    original, feeds = source("relu")
    source_, code = tmp_path / "source.onnx", "from fewbit.cli.main import main; main()"
    source_.write_bytes(metadata.to_bytes(original.model))
    np.save(tmp_path / "x.npy", next(iter(feeds.values())))
    options = "--observations x.npy --weights int4 --method qat --train-steps 3000"
    files = {name: tmp_path / name for name in ("whole.onnx", "killed.onnx")}
    commands = {n: [sys.executable, "-c", code, "quantize", str(source_), "-o", n, *options.split()] for n in files}
    killed = subprocess.Popen(commands["killed.onnx"], cwd=tmp_path)
    part = tmp_path / ".killed.onnx.training.part"
    while not part.exists() and killed.poll() is None:
        time.sleep(0.05)
    killed.kill()
    killed.wait()
    assert part.exists() and not files["killed.onnx"].exists()
    for name in files:
        subprocess.run(commands[name], cwd=tmp_path, check=True, capture_output=True)
    assert not list(tmp_path.glob(".*")) and codes_of(files["killed.onnx"]) == codes_of(files["whole.onnx"])


def codes_of(path: Path) -> list[bytes]:
    return [v.const_value.numpy().tobytes() for v in read(path).graph.initializers.values() if v.const_value is not None]
