"""Weights that lie on integer grids between an optimizer's steps, while what it steps are their float originals.

The straight-through estimator (BinaryConnect, Courbariaux et al. 2015; Jacob et al. 2018): forward and backward run on codes by
scale, the gradient found there is applied to a float latent weight. Nothing is inserted into the network: parameters keep their
identity, names and order, so target networks, state_dicts and other optimizers see an ordinary module. The latent and the scale
lie in the optimizer's state beside its moments, and are saved and loaded with them.

A grid has one scale an output channel, of 16 significant bits, so that code * scale is exact in float32; and each row's largest
code is quant_max. So rounding to nearest (solvers/rtn), which puts a row's largest weight there, finds the same scale and codes.
"""

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from fewbit.errors import FewbitError, MissingExtra
from fewbit.numerics.formats import IntFormat

try:
    import torch
except ImportError:
    raise MissingExtra("torch", "torch") from None

Tensor = torch.Tensor
SIGNIFICANT = 16  # bits of a scale: 8 more for the code are what float32 has
LEAST = 2.0**-100  # a row whose scale is smaller stands for zeros
SHARES = torch.linspace(0.2, 1.0, 33)  # of the scale that reaches the largest weight, where the first scale is looked for


def nearest(latent: Tensor, scale: Tensor, fmt: IntFormat) -> Tensor:
    """latent [out, ...], scale [out] -> float32 codes of latent's shape, integers within +-quant_max."""
    return torch.round(latent / _rows(scale, latent)).clamp_(-fmt.quant_max, fmt.quant_max)


def first_scale(latent: Tensor, fmt: IntFormat) -> Tensor:
    """float32 [out]: the scale of least squared error among SHARES, then `next_scale` of it."""
    flat = latent.flatten(1)
    full = flat.abs().amax(1) / fmt.quant_max
    full = torch.where(full >= LEAST, full, torch.ones_like(full))
    tried = torch.stack([full * share for share in SHARES.tolist()])
    errors = torch.stack([(flat - nearest(flat, s, fmt) * s[:, None]).square().sum(1) for s in tried])
    return next_scale(latent, tried.gather(0, errors.argmin(0, keepdim=True))[0], fmt)


def next_scale(latent: Tensor, scale: Tensor, fmt: IntFormat) -> Tensor:
    """float32 [out]: the least-squares scale for the codes that latent has at `scale`: one step to the scale of least error.

    Never so large that the row's largest weight would round to less than quant_max; 1 for a row of zeros.
    """
    flat, codes = latent.flatten(1), nearest(latent, scale, fmt).flatten(1)
    fitted = (flat * codes).sum(1) / codes.square().sum(1)
    largest = flat.abs().amax(1)
    fitted = torch.minimum(torch.where(fitted > 0, fitted, scale), largest / (fmt.quant_max - 0.49))
    fraction, exponent = torch.frexp(torch.where(largest / fmt.quant_max >= LEAST, fitted, torch.ones_like(fitted)))
    return torch.ldexp(torch.round(fraction * 2**SIGNIFICANT), exponent - SIGNIFICANT)


def _rows(scale: Tensor, like: Tensor) -> Tensor:
    return scale.reshape(-1, *[1] * (like.ndim - 1))


class GridStep:
    """Stands in for optimizer.step: latents in, the plain step, latents out, weights back onto their grids.

    layers: by name, the parameters [out, ...] of this optimizer that are one layer's weight, side by side: a row's scale is
    theirs together. Latents that the optimizer's state holds already (a loaded checkpoint, a second learn()) are gone on from
    where they belong to the weights as they are now.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, layers: dict[str, list[torch.nn.Parameter]], fmt: IntFormat):
        before = vars(optimizer).get("step")
        if isinstance(before, GridStep):  # of a learn() that was interrupted
            before.remove()
        self.optimizer, self.layers, self.format = optimizer, layers, fmt
        self.shadowed, self.plain = vars(optimizer).get("step"), optimizer.step
        self.placed: dict[str, list[Tensor]] = {}  # the weights as they were put down
        with torch.no_grad():
            for name in layers:
                self._start(name)
        optimizer.step = self  # type: ignore[method-assign]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        for name, parts in self.layers.items():
            if not _equal(parts, self.placed[name]):
                raise FewbitError(f"weight {name} was changed outside its optimizer; it cannot be trained on a grid so")
        lifted: dict[str, Tensor] = {}
        with _undivided():
            try:
                for name, parts in self.layers.items():
                    for weight in parts:  # popped: Adam takes a state that holds anything for its own
                        weight.data.copy_(self.optimizer.state[weight].pop("latent"))
                        lifted[name] = self.optimizer.state[weight].pop("scale")
                return self.plain(*args, **kwargs)
            finally:
                with torch.no_grad():
                    for name, scale in lifted.items():
                        latents = [p.detach().clone() for p in self.layers[name]]
                        self._place(name, latents, next_scale(_joined(latents), scale, self.format))

    def remove(self) -> None:
        """The optimizer's own step again; weights stay on their grids, latents in its state."""
        if vars(self.optimizer).get("step") is self:
            del self.optimizer.step
            if self.shadowed is not None:
                self.optimizer.step = self.shadowed  # type: ignore[method-assign]

    def _start(self, name: str) -> None:
        parts = self.layers[name]
        held = [self.optimizer.state[p] for p in parts]
        if all("latent" in h and "scale" in h for h in held):
            placed = self._placed([h["latent"] for h in held], held[0]["scale"])
            if _equal(parts, placed):
                self.placed[name] = placed
                return
        latents = [p.detach().clone() for p in parts]
        self._place(name, latents, first_scale(_joined(latents), self.format))

    def _place(self, name: str, latents: list[Tensor], scale: Tensor) -> None:
        self.placed[name] = self._placed(latents, scale)
        for weight, latent, value in zip(self.layers[name], latents, self.placed[name], strict=True):
            weight.data.copy_(value)
            self.optimizer.state[weight].update(latent=latent, scale=scale)

    def _placed(self, latents: list[Tensor], scale: Tensor) -> list[Tensor]:
        return [nearest(latent, scale, self.format) * _rows(scale, latent) for latent in latents]


def _joined(parts: list[Tensor]) -> Tensor:
    """[out, everything that a row holds]."""
    return torch.cat([p.flatten(1) for p in parts], 1)


def _equal(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@contextmanager
def _undivided() -> Iterator[None]:
    """Ctrl-C waits for the end of the block: half of the weights on grids, half of them not, is a state nobody wants to save."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is None:
        yield  # KeyboardInterrupt is raised in the main thread alone
        return
    waiting: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: waiting.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if waiting:
            signal.raise_signal(signal.SIGINT)
