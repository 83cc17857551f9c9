"""Solvers: (weight, scheme) -> integers. They know no graph and no model. One file each, one line in SOLVERS."""

from dataclasses import dataclass

import numpy as np

from fewbit.numerics.formats import IntFormat

SOLVERS = {"rtn": "fewbit.solvers.rtn"}


@dataclass(frozen=True)
class Solution:
    """codes [out, in] within the format; scale [out] float32 (symmetric, zero point 0)."""

    codes: np.ndarray
    scale: np.ndarray
    format: IntFormat
