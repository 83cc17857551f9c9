"""The action and what exporters give beside it: squashed means, choices, distributions, values."""

import numpy as np
from onnx import TensorProto

from random_graphs import layers, moves
from random_graphs.activations import clip
from random_graphs.builder import Builder


def heads(b: Builder, x: str, early: str, remembers: bool) -> None:
    """The action and what exporters give beside it."""
    told = b.one("full", "full", "full", "rank")
    action = _action(b, x)
    extras: list[str] = []
    if b.chance(0.15):
        extras.append(layers.dense(b, x, 1))
    if b.chance(0.12):
        extras.append(x)
    if b.chance(0.08):
        extras.append(early)
    if b.chance(0.05):
        made = [
            n.output[0]
            for n in b.nodes
            if n.op_type != "Constant" and b.dtypes[n.output[0]].kind == "f" and _leads(b, n.output[0])
        ]
        extras.append(b.one(*made) if made else action)
    if b.chance(0.04):
        extras.append(b.node("Identity", b.constant(b.random(2), "log_std")))
    inputs = {v.name for v in b.inputs}
    for value in dict.fromkeys([action, *extras]):
        if value in inputs:
            value = b.node("Identity", value)
        b.output(value, told if not remembers else "full")


def _leads(b: Builder, name: str) -> bool:
    return bool(b.shapes[name]) and b.shapes[name][0] is None


def _action(b: Builder, x: str) -> str:
    way = b.one(
        "tanh",
        "tanh",
        "tanh",
        "plain",
        "plain",
        "plain",
        "clip",
        "argmax",
        "softmax argmax",
        "gaussian",
        "scaled",
        "discrete",
        "double",
    )
    if way == "plain" and b.chance(0.7):
        return layers.dense(b, x)
    if way == "tanh":
        return b.node("Tanh", layers.dense(b, x))
    if way == "clip":
        return clip(b, layers.dense(b, x))
    if way == "scaled":
        y = b.node("Tanh", layers.dense(b, x))
        width = b.shapes[y][-1]
        y = b.node("Mul", y, b.constant(np.abs(b.random(*b.one((), (width,)))) + b.number(0.5), "scale"))
        return b.node("Add", y, b.constant(b.random(*b.one((), (width,))), "offset"))
    if way in ("argmax", "softmax argmax"):
        return argmax(b, layers.dense(b, x, b.below(2, 5)), way == "softmax argmax")
    if way == "gaussian":
        count = b.below(1, 4)
        mean, log = moves.split(b, layers.dense(b, x, 2 * count), 2)
        if b.shapes[mean] != b.shapes[log] or b.chance(0.4):
            return b.node("Tanh", mean)
        deviation = b.node("Exp", b.node("Tanh", log))
        return b.node("Add", mean, b.node("Mul", deviation, b.constant(b.number(0.5), "quantile")))
    if way == "discrete":
        sizes = [b.below(2, 4) for _ in range(2)]
        logits = layers.dense(b, x, sum(sizes))
        if b.opset >= 13:
            parts = b.node(
                "Split", logits, b.constant(np.array(sizes, np.int64), "split"), axis=1, shapes=[(None, s) for s in sizes]
            )
        else:
            parts = b.node("Split", logits, split=sizes, axis=1, shapes=[(None, s) for s in sizes])
        best = [b.node("ArgMax", p, axis=1, keepdims=1, shapes=[(None, 1)], dtypes=[np.int64]) for p in parts]
        return b.node("Concat", *best, axis=1, shapes=[(None, 2)])
    if way == "double" and b.habits.dtype == np.float32:
        return b.node("Cast", layers.dense(b, x), to=TensorProto.DOUBLE, dtypes=[np.float64])
    return layers.dense(b, x)


def argmax(b: Builder, x: str, soft: bool) -> str:
    keep = b.one(None, 0, 0, 1)
    if soft:
        x = b.node("Softmax", x, axis=b.one(1, -1) if b.opset >= 11 else 1)
    attributes = {"axis": b.one(1, -1) if b.opset >= 11 else 1, "keepdims": keep}
    if b.opset >= 12:
        attributes["select_last_index"] = b.one(None, 0, 1)
    y = b.node("ArgMax", x, shapes=[(None,) if keep == 0 else (None, 1)], dtypes=[np.int64], **attributes)
    return b.node("Cast", y, to=TensorProto.INT32, dtypes=[np.int32]) if b.chance(0.1) else y
