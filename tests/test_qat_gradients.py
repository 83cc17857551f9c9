"""Gradients under quantization: LSQ's published formula, and finite differences of the same program without its rounding."""

import numpy as np
import pytest
import torch
from test_qat import source

from fewbit.engine.policy import EPISODE
from fewbit.graph.qdq import Scheme
from fewbit.numerics import semantics
from fewbit.train import distill, torch_run
from fewbit.train.student import RAW, student, teacher


def test_a_scales_gradient_is_that_of_lsq():
    """Esser et al. 2020, equation 3, for weights inside and outside the range."""
    weight, scale = torch.tensor([[0.3, -0.9, 5.0, -7.0]]), torch.tensor([0.5], requires_grad=True)
    codes = torch_run.weight_codes(weight, scale.log(), -7, 7)
    (scale[:, None] * codes).sum().backward()
    v = weight / 0.5
    wanted = torch.where(v.abs() < 7.5, v.round() - v, 7.0 * v.sign())
    assert scale.grad is not None and torch.allclose(scale.grad, wanted.sum())


def slope(loss, parameters, ways, step: float) -> float:
    """The central difference of loss() along ways."""
    found = []
    with torch.no_grad():
        for by in (step, -2 * step, step):
            for p, way in zip(parameters, ways, strict=True):
                p += by * way
            found.append(float(loss()))
    return (found[0] - found[1]) / (2 * step)


def between(ctx, steps, table, slope, lowest):
    """torch_run._Lookup.forward for codes that are not whole."""
    index = (steps - lowest).floor().long().clamp(0, len(table) - 2)
    ctx.save_for_backward(index, slope)
    return table[index] + (table[index + 1] - table[index]) * (steps - lowest - index)


def unrounded(y, m, shift, zero_point, fmt):
    """semantics.requantize without its rounding, for tables."""
    return np.clip(y * float(m) / 2.0**shift + zero_point, fmt.quant_min - 0.5, fmt.quant_max + 0.5)


@pytest.mark.parametrize("kind", ["weight", "bias", "log_scale"])
@pytest.mark.parametrize("name", ["relu", "image", "tanh", "joins", "gru"])
def test_gradients_are_finite_differences_of_the_program_without_rounding(name, kind, monkeypatch):
    """Straight-through gradients are those of the program whose rounding passes everything that rounds to a code of the range."""
    original, feeds = source(name)
    monkeypatch.setattr(semantics, "requantize", unrounded)
    made = student(original.model, feeds, Scheme("int4"))
    feeds = {k: v[:64] for k, v in feeds.items()} | ({EPISODE: np.arange(64) // 8} if name == "gru" else {})
    rows = distill.rows_of(made, teacher(original.model), feeds)
    index = made.module.all(rows)  # back through 8 steps, where something is remembered
    rows = {k: v[index] for k, v in rows.items()}
    wanted = rows[f"y.{RAW}"] + 1.0  # away from the least, where every gradient is small
    monkeypatch.setattr(torch, "round", torch.clone)
    monkeypatch.setattr(torch.Tensor, "round_", lambda x: x)
    monkeypatch.setattr(torch.Tensor, "clamp_", lambda x, low, high: torch.clamp(x, low - 0.5, high + 0.5))
    monkeypatch.setattr(torch_run._Lookup, "forward", between)
    for layer in made.module.layers.children():
        layer.log_scale.data -= 0.5  # so that many weights saturate: of the others a scale's gradient is that of rounding alone

    def loss() -> torch.Tensor:
        registers = made.module.run({k[2:]: v for k, v in rows.items() if k.startswith("x.")})
        return (distill._floats(registers[made.raw]).reshape(wanted.shape) - wanted).double().pow(2).sum()

    loss().backward()
    generator = torch.Generator().manual_seed(0)
    parameters = [p for n, p in made.module.named_parameters() if n.endswith(kind)]
    ways = [p.grad / p.grad.norm() + torch.randn(p.shape, generator=generator) / p.numel() ** 0.5 for p in parameters]
    got = sum(float((p.grad * way).sum()) for p, way in zip(parameters, ways, strict=True))
    assert np.isclose(got, slope(loss, parameters, ways, 1e-3), rtol=0.02)
