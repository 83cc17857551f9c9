"""A Linear layer and an embedding over packed weights: torch modules that hold the packed bytes alone.

The bytes lie in panels, the kernels' own order (native/grouped.h): 16 rows side by side. For inference on the CPU only: no
gradient flows. Activations are quantized to 8 bits within the call (llm/reference says how), or stay float32.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from fewbit.errors import FewbitError, MissingExtra
from fewbit.llm.packed import PackedWeight

try:
    import torch
except ImportError:
    raise MissingExtra("torch", "llm") from None

ACTIVATIONS = ("int8", "float")


@dataclass(frozen=True)
class Kind:
    """What panels hold: a weight [out, in], of `bits`, with zero points and a bias or without."""

    out: int
    width: int
    bits: int
    group_size: int
    zero_point: bool
    bias: bool

    def arguments(self) -> tuple[Any, ...]:
        return self.out, self.width, self.bits, self.group_size, self.zero_point, self.bias


class Memory:
    """Memory for panels in large slabs: pages of 2 MB, which NumPy asks Linux for in arrays of 4 MB and more, are read up to
    twice as fast as pages of 4 KB, and most layers are smaller. What no panel takes is never touched, so never resident."""

    def __init__(self, slab: int = 64 << 20):
        self._slab, self._left = slab, torch.empty(0, dtype=torch.uint8)

    def take(self, size: int) -> torch.Tensor:
        """uint8 [size], on a boundary of 64."""
        if self._left.numel() < size:
            raw = np.empty(max(size, self._slab) + 64, np.uint8)
            self._left = torch.from_numpy(raw[-raw.ctypes.data % 64 :])
        taken, self._left = self._left[:size], self._left[-(-size // 64) * 64 :]
        return taken


def make_panels(
    weight: PackedWeight, bias: np.ndarray | None, where: str = "weight", memory: Memory | None = None
) -> tuple[torch.Tensor, Kind]:
    """A packed weight (and a float32 bias [out]) -> uint8 panels, and what they hold."""
    kind = Kind(*weight.shape, weight.bits, weight.group_size, weight.zero_point is not None, bias is not None)
    native = _native()
    try:
        panels = (memory or Memory(0)).take(native.GroupedWeight.nbytes(*kind.arguments()))
        held = native.GroupedWeight(panels.numpy(), *kind.arguments())
    except RuntimeError as e:
        raise FewbitError(f"{where}: {e}") from None
    arrays = [np.ascontiguousarray(a) if a is not None else None for a in (weight.codes, weight.scale, weight.zero_point, bias)]
    codes, scale, zero, bias = arrays
    assert scale is not None
    held.fill(codes, scale.view(np.uint16), zero, bias)
    return panels, kind


def _native() -> Any:
    try:
        from fewbit import _native
    except ImportError as e:
        raise FewbitError(f"the native engine was not built ({e}); reinstall fewbit") from None
    return _native


class Packed(torch.nn.Module):
    """Panels, and the native weight that reads them."""

    panels: torch.Tensor

    def __init__(self, panels: torch.Tensor, kind: Kind, instruction_set: str = ""):
        super().__init__()
        self.kind, self.instruction_set = kind, instruction_set
        self.register_buffer("panels", panels)
        self._bind()

    def _bind(self) -> None:
        if self.panels.device.type != "cpu":
            raise FewbitError(f"packed weights run on the CPU, not on {self.panels.device}; leave the model there")
        if self.panels.data_ptr() % 64:
            self.panels = self.panels.clone()
        try:
            self._weight = _native().GroupedWeight(self.panels.numpy(), *self.kind.arguments(), self.instruction_set)
        except RuntimeError as e:
            raise FewbitError(str(e)) from None
        self.instruction_set = self._weight.instruction_set

    def _apply(self, fn: Any, recurse: bool = True) -> "Packed":
        super()._apply(fn, recurse)
        self._bind()
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_weight"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._bind()

    def rows(self, which: torch.Tensor) -> torch.Tensor:
        """int64 of any shape -> float32 [..., in]: these rows of the weight."""
        which = which.contiguous()
        y = torch.empty(*which.shape, self.kind.width)
        try:
            self._weight.rows(which.data_ptr(), which.numel(), y.data_ptr())
        except RuntimeError as e:
            raise FewbitError(f"embedding: {e}; a token lies outside the vocabulary") from None
        return y

    def extra_repr(self) -> str:
        k = self.kind
        return f"in_features={k.width}, out_features={k.out}, int{k.bits}, group_size={k.group_size}, {self.instruction_set}"


class QuantLinear(Packed):
    """x [..., in] -> [..., out] of x's dtype."""

    def __init__(
        self, panels: torch.Tensor, kind: Kind, activations: str = "int8", threads: int | None = None, instruction_set: str = ""
    ):
        super().__init__(panels, kind, instruction_set)
        if activations not in ACTIVATIONS:
            raise FewbitError(f"activations {activations!r} are unknown; choose {' or '.join(ACTIVATIONS)}")
        self.in_features, self.out_features = kind.width, kind.out
        self.floats, self.threads = activations == "float", threads or torch.get_num_threads()

    @classmethod
    def of(cls, weight: PackedWeight, bias: np.ndarray | None = None, **options: Any) -> "QuantLinear":
        return cls(*make_panels(weight, bias), **options)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dtype is not torch.float32 or x.requires_grad or not x.is_contiguous():
            return self._convert(x)
        shape = x.shape
        if shape[-1] != self.in_features:
            raise FewbitError(f"a layer of {self.in_features} columns was given {list(shape)}")
        y = torch.empty((*shape[:-1], self.out_features))
        self._weight.run(x.data_ptr(), y.data_ptr(), x.numel() // self.in_features, self.floats, self.threads)
        return y

    def _convert(self, x: torch.Tensor) -> torch.Tensor:
        if x.device.type != "cpu" or not x.is_floating_point():
            raise FewbitError(f"a packed layer takes float tensors on the CPU, not {x.dtype} on {x.device}")
        return self(x.detach().to(torch.float32).contiguous()).to(x.dtype)


class QuantEmbedding(Packed):
    """int64 ids of any shape -> float32 [..., width]."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.rows(ids.to(torch.int64))
