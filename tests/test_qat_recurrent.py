"""Training what remembers: the codes of whole episodes are the artifact's, the gradient goes back through time."""

import numpy as np
import onnx_ir as ir
import pytest
import torch

import fewbit
from fewbit.engine.load import load
from fewbit.graph import metadata
from fewbit.graph.qdq import Scheme
from fewbit.numerics import affine
from fewbit.numerics.formats import INTEGERS
from fewbit.observations import calibration
from fewbit.sources import Source, recurrent, torch_module
from fewbit.train import checkpoint, distill, unroll
from fewbit.train.student import student, teacher
from fewbit.train.unroll import TIME
from fewbit.training import Training

Linear = torch.nn.Linear
HIDDEN = 10


class Net(torch.nn.Module):
    """A layer before the memory, the memory (an LSTM's or a GRU's), two layers behind it."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind, self.cell = kind, (torch.nn.LSTMCell if kind == "lstm" else torch.nn.GRUCell)(8, HIDDEN)
        self.entry, self.hidden, self.head = Linear(5, 8), Linear(HIDDEN, 8), Linear(8, 2)

    def forward(self, x, h, c=None):
        cell, x = self.cell, torch.relu(self.entry(x))
        weights = (cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh)
        after = recurrent.lstm(x, h, c, weights) if self.kind == "lstm" else (recurrent.gru(x, h, weights),)
        return torch.tanh(self.head(torch.nn.functional.elu(self.hidden(after[0])))), *after


def source(kind: str = "lstm") -> tuple[torch.nn.Module, Source]:
    """The seed's weights, and an episode that starts with some memory."""
    torch.manual_seed(0)
    net = Net(kind)
    starts = {"h": np.full(HIDDEN, 0.25, np.float32), "c": np.linspace(-1, 1, HIDDEN, dtype=np.float32)}
    state = {k: (f"{k}_next", v) for k, v in starts.items() if k == "h" or kind == "lstm"}
    return net, torch_module.load(net, (5,), state)


def observed(original: Source, episodes: int = 6, steps: int = 40, seed: int = 0) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    seen = np.cumsum(np.random.default_rng(seed).normal(0, 0.4, (episodes, steps, 5)), 1).astype(np.float32)
    return seen, calibration(original, None, seen, None, 0)


def shake(module: torch.nn.Module) -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.3 * torch.randn_like(parameter) * (1 if parameter.ndim > 1 else 0.3)


def walked(model: ir.Model, seen: np.ndarray, executor: str = "reference") -> tuple[np.ndarray, list[dict[str, np.ndarray]]]:
    """Actions [episodes, steps, ...], and what was remembered before each step."""
    policy = load(model, executor)
    state, states, actions = policy.initial(len(seen)), [], []
    for k in range(seen.shape[1]):
        states.append(state)
        action, state = policy.step(seen[:, k], state)
        actions.append(action)
    return np.stack(actions, 1), states


@pytest.mark.parametrize("weights", ["int8", "int4", "int2"])
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_the_artifact_gives_the_modules_codes_over_whole_episodes(kind, weights):
    _, original = source(kind)
    seen, feeds = observed(original)
    made = student(original.model, feeds, Scheme(weights))
    shake(made.module)
    assert [len(steps) > 0 for steps in (made.module.before, made.module.loop, made.module.behind)] == [True] * 3
    rows = distill.rows_of(made, teacher(original.model), feeds)
    index = made.module.all(rows)
    got = made.module.run({k[2:]: v[index] for k, v in rows.items() if k.startswith("x.")})
    actions, states = walked(made.artifact(), seen)
    assert np.array_equal(got["action"].detach().numpy(), actions.swapaxes(0, 1).reshape(-1, 2)) and actions.std() > 0.01
    for name, held in zip(states[0], made.module.program.state, strict=True):
        codes = got[held.output].floats().detach().numpy().reshape(40, 6, -1)
        assert np.array_equal(codes[:-1], np.stack([s[name] for s in states[1:]])) and codes.std() > 0.01


