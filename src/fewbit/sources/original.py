"""The original network, run as it came: an ONNX file in ONNX Runtime, a module in torch. Verification compares with it."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from fewbit.errors import FewbitError, first_line
from fewbit.graph import batch, calibrate, opset, precision
from fewbit.graph.inline import inline, name_nodes

Arrays = dict[str, np.ndarray]
Run = Callable[[Arrays], Arrays]


def of_onnx(proto: onnx.ModelProto) -> Run:
    """The file's own graph: {input: [n, ...]} -> {output: [n, ...]}.

    A state of several layers, which folding turns into one input a layer, is put together again; a graph exported with batch 1 is
    called row by row, and what depends on no input is given once. ONNX Runtime runs it, or the specification's evaluator where
    ONNX Runtime lacks a kernel.

    Raises (the function that is returned):
        FewbitError: neither of the two runs it.
    """
    initializers = {t.name for t in proto.graph.initializer}
    inputs = [v for v in proto.graph.input if v.name not in initializers]
    names = [o.name for o in proto.graph.output]
    call, reached = _caller(proto, names), batch.reached(proto.graph)

    def run(feeds: Arrays) -> Arrays:
        given = {v.name: _given(v, feeds) for v in inputs}
        count = len(next(iter(feeds.values())))
        ones = {v.name: _batch_axis(v, given[v.name], count) for v in inputs}
        if not any(_dimension(v, ones[v.name]) == 1 for v in inputs) or count == 1:
            return _layers_apart(dict(zip(names, call(given), strict=True)), count)
        rows = [call({k: np.take(a, [i], axis=ones[k]) if a.ndim else a for k, a in given.items()}) for i in range(count)]
        made = {}
        for k, name in enumerate(names):
            parts = [np.asarray(r[k]) for r in (rows if name in reached else rows[:1])]
            axis = 1 if parts[0].ndim == 3 and parts[0].shape[0] > 1 and parts[0].shape[1] == 1 else 0
            made[name] = np.concatenate([p if p.ndim else p[None] for p in parts], axis=axis) if name in reached else parts[0]
        return _layers_apart(made, count)

    return run


def of_module(module: Any, examples: dict[str, Any], outputs: Sequence[str]) -> Run:
    """A torch.nn.Module that is called with tensors like the examples, in their order."""
    import torch

    def run(feeds: Arrays) -> Arrays:
        given = [torch.from_numpy(np.ascontiguousarray(feeds[name])).to(like.dtype) for name, like in examples.items()]
        with acting(module), torch.no_grad():
            made = module(*given)
        made = made if isinstance(made, tuple | list) else (made,)
        return {k: v.cpu().numpy() for k, v in zip(outputs, made, strict=True)}

    return run


@contextlib.contextmanager
def acting(module: Any) -> Iterator[None]:
    """Every part of a torch.nn.Module in eval mode meanwhile, and afterwards each as its owner had it."""
    training = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, flag in training:
            part.training = flag


def computes_in_half(proto: onnx.ModelProto) -> bool:
    """Is anything computed in 16-bit floats? A weight that is only stored so, and read through a Cast, is not."""
    return bool(precision.dtypes(proto) & {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16})


def _caller(proto: onnx.ModelProto, names: list[str]) -> Callable[[Arrays], list[np.ndarray]]:
    """ONNX Runtime, which says of some kernels only when they are run that it lacks them; then the specification's evaluator."""
    named = onnx.ModelProto()
    named.CopyFrom(proto)
    runners: list[Callable[[Arrays], list[np.ndarray]]] = []
    with contextlib.suppress(FewbitError):
        runner = calibrate.session(name_nodes(named))
        runners.append(lambda feeds: calibrate.run(runner, names, feeds))

    def call(feeds: Arrays) -> list[np.ndarray]:
        if runners:
            try:
                return runners[0](feeds)
            except FewbitError:
                runners.clear()
        runners.append(_evaluator(proto, names))
        return runners[0](feeds)

    return call


def _evaluator(proto: onnx.ModelProto, names: list[str]) -> Callable[[Arrays], list[np.ndarray]]:
    """At opset 21: of an older BatchNormalization the evaluator computes what training does."""
    plain = onnx.ModelProto()
    plain.CopyFrom(proto)
    try:
        evaluator = ReferenceEvaluator(opset.convert(inline(plain)))
    except Exception as e:
        raise FewbitError(f"neither ONNX Runtime nor ONNX's evaluator runs the source ({first_line(e)})") from None

    def call(feeds: Arrays) -> list[np.ndarray]:
        try:
            return list(evaluator.run(names, feeds))
        except Exception as e:
            raise FewbitError(f"neither ONNX Runtime nor ONNX's evaluator runs the source ({first_line(e)})") from None

    return call


def _given(value: onnx.ValueInfoProto, feeds: Arrays) -> np.ndarray:
    """What the file's own input is fed with, in its dtype; a state's layers stacked."""
    kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    if value.name in feeds:
        array = feeds[value.name]
    else:
        layers = [feeds[f"{value.name}_{k}"] for k in range(len(feeds)) if f"{value.name}_{k}" in feeds]
        if not layers:
            raise FewbitError(f"input {value.name}: the graph read from the file does not take it")
        array = np.stack(layers)
    rank = len(value.type.tensor_type.shape.dim)
    return (array[None] if array.ndim == rank - 1 else array).astype(kind)


def _batch_axis(value: onnx.ValueInfoProto, array: np.ndarray, count: int) -> int:
    """Of what is fed: 0, or 1 of a state [layers, batch, hidden]."""
    return 1 if array.ndim > 1 and array.shape[0] != count and array.shape[1] == count else 0


def _dimension(value: onnx.ValueInfoProto, axis: int) -> int | None:
    dims = value.type.tensor_type.shape.dim
    return dims[axis].dim_value if axis < len(dims) and dims[axis].HasField("dim_value") else None


def _layers_apart(made: Arrays, count: int) -> Arrays:
    """A state [layers, batch, hidden] also as name_0, name_1, …: what the folded graph gives."""
    layered = {
        f"{name}_{k}": layer
        for name, array in made.items()
        if np.ndim(array) == 3 and array.shape[0] != count and array.shape[1] == count
        for k, layer in enumerate(array)
    }
    return made | layered
