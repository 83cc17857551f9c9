"""Solvers: (weight, statistics of its inputs, format) -> integers. They know no graph and no model. One file, one line here.

A method is words joined by "+": a scaling of the columns (solvers/scaling), "clip" for a scale that minimises the output's
error instead of reaching the largest weight, a solver, and "bias" for a bias that takes back the mean error of each output
(Nagel et al. 2019, section 4.2): "gptq", "smooth+gptq", "awq+clip+rtn+bias". What is not said is none, the largest weight,
rtn, and the bias as it was.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fewbit.errors import FewbitError
from fewbit.numerics.formats import IntFormat
from fewbit.solvers.statistics import Statistics

SOLVERS = {"rtn": "fewbit.solvers.rtn", "gptq": "fewbit.solvers.gptq", "adaround": "fewbit.solvers.adaround"}
SCALINGS = ("smooth", "awq", "cross_layer")


@dataclass(frozen=True)
class Method:
    """scaling: one of SCALINGS or ""; clip: see solvers/clip; solver: one of SOLVERS; bias: corrected."""

    scaling: str = ""
    clip: bool = False
    solver: str = "rtn"
    bias: bool = False


def method(text: str) -> Method:
    """ "smooth+gptq" -> Method("smooth", False, "gptq")."""
    words = text.split("+")
    scaling = [w for w in words if w in SCALINGS]
    solver = [w for w in words if w in SOLVERS]
    rest = [w for w in words if w not in SCALINGS and w not in SOLVERS and w not in ("clip", "bias")]
    if rest or len(scaling) > 1 or len(solver) > 1:
        known = f"at most one of {', '.join(SCALINGS)}, clip, bias, and one of {', '.join(SOLVERS)}"
        raise FewbitError(f"method {text} is unknown; give auto, dynamic, qat or, joined by +, {known}")
    return Method((scaling or [""])[0], "clip" in words, (solver or ["rtn"])[0], "bias" in words)


def solve(name: str, weight: np.ndarray, scale: np.ndarray, fmt: IntFormat, statistics: Statistics | None) -> np.ndarray:
    """Codes [out, in] of weight at scale [out] or [out, groups], by the solver of that name."""
    found: Callable[..., np.ndarray] = importlib.import_module(SOLVERS[name]).solve
    return found(weight, scale, fmt, statistics)