def test_what_is_remembered_is_brought_up_to_the_weights_of_the_round():
    """After the weights changed, as the engine remembers it; an episode whose beginning was dropped keeps what it began with."""
    _, original = source()
    seen, feeds = observed(original)
    made = student(original.model, feeds, Scheme("int4"))
    rows = distill.rows_of(made, teacher(original.model), feeds)
    shake(made.module)
    made.module.refresh(rows)
    states = walked(made.artifact(), seen, "native")[1]
    for name, held in zip(states[0], made.module.program.state, strict=True):
        want = np.stack([s[name] for s in states], 1).reshape(-1, HIDDEN)
        scale, zero = made.module.program.readings[held.input]
        codes = affine.quantize(want, np.float32(scale), zero, INTEGERS["int16"])
        assert np.array_equal(rows[f"x.{held.input}"].numpy(), codes)
    cut = {k: v[13:].clone() for k, v in rows.items()}
    with torch.no_grad():
        for name in [s.input for s in made.module.program.state]:
            cut[f"x.{name}"][1:] = 0
    made.module.refresh(cut)
    assert all(torch.equal(v, rows[k][13:]) for k, v in cut.items())


def test_the_float_policy_remembers_by_itself():
    net, original = source()
    seen, feeds = observed(original)
    for name in ("h", "c"):
        feeds[name] = np.zeros_like(feeds[name])  # what the student remembered is not its business
    got = teacher(original.model)(feeds)
    assert np.allclose(got["action"].reshape(6, 40, 2), walked(original.model, seen, "onnxruntime")[0], atol=1e-6)


@pytest.mark.parametrize("steps", [1, 12])
def test_the_gradient_through_time_is_that_of_the_float_network(steps):
    """At 16 bits, of the last step's action by every weight, against autograd over torch's own cells."""
    net, original = source()
    seen, feeds = observed(original)
    made = student(original.model, feeds, Scheme("int16", "uint16"))
    rows = distill.rows_of(made, teacher(original.model), feeds)
    index = made.module.all(rows)[:steps]
    got = made.module.run({k[2:]: v[index] for k, v in rows.items() if k.startswith("x.")})["action"]
    got.reshape(steps, 6, 2)[-1].sum().backward()
    h, c = (torch.tensor(s.initial).repeat(6, 1) for s in load(original.model, "onnxruntime").states)
    for k in range(steps):
        h, c = net.cell(torch.relu(net.entry(torch.tensor(seen[:, k]))), (h, c))
    torch.tanh(net.head(torch.nn.functional.elu(net.hidden(h)))).sum().backward()
    wanted = [net.entry.weight.grad, torch.cat([net.cell.weight_ih.grad, net.cell.weight_hh.grad], 1), net.hidden.weight.grad]
    for layer, want in zip(made.module.layers.children(), [*wanted, net.head.weight.grad], strict=True):
        mine = layer.weight.grad / layer.first[:, None]
        assert want is not None and torch.norm(mine - want) < 0.02 * torch.norm(want), torch.norm(mine - want) / torch.norm(want)


def test_stretches_lie_within_episodes():
    _, original = source()
    made = student(original.model, observed(original)[1], Scheme("int4"))
    lengths = np.array([9, 1, 30, 16, 4])
    time = np.concatenate([np.arange(n) for n in lengths])[3:]
    episode = np.repeat(np.arange(5), lengths)[3:]
    rows, generator = {f"x.{TIME}": torch.from_numpy(time)}, torch.Generator().manual_seed(0)
    index = made.module.draw(rows, 500, 8, generator).numpy()
    assert index.shape == (8, 500) and (np.diff(index, axis=0) == 1).all() and (episode[index] == episode[index[0]]).all()
    assert len(np.unique(index[0])) == 23 + 9  # every place that has 7 more behind it
    short = torch.tensor([90, 91, 92, 0, 1, 2, 3, 4, 0])  # all shorter, and of the first the beginning is not kept any more
    assert made.module.draw({f"x.{TIME}": short}, 3, 8, generator).tolist() == [[k] * 3 for k in range(3, 8)]


