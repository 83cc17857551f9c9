"""About 300 small QDQ graphs that every executor must run as the oracle does, bit for bit: `cases()` makes them from seeds.

Hard on purpose: zero points that are not zero, scales that are not powers of two, dead channels, constructed ties, one
input, 600 inputs at 16 bits, extreme codes, every width, saturating adds. tests/corpus.sha256 freezes what is expected.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

KINDS = {"int8": np.int8, "uint8": np.uint8, "int16": np.int16, "uint16": np.uint16}
LIMITS = {"int8": (-128, 127), "uint8": (0, 255), "int16": (-32768, 32767), "uint16": (0, 65535)}


@dataclass(frozen=True)
class Case:
    name: str
    model: onnx.ModelProto
    feeds: dict[str, np.ndarray]


class Graph:
    """Grows a QDQ graph node by node; every method returns the name of its output."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.inputs: dict[str, np.ndarray] = {}

    def constant(self, array: np.ndarray | float) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def op(self, op: str, *inputs: str, outputs: int = 1, **attributes) -> str:
        names = [f"{op.lower()}{len(self.nodes)}_{k}" for k in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, name=names[0], **attributes))
        return names[0]

    def input(self, values: np.ndarray) -> str:
        name = f"x{len(self.inputs)}"
        self.inputs[name] = values.astype(np.float32)
        return name

    def qdq(self, x: str, kind: str, scale: float, zero: int = 0) -> str:
        s, z = self.constant(np.float32(scale)), self.constant(KINDS[kind](zero))
        return self.op("DequantizeLinear", self.op("QuantizeLinear", x, s, z), s, z)

    def entry(self, kind: str, width: int, scale: float, zero: int = 0, batch: int = 6, extreme: bool = False) -> str:
        """An input whose codes are random, with both extremes, real zero and values that saturate among them."""
        low, high = LIMITS[kind]
        choice = [low, high, zero, low, high] if extreme else [low, high, zero, zero + 1]
        q = self.rng.integers(low, high + 1, (batch, width))
        q[: batch // 2] = self.rng.choice(choice, (batch // 2, width))
        if extreme:
            q[0], q[1] = low, high
        x = (q - zero) * np.float64(np.float32(scale))
        x[-1, 0] = 4 * (high - zero + 1) * scale
        return self.qdq(self.input(x), kind, scale, zero)

    def gemm(self, x: str, sx: float, weight: np.ndarray, scales: np.ndarray, bias: np.ndarray | None, zero: int = 0) -> str:
        """weight [out, in] codes of the dtype to store; scales [out] or one; bias int32 codes."""
        scales = np.asarray(scales, np.float32)
        extra = [self.constant(np.full(scales.shape, zero).astype(weight.dtype))] if zero else []
        axis = {"axis": 0} if scales.ndim else {}
        w = self.op("DequantizeLinear", self.constant(weight), self.constant(scales), *extra, **axis)
        if bias is None:
            return self.op("Gemm", x, w, transB=1)
        sb = (np.float32(sx) * scales).astype(np.float32)
        b = self.op("DequantizeLinear", self.constant(bias.astype(np.int32)), self.constant(sb), **axis)
        return self.op("Gemm", x, w, b, transB=1)

    def case(self, name: str, *outputs: str) -> Case:
        values = [helper.make_tensor_value_info(k, TensorProto.FLOAT, ["n", *v.shape[1:]]) for k, v in self.inputs.items()]
        outs = [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs]
        graph = helper.make_graph(self.nodes, "corpus", values, outs, self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        return Case(name, onnx.shape_inference.infer_shapes(model), self.inputs)


def cases() -> Iterator[Case]:
    """All of them, in a fixed order."""
    for family in (linear, narrow_weights, ties, dead_channels, wide, chains, adds, products, concats, moved, tables, lookups,
                   entries, recurrent, convolutions):  # fmt: skip
        yield from family()


def linear() -> Iterator[Case]:
    seed = 0
    for kind in KINDS:
        for width in (1, 2, 3, 7, 16, 17, 33, 64):
            for style in ("plain", "zero points", "exit"):
                seed += 1
                g = Graph(seed)
                low, high = LIMITS[kind]
                zx = 0 if style == "plain" and low < 0 else int(g.rng.integers(low, high + 1))
                n_out = int(g.rng.integers(1, 9))
                sx = float(g.rng.uniform(0.001, 0.1)) if style != "plain" else 2.0**-6
                weight = g.rng.integers(-128, 128, (n_out, width)).astype(np.int8)
                scales = g.rng.uniform(1e-4, 1e-2, n_out) if style != "exit" else np.float32(g.rng.uniform(1e-4, 1e-2))
                bias = g.rng.integers(-(2**15), 2**15, n_out) if seed % 3 else None
                y = g.gemm(g.entry(kind, width, sx, zx), sx, weight, scales, bias)
                if style != "exit":
                    out = list(KINDS)[int(g.rng.integers(4))]
                    lo, hi = LIMITS[out]
                    spread = 128 * (high - low) * np.sqrt(width) * sx * float(np.max(scales)) / (hi - lo)
                    y = g.qdq(y, out, spread * g.rng.uniform(0.3, 2), int(g.rng.integers(lo, hi + 1)) if seed % 2 else max(lo, 0))
                yield g.case(f"linear {kind} {width} {style}", y)


def narrow_weights() -> Iterator[Case]:
    """INT4, UINT4, int6 in INT8, uint8 and zero points of weights."""
    for k, (dtype, low, high, zero) in enumerate(
        [(ml_dtypes.int4, -8, 7, 0), (ml_dtypes.uint4, 0, 15, 8), (np.int8, -32, 31, 0), (np.int8, -128, 127, 5),
         (np.uint8, 0, 255, 128), (np.uint8, 0, 255, 3), (np.int8, -1, 1, 0), (ml_dtypes.int4, -2, 1, 0)]
    ):  # fmt: skip
        for kind in ("uint8", "int16"):
            g = Graph(1000 + k)
            weight = g.rng.integers(low, high + 1, (5, 19)).astype(dtype)
            y = g.gemm(g.entry(kind, 19, 0.02, 0), 0.02, weight, g.rng.uniform(0.001, 0.05, 5), None, zero)
            yield g.case(f"weights {np.dtype(dtype).name} [{low}, {high}] zero {zero} behind {kind}", g.qdq(y, "int16", 0.003))


def ties() -> Iterator[Case]:
    """acc * m / 2^s lands exactly between two codes: odd accumulators, and output scales of twice or four times the input's."""
    for k in range(24):
        g = Graph(2000 + k)
        factor, out = (2.0, 4.0, 8.0)[k % 3], ("int8", "uint8", "int16", "uint16")[k % 4]
        weight = np.eye(6, dtype=np.int8) * np.int8(1 if k < 12 else -1)
        bias = g.rng.integers(-9, 9, 6) * 2 + 1
        x = g.entry("int8" if k % 2 else "int16", 6, 2.0**-4, 0, batch=12)
        y = g.gemm(x, 2.0**-4, weight, np.full(6, 2.0**-3), bias)
        yield g.case(f"ties by {factor:g} to {out} {k}", g.qdq(y, out, 2.0**-7 * factor, (0, 7, 128, 1)[k % 4] % 128))


def dead_channels() -> Iterator[Case]:
    """Rows of zero weights (with and without a bias), scales 1e-8 beside 1e-2, inputs that are always zero."""
    for k in range(12):
        g = Graph(3000 + k)
        weight = g.rng.integers(-128, 128, (6, 9)).astype(np.int8)
        weight[: k % 5] = 0
        scales = np.array([1e-2, 1e-8, 1e-3, 1e-6, 1e-2, 1e-4])[g.rng.permutation(6)]
        bias = g.rng.integers(-(2**30), 2**30, 6) if k % 2 else np.zeros(6)
        kind, zero = ("uint8", 0) if k % 3 else ("int16", 0)
        y = g.gemm(g.entry(kind, 9, 0.01, zero), 0.01, weight, scales, bias)
        yield g.case(f"dead channels {k}", g.qdq(y, "int16", 0.05) if k % 4 else y)


def wide() -> Iterator[Case]:
    """600 inputs at 16 bits: accumulators beyond int32, and rows just inside it."""
    for k in range(14):
        g = Graph(4000 + k)
        kind = "int16" if k % 2 else "uint16"
        weight = g.rng.choice([-128, 127], (3, 600)).astype(np.int8)
        if k < 6:
            weight[:] = np.array([[127], [-128], [127 if k % 4 else 1]])
        zero = 0 if kind == "int16" else (0, 32768, 65535)[k % 3]
        x = g.entry(kind, 600, 2.0**-10, zero, batch=4, extreme=True)
        bias = g.rng.integers(-(2**30), 2**30, 3)
        y = g.gemm(x, 2.0**-10, weight, np.array([1e-4, 3e-4, 1e-3]), bias)
        yield g.case(
            f"600 wide {kind} {k}", g.qdq(y, ("int16", "uint8", "int8")[k % 3], (0.02, 2.0, 0.5)[k % 3]) if k < 11 else y
        )


def chains() -> Iterator[Case]:
    """Two to four layers with foreign scales, ReLU as saturation (absorbed or kept as a node)."""
    for k in range(36):
        g = Graph(5000 + k)
        sx, width = float(g.rng.uniform(0.001, 0.01)), int(g.rng.integers(1, 40))
        x = g.entry("int16", width, sx)
        for layer in range(2 + k % 3):
            n_out = int(g.rng.integers(1, 40))
            weight = g.rng.integers(-127, 128, (n_out, width)).astype(np.int8)
            scales = g.rng.uniform(1e-4, 5e-3, n_out)
            y = g.gemm(x, sx, weight, scales, g.rng.integers(-(2**18), 2**18, n_out))
            sx = float(np.float32(g.rng.uniform(0.01, 0.2)))
            hidden = ("uint8", "int8", "uint16", "int16")[(k + layer) % 4]
            zero = LIMITS[hidden][0] if k % 2 else max(LIMITS[hidden][0], 0)
            if k % 2:
                y = g.op("Relu", y)
            x, width = g.qdq(y, hidden, sx, zero), n_out
        yield g.case(f"chain {k}", x)


def adds() -> Iterator[Case]:
    for k in range(30):
        g = Graph(6000 + k)
        a_kind, b_kind, out = (list(KINDS)[int(i)] for i in g.rng.integers(0, 4, 3))
        za, zb, zo = (
            int(g.rng.integers(LIMITS[t][0], LIMITS[t][1] + 1)) if k % 3 else max(LIMITS[t][0], 0) for t in (a_kind, b_kind, out)
        )
        sa, sb = (0.5, 0.25) if k % 5 == 0 else g.rng.uniform(1e-4, 1, 2)
        a, b = g.entry(a_kind, 7, sa, za), g.entry(b_kind, 7, sb, zb)
        y = g.op("Sub" if k % 4 == 1 else "Add", a, b)
        reach = max(sa * 2 ** (8 if "8" in a_kind else 16), sb * 2 ** (8 if "8" in b_kind else 16))
        scale = reach / (LIMITS[out][1] - LIMITS[out][0]) * (0.3 if k % 2 else 1.5) if k % 5 else 1.0
        yield g.case(f"add {a_kind} {b_kind} -> {out} {k}", g.qdq(y, out, scale, zo))


def products() -> Iterator[Case]:
    for k in range(24):
        g = Graph(7000 + k)
        a_kind, b_kind, out = (list(KINDS)[int(i)] for i in g.rng.integers(0, 4, 3))
        za, zb = (
            int(g.rng.integers(LIMITS[t][0], LIMITS[t][1] + 1)) if k % 3 else max(LIMITS[t][0], 0) for t in (a_kind, b_kind)
        )
        sa, sb = (2.0**-7, 2.0**-7) if k % 4 == 0 else g.rng.uniform(1e-3, 1e-1, 2)
        a, b = g.entry(a_kind, 7, sa, za), g.entry(b_kind, 7, sb, zb)
        y = g.op("Mul", a, b)
        reach = sa * sb * 2.0 ** ((8 if "8" in a_kind else 16) + (8 if "8" in b_kind else 16))
        scale = reach / (LIMITS[out][1] - LIMITS[out][0]) * (0.3 if k % 2 else 1.0) if k % 4 else 2.0**-7
        yield g.case(f"multiply {a_kind} {b_kind} -> {out} {k}", g.qdq(y, out, scale, (0, 3, 100)[k % 3]))


def concats() -> Iterator[Case]:
    for k in range(12):
        g = Graph(8000 + k)
        a_kind, b_kind, out = (list(KINDS)[int(i)] for i in g.rng.integers(0, 4, 3))
        if k % 3 == 0:
            a_kind = b_kind = out = "int16"
        sa, sb = (0.25, 0.25) if k % 3 == 0 else g.rng.uniform(0.01, 0.2, 2)
        y = g.op("Concat", g.entry(a_kind, 3, sa), g.entry(b_kind, 4, sb), axis=1)
        yield g.case(f"concat {a_kind} {b_kind} -> {out} {k}", g.qdq(y, out, 0.25 if k % 3 == 0 else 0.3, 0 if k % 2 else 9))


def moved() -> Iterator[Case]:
    """Slices, splits, transposes and reshapes of codes, each rescaled or not, one feeding a layer."""
    for k in range(12):
        g = Graph(9000 + k)
        kind = list(KINDS)[k % 4]
        x = g.entry(kind, 8, 0.05, max(LIMITS[kind][0], 0) + 3)
        if k % 3 == 0:
            y = g.op("Slice", x, g.constant(np.array([2])), g.constant(np.array([7])), g.constant(np.array([1])))
        elif k % 3 == 1:
            y = g.op("Split", x, g.constant(np.array([5, 3])), outputs=2, axis=1)
        else:
            y = g.op("Reshape", x, g.constant(np.array([0, 2, 4])))
            y = g.op("Reshape", g.op("Transpose", y, perm=[0, 2, 1]), g.constant(np.array([0, 8])))
        width = 8 if k % 3 == 2 else 5
        if k % 2:
            y = g.gemm(y, 0.05, g.rng.integers(-128, 128, (3, width)).astype(np.int8), np.float32(0.01), None)
        yield g.case(f"moved {kind} {k}", g.qdq(y, "int8", 0.11, 4))


def squash(g: Graph, name: str, x: str) -> str:
    """Each function as exporters write it."""
    if name == "silu":
        return g.op("Mul", x, g.op("Sigmoid", x))
    if name == "clipped tanh":
        return g.op("Tanh", g.op("Clip", x, g.constant(np.float32(-2)), g.constant(np.float32(1.5))))
    if name == "clip":
        return g.op("Clip", x, g.constant(np.float32(-1.23)), g.constant(np.float32(2.34)))
    return g.op({"tanh": "Tanh", "sigmoid": "Sigmoid", "elu": "Elu", "softplus": "Softplus", "relu": "Relu"}[name], x)


def tables() -> Iterator[Case]:
    for k, name in enumerate(["tanh", "sigmoid", "silu", "elu", "softplus", "clipped tanh", "clip"] * 5):
        g = Graph(10000 + k)
        scale = (2.0**-12, 2.0**-11, 2.0**-9, 3e-4, 2.0**-13)[k // 7]
        x = g.entry("int16", 16, scale, 0, batch=12)
        unit = {"tanh": 1, "sigmoid": 1, "clipped tanh": 1}.get(name, 32768 * scale)
        out, bits = (("int16", 15), ("int8", 7), ("uint8", 8), ("int16", 15), ("int8", 7))[k // 7]
        yield g.case(f"table {name} {scale:g} -> {out}", g.qdq(squash(g, name, x), out, unit * 2.0**-bits, 0 if k % 2 else 5))


def lookups() -> Iterator[Case]:
    for k, name in enumerate(["tanh", "sigmoid", "silu", "elu", "softplus", "relu"] * 2):
        g = Graph(11000 + k)
        kind = "int8" if k < 6 else "uint8"
        x = g.entry(kind, 40, 0.05, 0 if k < 6 else 131, batch=8)
        yield g.case(f"lookup {name} {kind}", g.qdq(squash(g, name, x), "int8", 2.0**-7 if k % 6 < 2 else 0.06, k))


def entries() -> Iterator[Case]:
    """S1: normaliser, clip, true division by scales that are no powers of two, infinities, values beyond the range."""
    for k in range(12):
        g = Graph(12000 + k)
        scale = (2.0**-11, 0.0123, 0.1)[k % 3]
        halves = ((g.rng.integers(-90, 90, (40, 5)) + 0.5) * scale).astype(np.float32)  # ties, and their neighbours
        near = np.concatenate([halves, np.nextafter(halves, np.float32(9)), np.nextafter(halves, np.float32(-9))])
        values = np.concatenate([g.rng.normal(0, 3, (20, 5)), near])
        values[0, :4] = [np.inf, -np.inf, 1e38, -1e38]
        x = g.input(values)
        if k % 2:
            x = g.op(
                "Mul",
                g.op("Sub", x, g.constant(g.rng.normal(size=5).astype(np.float32))),
                g.constant(g.rng.uniform(0.1, 9, 5).astype(np.float32)),
            )
            x = g.op("Max", g.op("Min", x, g.constant(np.full(5, 10, np.float32))), g.constant(np.full(5, -10, np.float32)))
        kind = list(KINDS)[k % 4]
        yield g.case(f"entry {kind} {k}", g.qdq(x, kind, scale, (0, 11, 100)[k % 3]))


def recurrent() -> Iterator[Case]:
    """S8: one step of an LSTM and of a GRU; their states are inputs and outputs, the cell at 16 bits."""
    for k in range(6):
        g = Graph(13000 + k)
        n, hidden = int(g.rng.integers(1, 9)), int(g.rng.integers(1, 9))
        x, h = g.entry("int16", n, 2.0**-8), g.entry("int16", hidden, 2.0**-15)
        both = g.qdq(g.op("Concat", x, h, axis=1), "int16", 2.0**-8)

        def gate(name: str, source: str, g=g, n=n, hidden=hidden) -> str:
            weight = g.rng.integers(-128, 128, (hidden, n + hidden)).astype(np.int8)
            y = g.gemm(source, 2.0**-8, weight, g.rng.uniform(1e-4, 2e-3, hidden), g.rng.integers(-(2**14), 2**14, hidden))
            return g.qdq(g.op(name, g.qdq(y, "int16", 2.0**-12)), "int16", 2.0**-15)

        if k % 2:  # LSTM: c' = f c + i g, h' = o tanh(c')
            c = g.entry("int16", hidden, 2.0**-12)
            f, i, o, candidate = gate("Sigmoid", both), gate("Sigmoid", both), gate("Sigmoid", both), gate("Tanh", both)
            kept, new = g.qdq(g.op("Mul", f, c), "int16", 2.0**-12), g.qdq(g.op("Mul", i, candidate), "int16", 2.0**-12)
            cell = g.qdq(g.op("Add", kept, new), "int16", 2.0**-12)
            squashed = g.qdq(g.op("Tanh", cell), "int16", 2.0**-15)
            yield g.case(f"LSTM step {k}", g.qdq(g.op("Mul", o, squashed), "int16", 2.0**-15), cell)
        else:  # GRU: h' = n + z (h - n), with n over [x, r h]
            z, r = gate("Sigmoid", both), gate("Sigmoid", both)
            reset = g.qdq(g.op("Mul", r, h), "int16", 2.0**-15)
            candidate = gate("Tanh", g.qdq(g.op("Concat", x, reset, axis=1), "int16", 2.0**-8))
            apart = g.qdq(g.op("Sub", h, candidate), "int16", 2.0**-14)
            yield g.case(
                f"GRU step {k}", g.qdq(g.op("Add", candidate, g.qdq(g.op("Mul", z, apart), "int16", 2.0**-14)), "int16", 2.0**-15)
            )


def convolutions() -> Iterator[Case]:
    """Conv over one and two dimensions: strides, pads of zero points that are not zero, dilations, one behind another."""
    for k in range(16):
        g = Graph(14000 + k)
        kind, flat = list(KINDS)[k % 4], k % 3 == 2
        channels, space = int(g.rng.integers(1, 4)), (9,) if flat else (7, 6)
        zero = 0 if kind == "int16" else max(LIMITS[kind][0], 0) + 5
        x = g.entry(kind, channels * int(np.prod(space)), 0.03, zero, batch=3)
        x = g.op("Reshape", x, g.constant(np.array([0, channels, *space])))
        for layer in range(1 + k % 2):
            out, kernel = int(g.rng.integers(1, 20)), (3,) if flat else (2, 3)
            weight = g.rng.integers(-128, 128, (out, channels, *kernel)).astype(np.int8)
            scales = g.rng.uniform(0.002, 0.01, out).astype(np.float32)
            w = g.op("DequantizeLinear", g.constant(weight), g.constant(scales), axis=0)
            scale = 0.03 if layer == 0 else 0.07
            bias = g.constant(g.rng.integers(-(2**12), 2**12, out).astype(np.int32))
            b = g.op("DequantizeLinear", bias, g.constant((np.float32(scale) * scales).astype(np.float32)), axis=0)
            n = len(kernel)
            more = {"dilations": [2] * n} if k % 5 == 4 and layer == 0 else {}
            x = g.op("Conv", x, w, b, strides=[1 + (k + layer) % 2] * n, pads=[1] * n + [k % 2] * n, **more)
            x = g.qdq(g.op("Relu", x) if k % 2 else x, "uint8" if k % 2 else "int8", 0.07, 0 if k % 2 else 3)
            channels = out
        yield g.case(f"conv {len(space)}d {kind} {k}", x)
