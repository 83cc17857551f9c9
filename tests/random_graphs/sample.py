"""A seed -> a random network as an exporter writes a policy, and rows to run it on.

`python -m random_graphs.sample SEED` in tests/ prints one.
"""

import sys

import numpy as np
import onnx
from onnx import helper

from random_graphs import layers, moves
from random_graphs.activations import Block, activation, clip, powers
from random_graphs.builder import NAMES, Builder, Habits, number_of
from random_graphs.functions import wrap
from random_graphs.heads import heads
from random_graphs.images import image, signal
from random_graphs.layers import dense_activation
from random_graphs.oracle import Sample, well_behaved
from random_graphs.rare import rare

ROWS = 96
COMMON = [9, *[11] * 3, 12, *[13] * 2, 14, *[17] * 3, *[18] * 3, *[20] * 2, 21]
OPSETS = [*range(7, 25), *COMMON]
VECTOR: list[tuple[float, Block]] = [
    (6, dense_activation), (4, activation), (1, layers.batch_norm), (1.2, layers.layer_norm), (1.5, layers.affine),
    (1.5, layers.residual), (1, layers.branches), (1, layers.split_join), (1, moves.slice_columns), (1, moves.gather_columns),
    (1.5, moves.round_trip), (0.7, layers.soft), (1, powers), (1, moves.reduce_groups), (0.5, moves.reduce_last),
    (0.8, moves.expanded), (0.4, moves.pad_columns), (1.5, rare),
]  # fmt: skip
SEQUENCE: list[tuple[float, Block]] = [
    (6, dense_activation), (3, activation), (1.2, layers.layer_norm), (1, layers.affine), (1.5, layers.residual),
    (1, layers.branches), (1, layers.split_join), (0.7, moves.slice_columns), (0.7, moves.gather_columns),
    (1.5, moves.round_trip), (0.5, layers.soft), (0.7, powers), (0.5, moves.reduce_last), (0.7, layers.attention),
    (0.3, moves.pad_columns), (0.6, layers.batch_norm),
]  # fmt: skip


def sample(seed: int) -> Sample:
    """The first well-behaved network that the seed leads to: valid, runnable, finite, not chaotic."""
    for attempt in range(50):
        rng = np.random.default_rng([seed, attempt])
        try:
            made = _network(seed, rng)
        except RuntimeError:
            continue
        if well_behaved(made, rng):
            return made
    raise RuntimeError(f"seed {seed}: no well-behaved network in 50 attempts")


def _network(seed: int, rng: np.random.Generator) -> Sample:
    b = Builder(rng, _habits(rng))
    kind = b.one(*["vector"] * 10, *["image"] * 3, *["signal"], *["sequence"] * 2, "recurrent", "two")
    states: dict[str, str] = {}
    feeds: dict[str, np.ndarray] = {}
    if kind == "image":
        x = image(b, feeds)
    elif kind == "signal":
        x = signal(b, feeds, _observation)
    elif kind == "sequence":
        x = _sequence(b, feeds)
    elif kind == "recurrent":
        x, states = _recurrent(b, feeds)
    else:
        x = _vector(b, feeds)
        if kind == "two" and b.chance(0.5):
            other = _vector(b, feeds)
            shape = (None, int(b.shapes[x][1] or 0) + int(b.shapes[other][1] or 0))
            x = b.node("Concat", x, other, axis=1, shapes=[shape])
    early = x
    for _ in range(b.below(0, 4)):
        x = _pick(b, VECTOR)(b, x)
    if not any(n.op_type in ("Gemm", "Conv", "MatMul") for n in b.nodes) or b.chance(0.5):
        x = layers.dense(b, x)
    heads(b, x, early, bool(states))
    for name in states.values():
        b.output(name)
    return finish(b, seed, feeds, states)


def finish(b: Builder, seed: int, feeds: dict[str, np.ndarray], states: dict[str, str]) -> Sample:
    model = b.model()
    if b.chance(0.06):
        model = wrap(model, b.rng)
    if b.habits.constants == "mixed" and b.chance(0.3):
        _computed_weight(b, model)
    return Sample(seed, model, feeds, states, b.habits.batch == 1)


def _computed_weight(b: Builder, model: onnx.ModelProto) -> None:
    """An initializer handed on by an Identity, as exporters leave shared weights."""
    for tensor in list(model.graph.initializer)[:1]:
        alias = b.name("alias")
        for node in model.graph.node:
            for k, name in enumerate(node.input):
                if name == tensor.name:
                    node.input[k] = alias
        if not any(o.name == tensor.name for o in model.graph.output):
            model.graph.node.insert(0, helper.make_node("Identity", [tensor.name], [alias], name=b.node_name("Identity")))


def _habits(rng: np.random.Generator) -> Habits:
    def one(*choices):
        return choices[int(rng.integers(len(choices)))]

    dtype = np.dtype(one(*[np.float32] * 18, np.float16, np.float64))
    opset = one(*OPSETS)
    if dtype != np.float32 and opset < 11:
        opset = 13
    return Habits(
        opset=opset,
        dtype=dtype,
        batch=one(*["batch"] * 6, "N", "unk__1", None, 1, 1),
        names=one(*["plain"] * 6, *["torch"] * 4, *NAMES),
        node_names=one(*["unique"] * 30, *["none"] * 15, "same"),
        constants=one(*["initializers"] * 5, "nodes", "mixed", "mixed"),
        share=one(0, 0, 0.3, 0.8),
        as_inputs=bool(rng.random() < (0.5 if opset <= 8 else 0.06)),
        raw=bool(rng.random() < 0.7),
        infer=bool(rng.random() < 0.4),
    )


