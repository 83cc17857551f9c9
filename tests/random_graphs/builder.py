"""A float ONNX graph that grows node by node, spelled as its opset wants it, with the habits of one exporter.

Follows ONNX's operator specification alone; this module and all that make networks know nothing of fewbit.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

Shape = tuple[int | None, ...]  # None: the batch, always the first axis

KEYWORDS = ["double", "int", "state", "i", "void", "return", "float", "x", "static", "NULL", "main", "auto"]
MADE = [".scale", ".zero_point", ".codes", ".dequantized", ".quantize", ".weight", ".bias", ".gemm_out", ".gemm", ".const",
        ".float", ".folded", ".moved", ".relu", ".narrow", "_quantized", "_scale", "_zero_point", ".weight_codes"]  # fmt: skip
WORDS = ["größe", "观测", "naïve", "Δθ", "обс"]
NAMES = ("plain", "torch", "numbers", "unicode", "spaces", "keywords", "made", "comment", "long")


def number_of(dtype: np.dtype | type) -> int:
    """ONNX's number of a NumPy dtype."""
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


@dataclass
class Habits:
    """How one exporter writes: chosen once a graph."""

    opset: int
    dtype: np.dtype
    batch: str | int | None  # a name, 1 where it is baked in, None where it is not told
    names: str
    node_names: str  # "unique", "none" or "same"
    constants: str  # "initializers", "nodes" or "mixed"
    share: float  # how often an initializer of the right shape is used again
    as_inputs: bool  # initializers are listed as inputs too
    raw: bool  # initializers' bytes rather than their fields
    infer: bool  # intermediate shapes are in the file


