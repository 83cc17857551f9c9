"""Mixed precision: float16 with loss scaling learns what float32 learns, and every loss of range is counted where it happened."""

import io
import math
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

import fewbit
from fewbit.errors import FewbitError
from fewbit.numerics.formats import FLOATS, cast
from fewbit.train import gradients as g
from fewbit.train import precision
from fewbit.train.amp import MixedPrecision

MILLIMETRES = 0.003  # a network that answers in metres, about as much as a gripper is off by


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # these networks are too small for two
    yield
    torch.set_num_threads(threads)


def network(seed: int = 0, dropout: float = 0.0) -> torch.nn.Sequential:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.Tanh(), torch.nn.Dropout(dropout), torch.nn.Linear(32, 4))


def data(size: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, 8, generator=generator)
    hidden = torch.tanh(x @ torch.randn(8, 16, generator=generator) / 3)
    return x, size * hidden @ torch.randn(16, 4, generator=generator) / 4


def adam(model: torch.nn.Module, **more) -> torch.optim.Adam:
    return torch.optim.Adam(model.parameters(), lr=0.01, eps=1e-15, **more)  # no gradient is small beside eps


def fit(model, amp: MixedPrecision, steps: int, size: float = 1.0, after=lambda k: None) -> float:
    """The loss at the end, as a share of the targets' mean square."""
    x, y = data(size)
    for k in range(steps):
        with amp.autocast():
            loss = ((size * model(x).float() - y) ** 2).mean()
        amp.step(loss)
        after(k)
    model.eval()  # no dropout: measuring draws no random numbers
    with torch.no_grad():
        left = float(((size * model(x) - y) ** 2).mean() / (y**2).mean())
    model.train()
    return left


def trained(format: str, seed: int = 0, size: float = MILLIMETRES, steps: int = 300, **options):
    model = network(seed)
    amp = MixedPrecision(model, adam(model), format=format, **options)
    return fit(model, amp, steps, size), amp


def test_scaled_float16_learns_what_float32_learns_and_unscaled_float16_does_not():
    floats = [trained("float32", seed)[0] for seed in range(3)]
    scaled = [trained("float16", seed)[0] for seed in range(3)]
    unscaled, amp = trained("float16", scaling=False)
    noise = max(floats) - min(floats)
    assert all(abs(a - b) < 0.1 * noise for a, b in zip(floats, scaled, strict=True)), (floats, scaled)
    assert unscaled > 20 * max(floats)
    layers = amp.report().layers
    assert all(r.outputs.underflowed > 0.9 * r.outputs.asked > 0 for r in layers)
    advice = amp.report().recommendation
    assert advice.format == "bfloat16" and "float16 with a loss scale" in advice.reason
    assert re.search(r"unscaled float16 makes \d+\.\d% of the output gradients of \d zero \(below 3.0e-08\)", advice.reason)


def test_bfloat16_needs_no_scale():
    loss, amp = trained("bfloat16")
    assert loss < 0.05 and amp.scale == 1.0 and not amp.scaling


@pytest.mark.parametrize("layer, name", [(0, "0"), (3, "3")])
def test_overflow_in_one_layer_is_counted_there_skipped_and_halves_the_scale(layer, name):
    model = network()
    amp = MixedPrecision(model, optimizer := adam(model), format="float16", clip=1.0)
    fit(model, amp, 3)
    before, scale = [p.detach().clone() for p in model.parameters()], amp.scale
    moments = [v.clone() for state in optimizer.state.values() for v in state.values()]
    handle = model[layer].weight.register_hook(lambda grad: torch.full_like(grad, float("inf")))
    fit(model, amp, 1)
    handle.remove()
    report = amp.report()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    held = [v for state in optimizer.state.values() for v in state.values()]
    assert len(held) == 12 and all(torch.equal(a, b) for a, b in zip(moments, held, strict=True))
    assert amp.scale == scale / 2 and report.skipped == (1,) and report.steps == 4
    assert {r.name: (r.overflowed, r.began) for r in report.layers} == {"0": (0, 0), "3": (0, 0)} | {name: (1, 1)}
    fit(model, amp, 1)
    assert amp.report().skipped == (1,) and not torch.equal(before[0], model[0].weight)


def test_an_overflow_that_runs_backward_began_in_the_last_layer_it_reached():
    """A scale that float16 cannot hold: everything is infinite, and the report says from where on."""
    model = network()
    amp = MixedPrecision(model, adam(model), format="float16", init_scale=2.0**30)
    fit(model, amp, 30)
    r = amp.report()
    assert r.skipped[0] > 5 and amp.scale == 2.0 ** (30 - r.skipped[0])
    assert r.layers[1].began == r.skipped[0] == r.layers[1].overflowed and r.layers[0].began == 0


