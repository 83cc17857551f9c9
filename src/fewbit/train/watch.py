"""Per-layer counts of a training run: gradient exponents, what underflowed or overflowed, the largest outputs.

A layer is a module that owns parameters. On a sampled step, forward hooks note its largest output and watch the gradient that
comes back to it, in the format that autocast gave it; the gradients of its parameters are read after backward. On other steps
nothing is hooked; only a step that was skipped is looked through for the layer that overflowed.

A zero does not say whether it was a number once. So on a sampled step a narrow format goes backward a second time, the loss
larger by all the powers of two that are still free: what was zero and now is not had underflowed. That is a lower bound, by what
underflows even so. The second pass changes no gradient (torch.autograd.grad), but it keeps the graph alive and costs a backward;
the histogram is then of its gradients, which show more of the lower end.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from fewbit.errors import FewbitError, MissingExtra
from fewbit.numerics.formats import FloatFormat
from fewbit.train.gradients import BINS, NONFINITE, divide, histogram, largest_scale

try:
    import torch
except ImportError:
    raise MissingExtra("torch", "torch") from None

OUTPUTS, WEIGHTS = 0, 1
OUTSIDE = "(outside the model)"  # parameters that an optimizer holds and the model does not, such as SAC's log alpha


@dataclass(frozen=True)
class Layer:
    """A module with its own parameters; module is None for those outside the model."""

    name: str
    module: torch.nn.Module | None
    parameters: tuple[torch.nn.Parameter, ...]


@dataclass
class Slot:
    """One gradient of a sampled step: whose, what kind, its zeros at the run's scale, its histogram, how many underflowed."""

    layer: int
    kind: int
    zero: torch.Tensor | None = None
    counts: torch.Tensor | None = None
    lost: int | None = None


def layers_of(model: torch.nn.Module, others: list[torch.nn.Parameter]) -> list[Layer]:
    """Every module that owns parameters, in the order of registration; a shared parameter belongs to the first."""
    seen: set[int] = set()
    found = []
    for name, module in model.named_modules():
        own = tuple(p for p in module.parameters(recurse=False) if id(p) not in seen)
        seen |= {id(p) for p in own}
        if own:
            found.append(Layer(name or "(model)", module, own))
    outside = tuple(p for p in others if id(p) not in seen)
    return found + ([Layer(OUTSIDE, None, outside)] if outside else [])


def empty(layers: int) -> dict[str, torch.Tensor]:
    """What is counted, on the CPU; [layers] unless said otherwise. A checkpoint keeps this as it is."""
    zeros = partial(torch.zeros, dtype=torch.int64)
    return {
        "histogram": zeros(layers, 2, BINS),  # of output and weight gradients, loss scale divided out
        "zeros": zeros(layers, 2),  # elements that came back as zero, at the run's own scale
        "lost": zeros(layers, 2),  # of these, shown to have underflowed
        "asked": zeros(layers, 2),  # elements of which that was asked
        "overflowed": zeros(layers),  # skipped steps on which the layer's gradients were not finite
        "began": zeros(layers),  # of these, the steps on which no layer behind it was not finite
        "largest": torch.zeros(layers, dtype=torch.float64),  # magnitude of an output
        "order": zeros(layers) - 1,  # of running forward; -1: never seen
    }