def test_episodes_are_walked_side_by_side():
    episodes = np.array([7, 7, 7, 3, 9, 9])
    assert unroll.times(episodes).tolist() == [0, 1, 2, 0, 0, 1]
    assert [i.tolist() for i in unroll.lockstep(np.array([0, 1, 2, 0, 0, 1]))] == [[0, 4, 3], [1, 5], [2]]
    assert [i.tolist() for i in unroll.lockstep(np.array([5, 6, 0, 1, 2]))] == [[2, 0], [3, 1], [4]]


class Killed(Exception):
    pass


def test_a_killed_run_ends_as_if_it_had_not_been(tmp_path):
    _, original = source()
    _, feeds = observed(original)
    plan = distill.Plan(steps=12, rounds=3, batch=8, length=5)

    def run(file, die: bool) -> ir.Model:
        made = student(original.model, feeds, Scheme("int3"))
        task = distill.Task(teacher(original.model), lambda m: 0.0, lambda m, k: observed(original, 2, 10, k)[1])
        resume, save = checkpoint.functions(file, "this run")

        def saving(r):
            save(r)
            if die and r.done["step"] == 8:
                raise Killed

        distill.fit(made, feeds, task, plan, resume=resume, save=saving)
        return made.artifact()

    whole = run(None, False)
    with pytest.raises(Killed):
        run(tmp_path / "run.part", True)
    assert metadata.to_bytes(run(tmp_path / "run.part", False)) == metadata.to_bytes(whole)


def test_training_without_an_environment_beats_every_other_method():
    """On episodes that no training saw, each policy with its own memory."""
    net, original = source()
    with torch.no_grad():
        net.cell.weight_hh *= 2
    seen, new, errors = observed(original, 20, 60)[0], observed(original, 8, 60, 1)[0], {}
    want = walked(torch_module.load(net, (5,), declared(original)).model, new, "onnxruntime")[0]
    for method in ("rtn", "smooth+gptq", "qat"):
        made = fewbit.quantize(
            net, observations=seen, observation_shape=(5,), state=declared(original),
            scheme=Scheme("int3", method=method), training=Training(steps=300),
        )  # fmt: skip
        errors[method] = float(((walked(made.model, new, "native")[0] - want) ** 2).mean())
    assert errors["qat"] < 0.7 * min(errors["rtn"], errors["smooth+gptq"]), errors
    assert made.record["training"]["states"] == 18 * 60


def declared(original: Source) -> dict:
    return {s.input: (s.output, s.initial) for s in load(original.model, "onnxruntime").states}


class Balancer(torch.nn.Module):
    """Balances a pole whose velocities it is not shown: it remembers the last observation, and pushes by the difference."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.memory, self.head = Linear(2, 16, bias=False), Linear(18, 2)
        with torch.no_grad():
            self.memory.weight.uniform_(-0.7, 0.7)
            back = torch.linalg.pinv(self.memory.weight)  # [2, 16]: what was remembered, as long as tanh is straight
            push = torch.cat([torch.tensor([0.3, 45.0]), -40 * back[1]])
            self.head.weight[:] = torch.stack([-push, push])
            self.head.bias.zero_()

    def forward(self, x, h):
        return self.head(torch.cat([x, h], 1)).argmax(1), torch.tanh(self.memory(x))


def test_it_learns_from_what_it_meets_itself():
    """At a width at which rounding drops the pole; the layer that makes the action is not the graph's last."""
    kept = {}
    for method in ("rtn", "qat"):
        made = fewbit.quantize(
            Balancer(), "small_envs:Blind-v0", scheme=Scheme("int3", method=method), episodes=20, training=Training(steps=300),
            observation_shape=(2,), state={"h": ("h_next", np.zeros(16, np.float32))},
        )  # fmt: skip
        kept[method] = made.record["evidence"]["kept"]
    assert kept["rtn"] < 0.5 and kept["qat"] > 0.9, kept
