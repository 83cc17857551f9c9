"""A network with rows to run it on, and the right answer: ONNX Runtime without optimisation, or ONNX's reference evaluator."""

from dataclasses import dataclass, field

import numpy as np
import onnx
import onnxruntime as ort
from onnx import version_converter
from onnx.reference import ReferenceEvaluator


@dataclass(frozen=True)
class Sample:
    """A network, rows of its inputs (states excepted), its states (input -> output) and what is odd about it."""

    seed: int
    model: onnx.ModelProto
    feeds: dict[str, np.ndarray]
    states: dict[str, str] = field(default_factory=dict)
    baked: bool = False

    @property
    def operators(self) -> set[str]:
        inside = [n for f in self.model.functions for n in f.node]
        local = {(f.domain, f.name) for f in self.model.functions}
        return {n.op_type for n in [*self.model.graph.node, *inside] if (n.domain, n.op_type) not in local}


class Oracle:
    """The float network: ONNX Runtime without optimisation; ONNX's reference evaluator where that has no kernel."""

    def __init__(self, model: onnx.ModelProto, baked: bool = False):
        self.model, self.baked, self.names = model, baked, [o.name for o in model.graph.output]
        options = ort.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 4, 1
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            self.runner = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception:
            self.runner = _evaluator(model)

    def __call__(self, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Every output; of a baked batch row by row, rows stacked where the output has a batch."""
        if not self.baked:
            return [np.asarray(o) for o in self._run(feeds)]
        count = len(next(iter(feeds.values())))
        rows = [self._run({k: v[i : i + 1] for k, v in feeds.items()}) for i in range(count)]
        return [np.concatenate([np.asarray(r[k])[None] for r in rows]) for k in range(len(self.names))]

    def _run(self, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        """ONNX Runtime says of an LSTM of float64 only when it runs that it has no kernel."""
        try:
            return self.runner.run(None, feeds)
        except Exception:
            if isinstance(self.runner, ReferenceEvaluator):
                raise
            self.runner = _evaluator(self.model)
            return self.runner.run(None, feeds)


def _evaluator(model: onnx.ModelProto) -> ReferenceEvaluator:
    """Of a BatchNormalization before opset 14 it computes what training does: the network is brought to a newer opset for it."""
    nodes = [*model.graph.node, *(n for f in model.functions for n in f.node)]
    if not any(n.op_type == "BatchNormalization" for n in nodes):
        return ReferenceEvaluator(model)
    if model.functions:
        raise ValueError("an old BatchNormalization inside a function has no oracle")
    newer = onnx.ModelProto()
    newer.CopyFrom(model)
    newer.ir_version = 10
    return ReferenceEvaluator(version_converter.convert_version(newer, 21))


def well_behaved(made: Sample, rng: np.random.Generator) -> bool:
    """Does the checker take it, an evaluator run it, does a small change of an observation change little, and is no choice made
    among equal values?"""
    try:
        onnx.checker.check_model(made.model, full_check=True)
    except Exception:
        return False
    try:
        if made.states:
            _evaluator(made.model)
            return True
        run = Oracle(made.model, made.baked)
        cut = {k: v[:32] for k, v in made.feeds.items()}
        near = {k: v if v.dtype.kind in "iub" else (v + rng.uniform(-1, 1, v.shape) * np.ptp(v, 0) * 2**-13).astype(v.dtype)
                for k, v in cut.items()}  # fmt: skip
        pairs = list(zip(run(cut), run(near), strict=True))
        if _chooses_among_equals(made, cut):
            return False
    except Exception:
        return False
    for a, b in pairs:
        if a.dtype.kind == "f":
            a, b = a.astype(np.float64), b.astype(np.float64)
            if not np.isfinite(a).all() or not np.abs(a).max(initial=0) < 1e4 or a.size == 0:
                return False
            if np.abs(a - b).max() > 0.002 * max(np.ptp(a), 1e-3):
                return False
        elif (a != b).mean() > 0.02:
            return False
    return True


def _chooses_among_equals(made: Sample, feeds: dict[str, np.ndarray]) -> bool:
    """Are in some rows the two largest values that an ArgMax chooses by equal, so that any rounding decides?"""
    choices = [n for n in made.model.graph.node if n.op_type == "ArgMax"]
    if not choices:
        return False
    scored = onnx.ModelProto()
    scored.CopyFrom(made.model)
    del scored.graph.output[:]
    scored.graph.output.extend(onnx.ValueInfoProto(name=n.input[0]) for n in choices)
    for node, scores in zip(choices, Oracle(scored, made.baked)(feeds), strict=True):
        axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
        behind = axis - (scores.ndim - made.baked if axis >= 0 else 0)  # counted from the end: a baked batch has one axis more
        ordered = np.sort(scores.astype(np.float64), behind)
        if scores.shape[behind] > 1 and (np.diff(ordered, axis=behind).take(-1, behind) <= 1e-4 * np.ptp(scores)).mean() > 0.02:
            return True
    return False
