"""Run the float graph on observations; keep ranges and second moments of the tensors asked for. Memory is one batch."""

import re

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from fewbit.errors import FewbitError
from fewbit.graph import patches
from fewbit.graph.patches import Window
from fewbit.numerics.ranges import RANGES, Estimator
from fewbit.solvers.statistics import Statistics

BATCH = 1024
IMAGES = 16


def session(proto: onnx.ModelProto, optimise: bool = True) -> ort.InferenceSession:
    """A one-thread ONNX Runtime session that prints nothing."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as e:
        raise _refusal(e) from None


def run(runner: ort.InferenceSession, names: list[str] | None, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """What the session gives; where it stops, one line that says why."""
    try:
        return runner.run(names, feeds)
    except Exception as e:
        raise _refusal(e) from None


def _refusal(e: Exception) -> FewbitError:
    """The node that ONNX Runtime names; its own words only where it names none."""
    text = " ".join(str(e).split())
    if missing := re.search(r"implementation for (\w+)\(\d+\) node with name '([^']+)'", text):
        what = f"ONNX Runtime has no kernel of {missing[1]} for the types that it reads"
        return FewbitError(f"node {missing[2]}: {what}; export the network in float32")
    if stopped := re.search(r"while running (\w+) node. Name:'([^']+)'", text):
        what = f"ONNX Runtime cannot run this {stopped[1]}, since the shapes or types that it reads do not fit"
        return FewbitError(f"node {stopped[2]}: {what}; export the network again")
    return FewbitError(f"ONNX Runtime cannot run this network ({text[:300]}); export it again")


def with_outputs(model: ir.Model, names: list[str]) -> onnx.ModelProto:
    """A copy of the model that also returns the named tensors."""
    proto = ir.to_proto(model)
    present = {o.name for o in proto.graph.output} | {i.name for i in proto.graph.input}
    proto.graph.output.extend(onnx.ValueInfoProto(name=n) for n in dict.fromkeys(names) if n not in present)
    return proto


def observe(
    model: ir.Model, feeds: dict[str, np.ndarray], tensors: list[str], inputs: dict[str, Window | None], kind: str = "minmax"
) -> tuple[dict[str, Estimator], dict[str, Statistics]]:
    """A range estimator of each of `tensors` and Statistics of each of `inputs` (a Conv's through its window, IMAGES of a batch)
    over all observations, name -> [n, ...]."""
    names = list(dict.fromkeys([*tensors, *inputs]))
    runner = session(with_outputs(model, names))
    ranges: dict[str, Estimator] = {name: RANGES[kind]() for name in names}
    statistics: dict[str, Statistics] = {}
    feeds = {v.name: feeds[v.name] for v in model.graph.inputs if v.name in feeds}  # not what only says which episode a row is of
    count = len(next(iter(feeds.values())))
    for start in range(0, count, BATCH):
        batch = {k: v[start : start + BATCH] for k, v in feeds.items()}
        for name, value in zip(names, _values(runner, names, batch), strict=True):
            ranges[name].observe(value)
            if name in inputs:
                seen = inputs[name]
                rows = value if seen is None else patches.gather(value[:: max(1, len(value) // IMAGES)], seen, 0, False)
                statistics.setdefault(name, Statistics(rows.shape[-1])).observe(rows.reshape(-1, rows.shape[-1]))
    return ranges, statistics


def _values(runner: ort.InferenceSession, names: list[str], feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Of tensors by name, some of which may be inputs."""
    made = [n for n in names if n not in feeds]
    found = dict(zip(made, run(runner, made, feeds), strict=True)) | feeds
    return [found[n] for n in names]
