"""A TorchScript file is read as torch runs it: in-place steps, views, buffers of any name, keyword arguments; or refused."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

import fewbit  # noqa: E402
from fewbit import sources  # noqa: E402
from fewbit.engine.load import load  # noqa: E402
from fewbit.errors import FewbitError  # noqa: E402
from fewbit.sources import torchscript  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 4)


class Clamped(Base):
    def forward(self, x):
        a = self.second(self.first(x))
        a.clamp_(-0.1, 0.1)
        return a


class Chained(Base):
    def forward(self, x):
        a = self.first(x)
        a.mul_(2.0).add_(1.0, alpha=0.5)
        F.relu_(a)
        return self.second(a)


class PartlyAssigned(Base):
    def forward(self, x):
        a = self.second(self.first(x))
        a[:, 1:3] = a[:, 0:2] * 3
        a[:, 3].zero_()
        return a


class ThroughAView(Base):
    def forward(self, x):
        a = self.first(x)
        rows = a.view(-1, 2, 4)
        rows[:, 0].tanh_()
        return self.second(a)


class ReadBefore(Base):
    """What was computed of a tensor before it is overwritten stays."""

    def forward(self, x):
        a = self.first(x)
        b = a * 2
        a.fill_(1.0)
        return self.second(a + b)


class OwnObservation(Base):
    def forward(self, x):
        x.clamp_(-1, 1)
        return self.second(self.first(x))


class OwnWeights(Base):
    """A buffer that is scratch, overwritten before it is read."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.linspace(-1, 1, 6))
        self.register_buffer("std", torch.linspace(1, 2, 6))

    def forward(self, x):
        return self.second(self.first((x - self.mean) / (self.std + 1e-2)))


class Residual(Base):
    def forward(self, x):
        h = self.first(x)
        y = torch.add(h, torch.tanh(h), alpha=0.5)
        return self.second(h + torch.rsub(y, h, alpha=2.0))


class Looped(Base):
    def forward(self, x):
        h = self.first(x)
        for k in range(3):
            if k != 1:
                h = h + torch.sin(h) * k
        return self.second(h)


SCRIPTS = [Clamped, Chained, PartlyAssigned, ThroughAView, ReadBefore, OwnObservation, OwnWeights, Residual, Looped]


def step_of(module):
    step, shape = torchscript._read(module, torchscript._shapes(module, []))
    assert shape == (6,)
    return step


@pytest.mark.parametrize("form", ["scripted", "traced", "frozen"])
@pytest.mark.parametrize("kind", SCRIPTS, ids=lambda k: k.__name__)
def test_every_step_of_a_module_is_kept_in_order(kind, form):
    module = kind().eval()
    made = torch.jit.trace(module, torch.zeros(3, 6)) if form == "traced" else torch.jit.script(module)
    made = torch.jit.freeze(made.eval()) if form == "frozen" else made
    x = torch.randn(5, 6)
    with torch.no_grad():
        assert torch.allclose(step_of(made)(x), module(x.clone()), atol=1e-6)


class Assigned(Base):
    """Its memory is assigned, in a module inside it, and starts with ones."""

    def __init__(self):
        super().__init__()
        self.memory = nn.Module()
        self.memory.register_buffer("hidden", torch.ones(1, 8))

    def forward(self, x):
        self.memory.hidden = torch.tanh(self.first(x) + 0.5 * self.memory.hidden)
        return self.second(self.memory.hidden)


class Rolled(Base):
    """A history of observations, shifted in place."""

    def __init__(self):
        super().__init__()
        self.register_buffer("history", torch.zeros(1, 4, 6))
        self.out = nn.Linear(24, 3)

    def forward(self, x):
        self.history[:, :-1] = self.history[:, 1:].clone()
        self.history[:, -1] = x
        return self.out(self.history.flatten(1))


