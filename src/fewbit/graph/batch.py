"""Free the batch of a graph: a size that an exporter wrote into inputs, Reshapes, Expands becomes any, where that is shown.

A graph of a fixed batch is run on several batches by themselves, and freed on all of them at once: only if the rows are the same
is it the network. Where a Reshape's target holds the batch, the places that it may have there are tried in turn.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from fewbit.errors import FewbitError
from fewbit.graph import batch_rows

GROUPS = 3  # batches that are run by themselves
MOST_RUNS = 200
SIZED = {"Reshape", "Squeeze", "Expand"}  # what holds the batch where its sizes or axes are constants
RECURRENT = {"LSTM", "GRU", "RNN"}
PASSED_ON = {"Slice", "Split", "Gather", "Identity", "Cast"}  # between a state [layers, batch, hidden] and what reads it


def free(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with "batch" for the first dimension of what it takes and gives (the second of a recurrent layer's state).

    Args:
        proto: in opset 21; changed in place.

    Returns:
        The model, or one with its Reshapes and Squeezes changed.

    Raises:
        FewbitError: an input has no batch, or the batch of the export cannot be freed.
    """
    axes = _batch_axes(proto)
    sizes = {v.name: _dims(v) for v in proto.graph.input}
    fixed = {n: size for n, axis in axes.items() if sizes[n] and isinstance(size := sizes[n][axis], int)}
    known = all(isinstance(d, int) for n, axis in axes.items() for k, d in enumerate(sizes[n]) if k != axis)
    original = onnx.ModelProto()
    original.CopyFrom(proto)
    _declare(proto, axes)
    if len(fixed) < len(axes) or not known or len(set(fixed.values())) != 1 or not axes:
        return proto
    return _freed(original, proto, axes, next(iter(fixed.values())))


def _dims(value: onnx.ValueInfoProto) -> list[int | str]:
    return [d.dim_value if d.HasField("dim_value") else d.dim_param for d in value.type.tensor_type.shape.dim]


def _batch_axes(proto: onnx.ModelProto) -> dict[str, int]:
    """Of each input the axis of its batch."""
    axes = {}
    for value in proto.graph.input:
        dims = _dims(value)
        if len(dims) == 1 and isinstance(dims[0], int) and dims[0] > 1:
            raise FewbitError(f"input {value.name} has shape [{dims[0]}], without a batch; export it with [1, {dims[0]}]")
        axes[value.name] = 1 if len(dims) == 3 and _is_state(proto.graph, value.name) else 0
    return axes


def _is_state(graph: onnx.GraphProto, name: str) -> bool:
    """Does a recurrent layer read it as its initial state?"""
    reached = {name}
    for node in graph.node:
        if node.op_type in RECURRENT and any(n in reached for n in node.input[5:7]):
            return True
        if node.op_type in PASSED_ON and node.input[0] in reached:
            reached |= set(node.output)
    return False


def _declare(proto: onnx.ModelProto, axes: dict[str, int]) -> None:
    """Write "batch" where it stands; an output that no input reaches keeps its own shape."""
    del proto.graph.value_info[:]
    live = reached(proto.graph)
    remembered = _states_given(proto.graph)
    for value in [*proto.graph.input, *(v for v in proto.graph.output if v.name in live)]:
        dims = value.type.tensor_type.shape.dim
        axis = axes.get(value.name, 1 if value.name in remembered and len(dims) == 3 else 0)
        if len(dims):
            dims[axis].dim_param = "batch"


def _states_given(graph: onnx.GraphProto) -> set[str]:
    """What recurrent layers leave as their last state, [layers, batch, hidden], and what is only moved of it."""
    found: set[str] = set()
    for node in graph.node:
        if node.op_type in RECURRENT:
            found |= {name for name in node.output[1:] if name}
        elif node.input and node.op_type in {"Concat", *PASSED_ON} and node.input[0] in found:
            found |= set(node.output)
    return found


def reached(graph: onnx.GraphProto) -> set[str]:
    """The inputs and all that depends on them."""
    found = {v.name for v in graph.input} - {t.name for t in graph.initializer}
    for node in graph.node:
        if found & _reads(node):
            found |= set(node.output)
    return found


def _reads(node: onnx.NodeProto) -> set[str]:
    """What it reads, inside its own graphs too."""
    names = set(node.input)
    for attribute in node.attribute:
        for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
            names |= {n for child in inner.node for n in _reads(child)} | {v.name for v in inner.output}
    return names