@dataclass
class Builder:
    rng: np.random.Generator
    habits: Habits
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    outputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    shapes: dict[str, Shape] = field(default_factory=dict)
    dtypes: dict[str, np.dtype] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    weights: list[tuple[str, np.ndarray]] = field(default_factory=list)

    @property
    def opset(self) -> int:
        return self.habits.opset

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    def one(self, *choices: Any) -> Any:
        return choices[int(self.rng.integers(len(choices)))]

    def below(self, low: int, high: int) -> int:
        """low <= an integer <= high."""
        return int(self.rng.integers(low, high + 1))

    def name(self, hint: str) -> str:
        """A name that nothing has yet, in the graph's style."""
        count = len(self.taken)
        style = self.habits.names
        if style == "torch":
            made = f"/net/layer.{count}/{hint}_output_0"
        elif style == "numbers":
            made = str(count)
        elif style == "unicode":
            made = f"{self.one(*WORDS)}{count}"
        elif style == "spaces":
            made = f"{hint} of {count}"
        elif style == "keywords":
            made = self.one(*KEYWORDS)
        elif style == "made" and self.taken:
            made = f"{self.one(*sorted(self.taken))}{self.one(*MADE)}"
        elif style == "comment":
            made = f"{hint}*/ {count} /*\\"
        elif style == "long":
            made = f"{hint}_{count}_" + "module." * 30
        else:
            made = f"{hint.lower()}{count}"
        while made in self.taken or not made:
            made = f"{made}_{count}"
        self.taken.add(made)
        return made

    def random(self, *shape: int, scale: float = 1.0) -> np.ndarray:
        return (self.rng.normal(size=shape) * scale).astype(self.habits.dtype)

    def number(self, value: float) -> np.ndarray:
        return np.asarray(value, self.habits.dtype)

    def constant(self, array: np.ndarray, hint: str = "const") -> str:
        """An initializer or a Constant node; sometimes one that is there already."""
        array = np.asarray(array)
        for name, other in self.weights:
            if other.shape == array.shape and other.dtype == array.dtype:
                if array.dtype.kind != "f" and np.array_equal(other, array) and self.chance(0.5):
                    return name
                if array.dtype.kind == "f" and array.ndim == 2 and self.chance(self.habits.share):
                    return name
        name = self.name(hint)
        as_node = self.habits.constants == "nodes" or (self.habits.constants == "mixed" and self.chance(0.4))
        if as_node:
            self.nodes.append(self._constant_node(array, name))
        else:
            self.initializers.append(self._tensor(array, name))
            self.weights.append((name, array))
        self.shapes[name], self.dtypes[name] = array.shape, array.dtype
        return name

    def weight(self, array: np.ndarray, hint: str = "weight") -> str:
        """A constant matrix or kernel, sometimes behind what exporters leave in front of it: a Transpose, a Cast, a Reshape."""
        way = self.one(*["plain"] * 20, "transpose", "transpose", "cast", "reshape", "identity")
        if way == "transpose":
            perm = [int(i) for i in self.rng.permutation(array.ndim)]
            stored = self.constant(array.transpose(perm).copy(), hint)
            return self.node("Transpose", stored, perm=[int(i) for i in np.argsort(perm)], shapes=[array.shape])
        if way == "cast" and array.dtype == np.float32:
            stored = self.constant(array.astype(np.float16), hint)
            return self.node("Cast", stored, to=number_of(np.float32), shapes=[array.shape], dtypes=[np.float32])
        if way == "reshape":
            stored, shape = self.constant(array.reshape(-1), hint), self.constant(np.array(array.shape, np.int64), "shape")
            return self.node("Reshape", stored, shape, shapes=[array.shape])
        stored = self.constant(array, hint)
        return self.node("Identity", stored) if way == "identity" else stored

    def _constant_node(self, array: np.ndarray, name: str) -> onnx.NodeProto:
        attribute: dict[str, Any] = {"value": numpy_helper.from_array(array)}
        if self.opset >= 12 and array.dtype in (np.float32, np.int64) and array.ndim <= 1 and self.chance(0.5):
            kind = "float" if array.dtype == np.float32 else "int"
            attribute = {f"value_{kind}": array.item()} if array.ndim == 0 else {f"value_{kind}s": array.tolist()}
        return helper.make_node("Constant", [], [name], name=self.node_name("Constant"), **attribute)

    def _tensor(self, array: np.ndarray, name: str) -> onnx.TensorProto:
        if self.habits.raw or array.dtype not in (np.float32, np.float64, np.int64):
            return numpy_helper.from_array(array.copy(order="C"), name)
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        return helper.make_tensor(name, kind, array.shape, array.reshape(-1).tolist())

    def node_name(self, op: str) -> str:
        style = self.habits.node_names
        return "" if style == "none" else "node" if style == "same" else f"/{op}_{len(self.nodes)}"

    def node(
        self, op: str, *inputs: str, shapes: list[Shape] | None = None, dtypes: Any = None, domain: str = "", **attributes: Any
    ):
        """One node; shapes: of its outputs ([the first input's] by default). Its output's name, or a list of them."""
        shapes = shapes or [self.shapes[inputs[0]]]
        kinds = dtypes or [self.dtypes[inputs[0]]] * len(shapes)
        names = [self.name(op) for _ in shapes]
        for name, shape, kind in zip(names, shapes, kinds, strict=True):
            self.shapes[name], self.dtypes[name] = tuple(shape), np.dtype(kind)
        attributes = {k: v for k, v in attributes.items() if v is not None}
        made = helper.make_node(op, list(inputs), names, name=self.node_name(op), domain=domain, **attributes)
        self.nodes.append(made)
        return names[0] if len(names) == 1 else names

    def axes(self, op: str, x: str, axes: list[int] | None, shape: Shape, since: int, **attributes: Any) -> str:
        """An operator whose axes are an attribute before opset `since` and an input from it on."""
        if axes is None:
            return self.node(op, x, shapes=[shape], **attributes)
        if self.opset < since:
            return self.node(op, x, shapes=[shape], axes=axes, **attributes)
        return self.node(op, x, self.constant(np.array(axes, np.int64), "axes"), shapes=[shape], **attributes)

    def input(self, shape: tuple[int, ...], dtype: Any, hint: str = "obs", batch_axis: int = 0) -> str:
        """An input whose shape behind (and, with batch_axis, before) the batch is given."""
        name = self.name(hint)
        dims: list[Any] = list(shape)
        dims.insert(batch_axis, self.habits.batch)
        self.inputs.append(helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), dims))
        self.shapes[name], self.dtypes[name] = (None, *shape), np.dtype(dtype)
        if batch_axis:
            self.shapes[name] = (*shape[:batch_axis], None, *shape[batch_axis:])
        return name

    def output(self, value: str, told: str = "full") -> None:
        """told: what the file says of its shape: "full" or "rank"."""
        kind = helper.np_dtype_to_tensor_dtype(self.dtypes[value])
        batch = None if told == "rank" else self.habits.batch
        dims = [batch if d is None else None if told == "rank" else d for d in self.shapes[value]]
        self.outputs.append(helper.make_tensor_value_info(value, kind, dims))

    def model(self) -> onnx.ModelProto:
        habits, given = self.habits, list(self.inputs)
        if habits.as_inputs:
            kinds = [(t.name, t.data_type, list(t.dims)) for t in self.initializers]
            given += [helper.make_tensor_value_info(*k) for k in kinds]
        graph = helper.make_graph(self.nodes, "g", given, self.outputs, self.initializers)
        ir_version = 3 if habits.as_inputs and habits.opset <= 8 else {21: 10, 22: 10, 23: 11, 24: 12}.get(habits.opset, 8)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", habits.opset)], ir_version=ir_version)
        return onnx.shape_inference.infer_shapes(model) if habits.infer else model
