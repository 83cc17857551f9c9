"""What `fewbit llm quantize` can be asked for."""

from dataclasses import dataclass

from fewbit.errors import FewbitError
from fewbit.numerics import ggml
from fewbit.numerics.formats import INTEGERS
from fewbit.solvers.grids import AnyGrid, GgmlGrid, Grid

WEIGHTS = ("int8", "int4", "int3", "int2")


@dataclass(frozen=True)
class Options:
    """weights: one of WEIGHTS, or a type of llama.cpp, whose groups are its own; method: one of methods.METHODS; samples of
    `length` tokens from the calibration text.

    bits_per_weight: widths by layer under this budget instead of `weights` everywhere. head, embedding: their widths, "" for
    float; a tied head takes the embedding's.
    """

    weights: str = "int4"
    group_size: int = 64
    symmetric: bool = False
    method: str = "auto"
    samples: int = 64
    length: int = 512
    bits_per_weight: float | None = None
    head: str = ""
    embedding: str = ""

    @property
    def bits(self) -> float:
        """Of a weight of the blocks, on average."""
        return self.bits_per_weight or self.grid().bits

    def grid(self, weights: str = "") -> AnyGrid:
        """Of these weights, the option's own without."""
        weights = weights or self.weights
        if weights in ggml.TYPES:
            return GgmlGrid(ggml.TYPES[weights])
        return Grid(INTEGERS[weights].bits, self.group_size, self.symmetric)


def check(option: str, weights: str) -> None:
    """Refuse weights that are not known."""
    if weights not in (*WEIGHTS, *ggml.TYPES):
        raise FewbitError(f"{option} {weights}: choose one of {', '.join(WEIGHTS)}; or, for llama.cpp, {', '.join(ggml.TYPES)}")