@dataclass
class _Search:
    """Targets of Reshapes and Squeezes by number, as they are tried; runs that are left."""

    model: onnx.ModelProto
    feeds: dict[str, np.ndarray]
    alone: dict[str, list[np.ndarray]]
    nodes: list[int]
    chosen: dict[int, np.ndarray | None] = field(default_factory=dict)
    runs: int = MOST_RUNS
    stuck: int = -1  # the furthest node whose input could not be made
    mixed: list[str] = field(default_factory=list)  # outputs whose rows are not each group's

    def run(self, names: list[str]) -> list[np.ndarray] | None:
        """The named tensors for all groups at once, or None where ONNX Runtime cannot."""
        self.runs -= 1
        try:
            return _run(self.rewritten(), names, [self.feeds])[0]
        except FewbitError:
            return None

    def rewritten(self) -> onnx.ModelProto:
        """The model with what has been chosen."""
        made = onnx.ModelProto()
        made.CopyFrom(self.model)
        for k, target in self.chosen.items():
            node = made.graph.node[k]
            if target is None:  # a Squeeze of nothing but the batch
                node.op_type = "Identity"
                del node.input[1:], node.attribute[:]
                continue
            name = f"{node.output[0]}.free"
            made.graph.initializer.append(numpy_helper.from_array(target, name))
            node.CopyFrom(onnx.helper.make_node(node.op_type, [node.input[0], name], [node.output[0]], node.name))
        return made

    def solve(self, at: int = 0) -> bool:
        """Choose for the nodes from number `at` on, so that the outputs are each group's."""
        if self.runs <= 0:
            return False
        if at == len(self.nodes):
            return self._outputs_agree()
        k = self.nodes[at]
        node = self.model.graph.node[k]
        name, alone = node.input[0], self.alone[node.input[0]]
        found = [self.feeds[name]] if name in self.feeds else self.run([name])
        outer = None if found is None else _layout(found[0], alone)
        if found is None or outer is None:
            self.stuck = max(self.stuck, k)
            return False
        for target in self._targets(node, found[0], alone[0].shape, outer):
            self.chosen.pop(k, None)
            if target is not KEPT:
                self.chosen[k] = target
            if self.solve(at + 1):
                return True
        self.chosen.pop(k, None)
        return False

    def _targets(self, node: onnx.NodeProto, value: np.ndarray, shape: tuple[int, ...], outer: int) -> list:
        if not outer:  # no input reaches it
            return [KEPT]
        moved = [k for k in range(value.ndim) if value.shape[k] != shape[k]]
        if node.op_type == "Squeeze":
            asked = self.alone[node.input[1]][0] if len(node.input) > 1 else range(len(shape))
            axes = [int(a) % len(shape) for a in asked]
            left = [a for a in axes if shape[a] == 1 and a not in moved]
            return [np.array(left, np.int64) if left else None]
        out = self.alone[node.output[0]][0].shape
        if node.op_type == "Expand":  # to 1 it leaves a size as it is
            kept = {k + len(out) - value.ndim for k in moved}
            return [np.array([1 if k in kept else d for k, d in enumerate(out)], np.int64)]
        places = [p for p in range(len(out)) if outer % math.prod(out[:p]) == 0 and math.prod(out[: p + 1]) % outer == 0]
        places.sort(key=lambda p: (out[p] != 1, [p] != moved))
        return [np.array([-1 if k == p else d for k, d in enumerate(out)], np.int64) for p in places]

    def _outputs_agree(self) -> bool:
        names = [v.name for v in self.model.graph.output]
        found = self.run(names)
        self.mixed = [n for n, v in zip(names, found or [], strict=False) if _layout(v, self.alone[n]) is None]
        return found is not None and not self.mixed


KEPT = object()


def _freed(original: onnx.ModelProto, model: onnx.ModelProto, axes: dict[str, int], batch: int) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    groups = [{v.name: _random(v, rng) for v in original.graph.input} for _ in range(GROUPS)]
    live = reached(model.graph)
    sized = [model.graph.node[k] for k in _sized(model.graph, live)]
    beside = batch_rows.constants_beside(model.graph, live)
    made = [v.name for v in model.graph.output] + [name for n in sized for name in (*n.input, n.output[0])] + beside
    names = [n for n in dict.fromkeys(made) if n not in axes]
    try:
        alone = _run(original, names, [*groups, groups[0]])
    except FewbitError:
        return model  # what ONNX Runtime cannot run is said where it is run
    if any(not np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in zip(alone[0], alone[-1], strict=True)):
        return model  # it draws random numbers
    feeds = {n: np.concatenate([g[n] for g in groups], axis) for n, axis in axes.items()}
    values = {n: [a[k] for a in alone[:GROUPS]] for k, n in enumerate(names)} | {n: [g[n] for g in groups] for n in axes}
    repeated = [batch_rows.repeat(model, live, {n: values[n][0] for n in beside}, batch)] if beside else []
    for candidate in [model, *repeated]:
        search = _Search(_unbound(candidate), feeds, values, _sized(candidate.graph, live))
        if search._outputs_agree():
            return candidate
    if not search.solve():
        raise FewbitError(_refusal(search, batch, list(axes)))
    search.model = candidate
    return search.rewritten()