def test_the_scale_grows():
    assert trained("float16", steps=9, growth_interval=4)[1].scale == 2.0**18


def test_a_checkpoint_gives_the_identical_run():
    def run(stop: int | None):
        torch.manual_seed(1)
        model = network(dropout=0.2)
        optimizer = adam(model)
        options = {"format": "float16", "clip": 0.1, "init_scale": 2.0**24, "growth_interval": 5, "every": 4}
        amp = MixedPrecision(model, optimizer, **options)
        if stop is None:
            fit(model, amp, 25)
            return model, amp
        fit(model, amp, stop)
        kept = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "amp": amp.state_dict(),
            "rng": torch.get_rng_state(),
        }
        torch.save(kept, file := io.BytesIO())
        file.seek(0)
        kept = torch.load(file, weights_only=True)
        model = network(seed=7, dropout=0.2)
        amp = MixedPrecision(model, optimizer := adam(model), **options)
        for part, name in ((model, "model"), (optimizer, "optimizer"), (amp, "amp")):
            part.load_state_dict(kept[name])
        torch.set_rng_state(kept["rng"])
        fit(model, amp, 25 - stop)
        return model, amp

    whole, amp = run(None)
    for stop in (1, 10, 13):
        again, other = run(stop)
        assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
        assert other.scale == amp.scale and other.report() == amp.report()


def test_counting_changes_nothing():
    def weights(every: int):
        model = network(dropout=0.2)
        fit(model, MixedPrecision(model, adam(model), format="float16", every=every), 10)
        return list(model.parameters())

    assert all(torch.equal(a, b) for a, b in zip(weights(0), weights(1), strict=True))


@pytest.mark.parametrize("fused", [False, True])
def test_two_optimizers_skip_apart_and_share_the_scale(fused):
    model = torch.nn.ModuleList([network(0), network(1)])
    actor, critic = adam(model[0], fused=fused), torch.optim.SGD(model[1].parameters(), lr=0.01)
    amp = MixedPrecision(model, [actor, critic], format="float16", clip=1.0)
    x, y = data()
    handle = model[0][0].weight.register_hook(lambda grad: grad * float("nan"))
    before = [m[0].weight.detach().clone() for m in model]
    with amp.autocast():
        losses = [((m(x).float() - y) ** 2).mean() for m in model]
    amp.backward(losses[0])
    amp.backward(losses[1])
    assert not amp.step()
    handle.remove()
    assert torch.equal(before[0], model[0][0].weight) and not torch.equal(before[1], model[1][0].weight)
    assert amp.report().skipped == (1, 0) and amp.scale == 2.0**15
    assert [r.overflowed for r in amp.report().layers] == [1, 0, 0, 0]
    assert all(r.outputs.elements and r.weights.elements for r in amp.report().layers)
    with amp.autocast():
        loss = ((model[0](x).float() - model[1](x).float()) ** 2).mean()
    before = [m[0].weight.detach().clone() for m in model]
    assert amp.step(loss, optimizer=actor)
    assert not torch.equal(before[0], model[0][0].weight) and torch.equal(before[1], model[1][0].weight)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("format", ["float32", "bfloat16", "float16"])
def test_clipping_is_by_the_norm_of_unscaled_gradients(format):
    x, y = data()
    model, plain = network(), network()
    amp = MixedPrecision(model, torch.optim.SGD(model.parameters(), lr=1.0), format=format, clip=0.1)
    ((plain(x) - y) ** 2).mean().backward()
    norm = math.sqrt(sum(float((p.grad**2).sum()) for p in plain.parameters()))
    assert norm > 0.2
    before = [p.detach().clone() for p in model.parameters()]
    fit(model, amp, 1)
    moved = [a - b.detach() for a, b in zip(before, model.parameters(), strict=True)]
    assert math.sqrt(sum(float((m**2).sum()) for m in moved)) == pytest.approx(0.1, rel=1e-3)
    for m, p in zip(moved, plain.parameters(), strict=True):
        assert torch.allclose(m, 0.1 / norm * p.grad, atol=1e-3)


def test_an_output_past_float16_asks_for_bfloat16():
    model = network()
    with torch.no_grad():
        model[0].weight *= 1e5
    amp = MixedPrecision(model, adam(model), format="float16")
    fit(model, amp, 1)
    advice = amp.report().recommendation
    assert amp.report().layers[0].largest_output == math.inf and advice.format == "bfloat16" and "outputs of 0" in advice.reason