class Watch:
    """The layers of a model and what was counted of them; MixedPrecision says when to look."""

    def __init__(self, model: torch.nn.Module, others: list[torch.nn.Parameter]):
        self.layers = layers_of(model, others)
        self.counts = empty(len(self.layers))
        self._slots: list[Slot] = []
        self._second = False  # the backward now running is the larger one

    @contextmanager
    def outputs(self) -> Iterator[None]:
        """Hook the layers' forward for as long as this lasts."""
        modules = [(k, layer.module) for k, layer in enumerate(self.layers) if layer.module is not None]
        handles = [m.register_forward_hook(partial(self._output, k)) for k, m in modules]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _output(self, layer: int, module: torch.nn.Module, inputs: Any, output: Any) -> None:
        order, largest = self.counts["order"], self.counts["largest"]
        if order[layer] < 0:
            order[layer] = order.max() + 1
        for x in output if isinstance(output, tuple | list) else [output]:
            if isinstance(x, torch.Tensor) and x.is_floating_point() and x.numel():
                top = x.detach().abs().amax().double().cpu().nan_to_num(nan=float("inf"), posinf=float("inf"))
                largest[layer] = torch.maximum(largest[layer], top)
                if x.requires_grad and not x.is_leaf:  # a hook on a leaf would outlive this step
                    self._slots.append(Slot(layer, OUTPUTS))
                    x.register_hook(partial(self._gradient, self._slots[-1]))

    def _gradient(self, slot: Slot, gradient: torch.Tensor) -> None:
        if not self._second:
            slot.zero, slot.counts = gradient.detach() == 0, histogram(gradient)
        elif slot.zero is not None:
            slot.lost = int((slot.zero & (gradient != 0) & torch.isfinite(gradient)).sum())
            slot.counts = histogram(gradient)

    def backward(self, scaled: torch.Tensor, scale: float, fmt: FloatFormat | None) -> None:
        """scaled.backward(), counted; fmt: the narrow format to ask what underflowed in, None not to ask."""
        scaled.backward(retain_graph=fmt is not None)
        owners = [(k, p) for k, layer in enumerate(self.layers) for p in layer.parameters if p.grad is not None]
        weights = [Slot(k, WEIGHTS) for k, _ in owners]
        for slot, (_, p) in zip(weights, owners, strict=True):
            assert p.grad is not None
            self._gradient(slot, p.grad.to_dense() if p.grad.is_sparse else p.grad)
        slots = [s for s in self._slots if s.counts is not None] + weights
        total = torch.stack([s.counts.cpu() for s in slots if s.counts is not None]).sum(0) if slots else torch.zeros(BINS)
        room = largest_scale(total, fmt) if fmt is not None and not total[NONFINITE] else 1.0
        if room > 1 and owners:
            self._again(scaled * room, weights, [p for _, p in owners])
        self._fold(slots, scale, room if room > 1 else 1.0)
        self._slots = [s for s in self._slots if s.counts is None]  # another loss may still go through these

    def _again(self, scaled: torch.Tensor, slots: list[Slot], parameters: list[torch.nn.Parameter]) -> None:
        self._second = True
        try:
            gradients = torch.autograd.grad(scaled, parameters, allow_unused=True)
            for slot, g in zip(slots, gradients, strict=True):
                if g is not None:
                    self._gradient(slot, g.to_dense() if g.is_sparse else g)
        finally:
            self._second = False

    def _fold(self, slots: list[Slot], scale: float, room: float) -> None:
        for s in slots:
            if s.counts is None or s.zero is None:
                continue
            larger = room if s.lost is not None else 1.0
            self.counts["histogram"][s.layer, s.kind] += divide(s.counts.cpu(), scale * larger)
            self.counts["zeros"][s.layer, s.kind] += int(s.zero.sum())
            self.counts["lost"][s.layer, s.kind] += s.lost or 0
            self.counts["asked"][s.layer, s.kind] += s.zero.numel() if s.lost is not None else 0

    def overflow(self) -> None:
        """Count the layers whose gradients are not finite now, and the one of them that ran last: there it began."""
        bad = [k for k, layer in enumerate(self.layers) if any(_broken(p.grad) for p in layer.parameters)]
        self.counts["overflowed"][bad] += 1
        if bad:
            order = self.counts["order"]
            self.counts["began"][max(bad, key=lambda k: (int(order[k]), k))] += 1

    def forget(self) -> None:
        """Drop what a forward noted whose backward never came."""
        self._slots = []

    def load(self, counts: dict[str, torch.Tensor], names: list[str]) -> None:
        """Go on from a checkpoint's counts; FewbitError where its layers are others."""
        own = [layer.name for layer in self.layers]
        if names != own:
            other = next((a or b for a, b in _pairs(names, own) if a != b), "")
            raise FewbitError(f"the checkpoint counts {len(names)} layers, the model has {len(own)}; {other} differs first")
        self.counts = {k: v.clone() for k, v in counts.items()}


def _pairs(a: list[str], b: list[str]) -> Iterator[tuple[str, str]]:
    length = max(len(a), len(b))
    return zip(a + [""] * (length - len(a)), b + [""] * (length - len(b)), strict=True)


def _broken(gradient: torch.Tensor | None) -> bool:
    if gradient is None:
        return False
    values = gradient.coalesce().values() if gradient.is_sparse else gradient
    return not bool(torch.isfinite(values).all())