def _sized(graph: onnx.GraphProto, live: set[str]) -> list[int]:
    """The numbers of the nodes that write the sizes of what an input reaches (live) as constants."""
    return [k for k, n in enumerate(graph.node) if n.op_type in SIZED and n.input[0] in live and not live & set(n.input[1:])]


def _refusal(search: _Search, batch: int, inputs: list[str]) -> str:
    node = search.model.graph.node[search.stuck] if search.stuck >= 0 else None
    where = f" (output {search.mixed[0]} mixes its rows)" if search.mixed else ""
    where = f" (before node {node.name or node.output[0]}, {node.op_type})" if node is not None else where
    given = ", ".join(f"{n!r}: {{0: 'batch'}}" for n in inputs)
    return (
        f"its batch of {batch} is fixed in the graph{where} and cannot be freed; export it with a free batch: "
        f"dynamic_shapes=({{0: torch.export.Dim('batch')}},), or dynamic_axes={{{given}}} with dynamo=False"
    )


def _unbound(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same whose inputs and outputs declare no sizes."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    for value in [*made.graph.input, *made.graph.output]:
        value.type.tensor_type.ClearField("shape")
    return made


def _with_outputs(model: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    """The part of the model that makes the named tensors."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    taken = {v.name for v in model.graph.input}
    declared = {v.name: v for v in model.graph.output}
    del made.graph.output[:]
    made.graph.output.extend(declared.get(n, onnx.ValueInfoProto(name=n)) for n in names if n not in taken)
    needed, kept = {*names}, []
    for node in reversed(made.graph.node):
        if needed & set(node.output):
            needed |= _reads(node)
            kept.append(node)
    del made.graph.node[:]
    made.graph.node.extend(reversed(kept))
    return made


def _random(value: onnx.ValueInfoProto, rng: np.random.Generator) -> np.ndarray:
    shape, kind = [int(d) for d in _dims(value)], value.type.tensor_type.elem_type
    dtype = np.dtype(np.float32) if kind == TensorProto.FLOAT else onnx.helper.tensor_dtype_to_np_dtype(kind)
    return rng.normal(size=shape).astype(dtype) if dtype.kind == "f" else rng.integers(0, 2, shape).astype(dtype)


def _layout(value: np.ndarray, alone: list[np.ndarray]) -> int | None:
    """How many elements of a group stand before each step of the batch, so that value [before, groups, behind] is the groups'
    own values; 0 where it is each group's value as it is, None where it is something else."""
    first = alone[0]
    if value.shape == first.shape and all(_alike(value, a) for a in alone):
        return 0
    if value.size != first.size * len(alone) or not value.size:
        return None
    for outer in [n for n in range(1, first.size + 1) if first.size % n == 0]:
        apart = value.reshape(outer, len(alone), -1)
        if all(_alike(apart[:, k].reshape(-1), a.reshape(-1)) for k, a in enumerate(alone)):
            return outer
    return None


def _alike(got: np.ndarray, want: np.ndarray) -> bool:
    """To rounding; of quantized numbers, a few of which rounding may tip over, nearly."""
    if want.dtype.kind in "bSUO":
        return np.array_equal(got, want)
    known = np.isfinite(want)
    if not np.array_equal(got[~known], want[~known], equal_nan=True):
        return False
    if not known.any():
        return True
    right = want[known].astype(np.float64)
    error = np.abs(got[known].astype(np.float64) - right) / (np.ptp(right) or 1.0)
    return bool(np.median(error) < 1e-4 and error.max() < 0.1)


def _run(proto: onnx.ModelProto, names: list[str], feeds: list[dict[str, np.ndarray]]) -> list[list[np.ndarray]]:
    """The named tensors for each of the feeds, by ONNX Runtime: a robot, whose artifacts have a free batch, needs none."""
    from fewbit.graph import calibrate

    runner = calibrate.session(_with_outputs(proto, names), False)
    return [calibrate.run(runner, names, one) for one in feeds]