class Counting(Base):
    """What is only written, and what training alone overwrites, is not remembered."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(6))
        self.register_buffer("last", torch.zeros(1, 4))

    def forward(self, x):
        if self.training:
            self.mean.add_(x.mean(0))
        self.last = self.second(self.first(x - self.mean))
        return self.second(self.first(x))


@pytest.mark.parametrize("kind, states", [(Assigned, {"memory_hidden": 8}), (Rolled, {"history": (4, 6)}), (Counting, {})])
def test_what_a_module_overwrites_is_its_state(kind, states, tmp_path):
    module = kind().eval()
    torch.jit.script(module).save(tmp_path / "policy.pt")
    policy = load(sources.load(tmp_path / "policy.pt", None, (6,), trust_torchscript=True).model, "onnxruntime")
    assert {s.input: s.initial.shape for s in policy.states} == {k: np.empty(v).shape for k, v in states.items()}
    with torch.no_grad():
        for x in np.random.default_rng(0).normal(size=(6, 6)).astype(np.float32):
            assert np.abs(policy(x) - module(torch.tensor(x[None])).numpy()).max() < 1e-5


class Noisy(Base):
    def forward(self, x):
        a = self.second(self.first(x))
        return a + torch.randn_like(a)


class Branching(Base):
    def forward(self, x):
        a = self.first(x)
        if bool(a.sum() > 0):
            a = a * 2
        return self.second(a)


class Two(Base):
    def forward(self, x):
        return self.first(x), self.second(self.first(x))


@pytest.mark.parametrize(
    "kind, says",
    [
        (Noisy, "operator aten::randn_like draws random numbers; export the mean action"),
        (Branching, "operator aten::Bool makes a number of a tensor"),
        (Two, "it returns a tuple, not one tensor of actions"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(kind, says, tmp_path):
    torch.jit.script(kind().eval()).save(tmp_path / "policy.pt")
    with pytest.raises(FewbitError, match=says):
        sources.load(tmp_path / "policy.pt", trust_torchscript=True)


def test_a_reading_that_is_not_what_torch_computes_is_refused(tmp_path, monkeypatch):
    from fewbit.sources import torchscript_walk

    torch.jit.script(Looped().eval()).save(tmp_path / "policy.pt")
    aten = torchscript_walk._aten
    monkeypatch.setattr(torchscript_walk, "_aten", lambda s, k, g: g[0] if k == "aten::sin" else aten(s, k, g))
    with pytest.raises(FewbitError, match="is not what torch computes with it"):
        sources.load(tmp_path / "policy.pt", trust_torchscript=True)


class Framed(nn.Module):
    """Nothing but the observations tells its size."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv1d(3, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))

    def forward(self, x):
        return self.net(x)


def test_the_observations_tell_the_size(tmp_path):
    torch.jit.script(Framed().eval()).save(tmp_path / "policy.pt")
    x = np.random.default_rng(0).normal(size=(32, 3, 4)).astype(np.float32)
    scheme = fewbit.Scheme(method="rtn")
    made = fewbit.quantize(tmp_path / "policy.pt", observations=x, scheme=scheme, trust_torchscript=True)
    assert made.record["contract"]["observation"] == {"observation": [3, 4]}
    with pytest.raises(FewbitError, match="give observations of the right size"):
        sources.load(tmp_path / "policy.pt", trust_torchscript=True)


def test_what_is_no_torchscript_is_said_to_be_what_it_is(tmp_path):
    torch.save(Base().state_dict(), tmp_path / "new.pt")
    torch.save(Base().state_dict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "cut.pt").write_bytes(b"PK\x03\x04 nothing")
    for name, says in (
        ("new.pt", "a checkpoint of weights .*, no TorchScript module; build the network, load these weights"),
        ("old.pt", "a checkpoint of weights"),
        ("cut.pt", "not a TorchScript module, or truncated"),
    ):
        with pytest.raises(FewbitError, match=says):
            sources.load(tmp_path / name, trust_torchscript=True)


class Viewing(Base):
    """Its sizes are numbers once it is traced; it prints."""

    def forward(self, x):
        y = self.first(x).view(x.shape[0], 2, 4)
        print(y.sum())
        return self.second(y.reshape(x.shape[0], 8))


@torch.jit.script
def shouted(x):
    print(x)
    return x


class Reshaping(Base):
    def forward(self, x):
        return self.second(shouted(self.first(x)).view(2, int(x.shape[0]), 4).view(int(x.shape[0]), 8))


def test_a_batch_of_one_that_was_traced_in_is_freed_or_refused(tmp_path, capfd):
    x = torch.randn(5, 6)
    for kind in (Viewing, Reshaping):
        torch.jit.trace(kind().eval(), torch.zeros(1, 6)).save(tmp_path / f"{kind.__name__}.pt")
    capfd.readouterr()
    policy = load(sources.load(tmp_path / "Reshaping.pt", trust_torchscript=True).model, "onnxruntime")
    assert capfd.readouterr().out == ""
    with torch.no_grad():
        want = torch.cat([Reshaping().eval()(row[None]) for row in x])
    assert np.abs(policy(x.numpy()) - want.numpy()).max() < 1e-5
