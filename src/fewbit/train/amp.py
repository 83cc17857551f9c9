"""Mixed precision training on torch's autocast and GradScaler, and a report of what 16 bits did to the gradients.

    amp = MixedPrecision(model, optimizer, format="auto", clip=1.0)
    with amp.autocast():
        loss = loss_of(model(x), y)
    amp.step(loss)          # backward, unscale, count, clip, step or skip, update the scale, zero_grad
    print(amp.report())

The recipe is that of Micikevicius et al. 2018 (arXiv 1710.03740): products in 16 bits, weights and their updates in float32, the
loss scaled. The scale doubles after growth_interval good steps and halves on one that overflows, which is skipped
(torch.amp.GradScaler). Scales are powers of two, so multiplying and dividing by one changes no digit.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from fewbit.errors import FewbitError, MissingExtra
from fewbit.numerics.formats import FLOATS
from fewbit.train.amp_report import Report, layer_reports, recommend
from fewbit.train.precision import choose
from fewbit.train.watch import Watch

try:
    import torch
except ImportError:
    raise MissingExtra("torch", "torch") from None

Optimizer = torch.optim.Optimizer


class MixedPrecision:
    """Runs forward, backward and step of a model in `format`; what it counted: report(); where it stands: state_dict().

    model      a module on the CPU or CUDA, its trained parameters in float32 (several: torch.nn.ModuleList)
    optimizer  one, or a sequence of them
    format     "float16", "bfloat16", "float32" (the same loop, nothing narrowed) or "auto", see train/precision
    clip       largest L2 norm of one optimizer's gradients, taken after the loss scale is divided out; None: no clipping
    scaling    whether the loss is scaled; None: where the format's exponent is narrower than float32's
    every      steps from one sampled step to the next, 0 for none: what is hooked and counted there, train/watch says
    FewbitError on other formats and devices, 16-bit parameters, and values that make no sense.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        format: str = "auto",
        clip: float | None = None,
        scaling: bool | None = None,
        init_scale: float = 2.0**16,
        growth_interval: int = 2000,
        every: int = 100,
    ):
        self.optimizers = [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer)
        parameters = [p for o in self.optimizers for g in o.param_groups for p in g["params"]]
        _check(model, parameters, clip, init_scale, growth_interval, every)
        device = parameters[0].device
        self.format, self.reason = (p := choose(format, device)).format, p.reason
        narrow = self.format.exponent_bits < FLOATS["float32"].exponent_bits
        self.scaling = narrow if scaling is None else scaling
        self._ask = self.format if narrow else None  # a format as wide as float32 loses nothing that could be asked for
        self.clip, self.every, self.steps, self._device = clip, every, 0, device.type
        start = init_scale if self.scaling else 1.0  # not scaling: the scaler still finds infinities, and its scale is held at 1
        self.scaler = torch.amp.GradScaler(self._device, init_scale=start, growth_interval=growth_interval)
        self.watch = Watch(model, parameters)
        self._skipped, self._sampled, self._infinite = [0] * len(self.optimizers), 0, 0
        self._looking = False  # the last loss was not finite: look at the layers' outputs once more
        self._stepped = False
        for o in self.optimizers:
            o.register_step_post_hook(self._note_step)

    @property
    def scale(self) -> float:
        """The loss scale of the next backward; 1.0 where the loss is not scaled."""
        return self.scaler.get_scale()

    @property
    def _due(self) -> bool:
        return self.every > 0 and self.steps % self.every == 0

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Run forward passes and the loss in the format, as torch.autocast chooses operations; backward belongs outside."""
        look = (self._due or self._looking) and self.every > 0
        narrow = self.format.bits < FLOATS["float32"].bits
        cast = torch.autocast(self._device, getattr(torch, self.format.name)) if narrow else nullcontext()
        with self.watch.outputs() if look else nullcontext(), cast:
            yield

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of the scaled loss (a scalar) to .grad; for several losses, or batches, before one step()."""
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1 or not loss.requires_grad:
            raise FewbitError("a loss to go backward from is one number with a gradient; take its mean, outside torch.no_grad")
        scaled = self.scaler.scale(loss)
        self._loss = loss.detach()
        if not self._due:
            return scaled.backward()
        self.watch.backward(scaled, self.scale, self._ask)

    def step(self, loss: torch.Tensor | None = None, optimizer: Optimizer | None = None) -> bool:
        """backward(loss) if one is given, then step every optimizer that has gradients, or the one given. True: none was skipped.

        Then the gradients of all optimizers are dropped: what an actor's loss left in the critic is no part of the next step.
        """
        if optimizer is not None and not any(o is optimizer for o in self.optimizers):
            raise FewbitError("step() was given an optimizer that MixedPrecision was not made with")
        if loss is not None:
            self.backward(loss)
        asked = [k for k, o in enumerate(self.optimizers) if optimizer in (None, o) and _gradients(o)]
        if not asked:
            raise FewbitError("step() found no gradients; give it a loss, or call backward(loss) before")
        skipped = [k for k in asked if not self._step(self.optimizers[k])]
        self._count(skipped)
        self.scaler.update(None if self.scaling else 1.0)
        for o in self.optimizers:
            o.zero_grad(set_to_none=True)
        return not skipped

    def _step(self, optimizer: Optimizer) -> bool:
        """Unscale, clip, step: whether it stepped."""
        self.scaler.unscale_(optimizer)
        if self.clip is not None:
            held = [p for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
            norm = torch.nn.utils.get_total_norm([p.grad for p in held if p.grad is not None])
            # A NaN norm would make every gradient NaN, and no layer could be told from another; this step is skipped anyhow.
            torch.nn.utils.clip_grads_with_norm_(held, self.clip, norm.nan_to_num(nan=0.0, posinf=float("inf")))
        self._stepped = False
        self.scaler.step(optimizer)
        return self._stepped

    def _note_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """The scaler calls an optimizer only if its gradients are finite, but a fused one always: that one has found_inf then."""
        found = getattr(optimizer, "found_inf", None)
        self._stepped = found is None or not bool(found.item())

    def _count(self, skipped: list[int]) -> None:
        for k in skipped:
            self._skipped[k] += 1
        self._looking = False
        if skipped:
            self.watch.overflow()
            self._looking = not bool(torch.isfinite(self._loss).all())
            self._infinite += self._looking
        self._sampled += self._due
        self.watch.forget()
        self.steps += 1

    def report(self) -> Report:
        """What was counted so far, as a record; print it for the table, the histogram and the recommendation."""
        layers = layer_reports(self.watch)
        advice = recommend(layers, self.format, self._infinite)
        skipped, name = tuple(self._skipped), self.format.name
        return Report(name, self.reason, self.scale, self.steps, skipped, self._sampled, self._infinite, layers, advice)

    def state_dict(self) -> dict[str, Any]:
        """Scale and counts, in plain types and tensors; save it beside the model's and the optimizers' own, between two steps."""
        return {
            "format": self.format.name,
            "scaling": self.scaling,
            "scaler": self.scaler.state_dict(),
            "steps": self.steps,
            "skipped": list(self._skipped),
            "sampled": self._sampled,
            "infinite": self._infinite,
            "looking": self._looking,
            "layers": [layer.name for layer in self.watch.layers],
            "counts": {k: v.clone() for k, v in self.watch.counts.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from state_dict(). FewbitError where format, scaling, optimizers or layers are not those of the checkpoint."""
        try:
            own = {"format": self.format.name, "scaling": self.scaling}
            for key, value in own.items():
                if state[key] != value:
                    raise FewbitError(f"the checkpoint has {key} {state[key]}, this run {value}; pass {key}={state[key]!r}")
            if len(state["skipped"]) != len(self.optimizers):
                raise FewbitError(f"the checkpoint has {len(state['skipped'])} optimizers, this run {len(self.optimizers)}")
            self.watch.load(state["counts"], state["layers"])
            self.scaler.load_state_dict(state["scaler"])
            self.steps, self._skipped, self._sampled = state["steps"], list(state["skipped"]), state["sampled"]
            self._infinite, self._looking = state["infinite"], state["looking"]
        except (KeyError, TypeError) as error:
            raise FewbitError(f"this is no state_dict of MixedPrecision: {error!r}") from None


def _gradients(optimizer: Optimizer) -> bool:
    return any(p.grad is not None for g in optimizer.param_groups for p in g["params"])


def _check(model: Any, parameters: list[Any], clip: float | None, scale: float, interval: int, every: int) -> None:
    if not isinstance(model, torch.nn.Module):
        raise FewbitError(f"model is a {type(model).__name__}, no torch.nn.Module; put several into torch.nn.ModuleList")
    if not parameters:
        raise FewbitError("the optimizers hold no parameters")
    if len({p.device.type for p in parameters}) > 1:
        raise FewbitError("the optimizers' parameters are on more than one kind of device; move the model to one")
    names = {id(p): name for name, p in model.named_parameters()}
    for p in parameters:
        if p.dtype.itemsize < 4:
            where = names.get(id(p), "outside the model")
            raise FewbitError(f"parameter {where} is {p.dtype}; weights stay in float32 in mixed precision: call model.float()")
    if clip is not None and not clip > 0:
        raise FewbitError(f"clip is {clip}; give a norm above 0, or None")
    if not (scale > 0 and float(scale).hex().split("p")[0] == "0x1.0000000000000"):
        raise FewbitError(f"init_scale is {scale}; give a power of two, which changes no digit of a gradient")
    if interval < 1 or every < 0:
        raise FewbitError(f"growth_interval is {interval} and every {every}; the first is at least 1, the second at least 0")
