"""What `fewbit llm quantize` can be asked for."""

from dataclasses import dataclass

from fewbit.numerics.formats import INTEGERS


@dataclass(frozen=True)
class Options:
    """weights: one of packed.WEIGHTS; method: one of methods.METHODS; samples of `length` tokens from the calibration text.

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
        return self.bits_per_weight or INTEGERS[self.weights].bits
