"""A live torch module as a source: left as it was, of any float type, and refused where its graph is not what it computes."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import fewbit  # noqa: E402
from fewbit import sources  # noqa: E402
from fewbit.engine.load import load  # noqa: E402
from fewbit.errors import FewbitError  # noqa: E402


def network(kind=torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)).to(kind)


def test_every_part_of_the_callers_module_trains_on_as_before():
    module = network().train()
    module[2].eval()  # a frozen normalisation, as some train
    before = [m.training for m in module.modules()]
    sources.load(module)
    assert [m.training for m in module.modules()] == before == [True, True, True, False, True, True]


@pytest.mark.parametrize("kind", [torch.float64, torch.float16])
def test_a_module_of_another_float_type_is_read_as_float32(kind):
    module, x = network(kind).eval(), np.random.default_rng(0).normal(size=(16, 6)).astype(np.float32)
    with torch.no_grad():
        want = module(torch.tensor(x, dtype=kind)).double().numpy()
    model = sources.load(module).model
    assert {v.dtype.name for v in [*model.graph.inputs, *model.graph.outputs]} == {"FLOAT"}
    assert np.abs(load(model, "onnxruntime")(x) - want).max() < (1e-2 if kind == torch.float16 else 1e-5)


class Mixing(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x):
        return self.layer(x - x.mean(0))


class Noisy(Mixing):
    def forward(self, x):
        return self.layer(x) + torch.randn(x.shape[0], 3)


@pytest.mark.parametrize("kind", [Mixing, Noisy])
def test_a_module_whose_rows_are_not_their_own_is_refused(kind):
    with pytest.raises(FewbitError, match="draws random numbers"):
        sources.load(kind())


class Following(Mixing):
    def forward(self, x):
        return self.layer(x) if float(x.sum()) > 0 else -self.layer(x)


def test_what_cannot_be_exported_is_one_line_and_prints_nothing(capfd):
    with pytest.raises(FewbitError, match="torch.onnx.export could not follow this network") as refused:
        sources.load(Following())
    assert "\n" not in str(refused.value) and capfd.readouterr() == ("", "")


def test_a_policy_out_of_its_model_is_told_to_bring_the_model():
    sb3 = pytest.importorskip("stable_baselines3")
    model = sb3.PPO("MlpPolicy", "CartPole-v1", device="cpu", n_steps=8, batch_size=8)
    with pytest.raises(FewbitError, match="a part of a Stable-Baselines3 model; give the model itself"):
        fewbit.quantize(model.policy, observations=np.zeros((8, 4), np.float32))