def _pick(b: Builder, table: list[tuple[float, Block]]) -> Block:
    weights = np.array([w for w, _ in table])
    return table[int(b.rng.choice(len(table), p=weights / weights.sum()))][1]


def _observation(b: Builder, feeds: dict[str, np.ndarray], *shape: int) -> str:
    """An input of the network's own dtype, or of another that is cast first; its rows."""
    dtype = b.habits.dtype
    kind = np.dtype(b.one(*[dtype] * 12, np.float64, np.float32, np.int64, np.int32, np.uint8))
    name = b.input(shape, kind)
    if kind.kind in "iu":
        feeds[name] = b.rng.integers(0 if kind == np.uint8 else -9, 10, (ROWS, *shape)).astype(kind)
    else:
        feeds[name] = b.rng.normal(size=(ROWS, *shape)).clip(-3, 3).astype(kind)
    if kind == dtype:
        return name
    x = b.node("Cast", name, to=number_of(dtype), dtypes=[dtype])
    return b.node("Div", x, b.constant(b.number(10), "ten")) if kind.kind in "iu" else x


def _vector(b: Builder, feeds: dict[str, np.ndarray]) -> str:
    width = b.below(1, 12)
    x = _observation(b, feeds, width)
    if b.chance(0.25):
        mean, deviation = b.random(width), np.abs(b.random(width)) + b.number(0.5)
        given = b.inputs[-1].name
        if given == x and b.habits.dtype != np.float16 and b.chance(0.5):  # columns of unlike size, as sensors have
            deviation = (deviation * 10.0 ** b.rng.integers(-2, 3, width)).astype(b.habits.dtype)
            mean = mean * deviation
            feeds[given] = (mean + deviation * feeds[given]).astype(b.habits.dtype)
        x = b.node("Sub", x, b.constant(mean, "mean"))
        divide = b.chance(0.5)
        factor = deviation if divide else b.number(1) / deviation
        x = b.node("Div" if divide else "Mul", x, b.constant(factor, "deviation"))
        if b.chance(0.7):
            x = clip(b, x)
    return x


def _sequence(b: Builder, feeds: dict[str, np.ndarray]) -> str:
    """[batch, entities, features] to [batch, features]."""
    length, width = b.below(2, 6), b.below(2, 8)
    x = _observation(b, feeds, length, width)
    for _ in range(b.below(1, 3)):
        x = _pick(b, SEQUENCE)(b, x)
    last = int(b.shapes[x][2] or 0)
    way = b.one("flatten", "mean", "max", "first", "reshape")
    if way == "flatten":
        return b.node("Flatten", x, axis=b.one(None, 1), shapes=[(None, length * last)])
    if way == "reshape":
        return moves.reshape_to(b, x, (length * last,))
    if way == "first":
        return b.node("Gather", x, b.constant(np.array(0, np.int64), "index"), axis=1, shapes=[(None, last)])
    op = "ReduceMean" if way == "mean" else "ReduceMax"
    return b.axes(op, x, [1], (None, last), 18, keepdims=0)


def _recurrent(b: Builder, feeds: dict[str, np.ndarray]) -> tuple[str, dict[str, str]]:
    """One step of an LSTM or GRU; its state is an input and an output [1, batch, hidden]."""
    x = _vector(b, feeds)
    if b.chance(0.5):
        x = activation(b, layers.dense(b, x))
    width, hidden, kind = int(b.shapes[x][1] or 0), b.below(2, 6), b.one("LSTM", "GRU")
    gates = {"LSTM": 4, "GRU": 3}[kind]
    w = b.constant(b.random(1, gates * hidden, width, scale=width**-0.5), "W")
    r = b.constant(b.random(1, gates * hidden, hidden, scale=hidden**-0.5), "R")
    bias = b.constant(b.random(1, 2 * gates * hidden, scale=0.2), "B") if b.chance(0.8) else ""
    held = [b.input((1, hidden), b.habits.dtype, h, batch_axis=1) for h in ("h0", "c0")[: 2 if kind == "LSTM" else 1]]
    step = b.axes("Unsqueeze", x, [0], (1, None, width), 13)
    attributes: dict = {"hidden_size": hidden, "direction": b.one(None, "forward")}
    if kind == "GRU":
        attributes["linear_before_reset"] = b.one(None, 0, 1, 1)
    state = (1, None, hidden)
    made = b.node(kind, step, w, r, bias, "", *held, shapes=[(1, 1, None, hidden), *[state] * len(held)], **attributes)
    if b.chance(0.6):
        y = b.axes("Squeeze", made[0], [0, 1], (None, hidden), 13)
    else:
        y = b.axes("Squeeze", made[1], [0], (None, hidden), 13)
    return y, dict(zip(held, made[1:], strict=True))


if __name__ == "__main__":
    print(onnx.printer.to_text(sample(int(sys.argv[1])).model))