def test_what_underflowed_is_told_from_what_was_zero():
    """Gradients of 1, 2^-30, 0 and 2^-10 without a scale: float16 makes two zero, and one of these had been a number."""
    model = torch.nn.Linear(1, 4)
    amp = MixedPrecision(model, torch.optim.SGD(model.parameters(), lr=0.1), format="float16", scaling=False)
    with amp.autocast():
        loss = (model(torch.ones(1, 1)).float() * torch.tensor([1.0, 2.0**-30, 0.0, 2.0**-10])).sum()
    amp.step(loss)
    (layer,) = amp.report().layers
    for seen, elements in ((layer.outputs, 4), (layer.weights, 8)):
        each = elements // 4
        assert (seen.elements, seen.asked, seen.zeros, seen.underflowed) == (elements, elements, 2 * each, each)
        assert {k - 127: n for k, n in enumerate(seen.histogram) if n and k} == {0: each, -30: each, -10: each}
        assert seen.float16.lost == pytest.approx(1 / 3)


@pytest.mark.parametrize("format, said", [("float16", "no scale cures"), ("bfloat16", "look for it in the data")])
def test_a_loss_that_is_not_finite_is_told_apart(format, said):
    model = network()
    amp = MixedPrecision(model, adam(model), format=format)
    x, y = data()
    for size in (1.0, math.inf, 1.0):
        with amp.autocast():
            loss = ((model(x).float() - y) ** 2).mean() * size
        assert amp.step(loss) == math.isfinite(size)
    r = amp.report()
    assert (r.skipped, r.infinite_losses) == ((1,), 1) and said in r.recommendation.reason
    assert amp.scale == (2.0**15 if format == "float16" else 1.0)


def test_layers_that_write_in_place_or_hand_out_a_parameter():
    class Constant(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.value = torch.nn.Parameter(torch.ones(4))

        def forward(self):
            return self.value

    layers = torch.nn.ModuleList([torch.nn.Linear(8, 4), torch.nn.ReLU(inplace=True), Constant()])
    amp = MixedPrecision(layers, torch.optim.SGD(layers.parameters(), lr=0.1), format="float16", every=1)
    for _ in range(3):
        with amp.autocast():
            loss = (layers[1](layers[0](data()[0])).float() * layers[2]()).mean()
        assert amp.step(loss)
    assert [(r.name, r.outputs.elements, r.weights.elements) for r in amp.report().layers] == [("0", 3072, 108), ("2", 0, 12)]
    assert not layers[2].value._backward_hooks


def test_gradients_that_float16_holds_recommend_it():
    x, y = data()
    model = network()
    amp = MixedPrecision(model, torch.optim.SGD(model.parameters(), lr=0.01), format="float32")
    with amp.autocast():
        loss = ((model(x) - y) ** 2).sum()
    amp.step(loss)
    assert amp.report().recommendation.format == "float16" and amp.report().recommendation.scaling


def test_the_report_is_a_record_and_a_text():
    amp = trained("float16", steps=3, every=2)[1]
    r = amp.report()
    assert r.sampled == 2 and [x.name for x in r.layers] == ["0", "3"]
    assert r.layers[1].weights.elements == 2 * (32 * 4 + 4) and r.layers[1].outputs.elements == 2 * 256 * 4
    assert sum(r.layers[1].outputs.histogram) == 2 * 256 * 4
    assert all(word in str(r) for word in ("loss scale 65536", "3 steps", "magnitude", "subnormal", "recommended:"))
    assert max(map(len, str(r).splitlines())) <= 130
    nothing = MixedPrecision(model := network(), adam(model), format="bfloat16", every=0)
    assert "no gradients were sampled" in str(nothing.report())


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float8_e5m2", "float8_e4m3fn"])
def test_a_histogram_says_what_the_format_does(name):
    """Against numerics/formats' own cast, on the middle of every power of two that float32 has."""
    fmt, exponents = FLOATS[name], np.arange(-126, 127)
    x = 1.3 * 2.0**exponents
    for scale in (1.0, 2.0**16):
        with np.errstate(over="ignore"):
            c = cast(x * scale, fmt)
            small = (np.abs(x * scale) < fmt.smallest_normal) & ~c.underflowed
        k = g.kept(g.histogram(torch.tensor(x, dtype=torch.float32)), fmt, scale)
        assert (k.lost, k.subnormal, k.overflow) == pytest.approx((c.underflowed.mean(), small.mean(), c.overflowed.mean()))


def test_a_histogram_counts_every_kind_of_number():
    x = torch.tensor([0.0, -0.0, 1.0, -1.5, 2.0, 1e-40, math.inf, -math.inf, math.nan])
    counts = g.histogram(x)
    assert (counts[g.ZERO], counts[g.NONFINITE], counts[127], counts[128], counts[1]) == (2, 3, 2, 1, 1)
    assert g.divide(counts, 4.0)[[g.ZERO, 125, 126, g.NONFINITE, 1]].tolist() == [2, 2, 1, 3, 1]
    half = torch.full((3, 5), 2.0**-24, dtype=torch.float16)
    assert g.histogram(half)[127 - 24] == 15 == g.histogram(half.to_sparse())[127 - 24]
    assert g.histogram(torch.empty(0)).sum() == 0


def test_sparse_gradients_and_parameters_outside_the_model():
    model = torch.nn.Sequential(torch.nn.Embedding(10, 4, sparse=True), torch.nn.Linear(4, 1))
    temperature = torch.nn.Parameter(torch.zeros(()))
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1), torch.optim.SGD([temperature], lr=0.1)]
    amp = MixedPrecision(model, optimizers, format="float16", init_scale=2.0**10)
    with amp.autocast():
        loss = (model(torch.tensor([1, 2])).float() * temperature.exp()).mean()
    assert amp.step(loss)
    assert [(r.name, r.weights.elements > 0) for r in amp.report().layers][-1] == ("(outside the model)", True)


def test_auto_says_why():
    assert precision.on_cuda((9, 0)).format.name == precision.on_cuda((8, 0)).format.name == "bfloat16"
    assert precision.on_cuda((7, 5)).format.name == "float16" and "none for bfloat16" in precision.on_cuda((7, 5)).reason
    assert precision.on_cuda((6, 1)).format.name == "float32"
    assert precision.on_cpu({"avx512_bf16": True}).format.name == "bfloat16"
    assert precision.on_cpu({"avx2": True}).format.name == precision.on_cpu({}).format.name == "float32"
    model = network()
    amp = MixedPrecision(model, adam(model))
    assert amp.report().format in ("bfloat16", "float32") and "CPU" in amp.report().reason


def test_errors_are_one_line_that_says_what_to_do():
    model = network()
    optimizer = adam(model)
    amp = MixedPrecision(model, optimizer, format="float16")
    other = torch.nn.Linear(3, 3)
    wrong = [
        (lambda: MixedPrecision(model, optimizer, format="int8"), "format int8"),
        (lambda: MixedPrecision(model, optimizer, clip=0.0), "clip"),
        (lambda: MixedPrecision(model, optimizer, init_scale=1000.0), "power of two"),
        (lambda: MixedPrecision(model, optimizer, init_scale=-2.0), "power of two"),
        (lambda: MixedPrecision(model, optimizer, every=-1), "every"),
        (lambda: MixedPrecision([model], optimizer), "ModuleList"),
        (lambda: MixedPrecision(model, []), "no parameters"),
        (lambda: MixedPrecision(half := network().half(), adam(half)), "0.weight is torch.float16"),
        (lambda: MixedPrecision(network().to("meta"), adam(network().to("meta"))), "runs on cpu and cuda"),
        (lambda: amp.step(), "no gradients"),
        (lambda: amp.step(torch.zeros(2, requires_grad=True)), "one number"),
        (lambda: amp.step(torch.zeros(())), "one number"),
        (lambda: amp.step(optimizer=adam(other)), "not made with"),
        (lambda: amp.load_state_dict({"scale": 1}), "no state_dict"),
        (lambda: amp.load_state_dict(MixedPrecision(model, optimizer, format="bfloat16").state_dict()), "pass format='bfloat16'"),
        (lambda: amp.load_state_dict(MixedPrecision(other, adam(other), format="float16").state_dict()), "layers"),
    ]
    for call, said in wrong:
        with pytest.raises(FewbitError, match=said) as error:
            call()
        assert "\n" not in str(error.value)


def test_importing_fewbit_does_not_import_torch():
    code = "import sys, fewbit; assert 'torch' not in sys.modules; print(fewbit.amp.MixedPrecision.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "MixedPrecision", done.stderr
    assert fewbit.amp.MixedPrecision is MixedPrecision


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: mixed precision on CUDA is not tested")
@pytest.mark.parametrize("format", ["float16", "bfloat16", "auto"])
def test_cuda_learns_counts_and_skips(format):
    x, y = (t.cuda() for t in data())
    model = network().cuda()
    amp = MixedPrecision(model, adam(model, fused=True), format=format, clip=1.0, every=2)
    for k in range(20):
        with amp.autocast():
            loss = ((model(x).float() - y) ** 2).mean()
        amp.step(loss * (float("inf") if k == 10 else 1.0))
    r = amp.report()
    assert r.skipped == (1,) and r.sampled == 10 and r.layers[0].overflowed == 1 and r.layers[0].outputs.elements
