"""docs/semantics.md once more, in Python integers and Fractions, straight from the ONNX graph: what executors must give.

Shares no code with src/: object arrays of Python ints, Fraction for every rounding. Slow; graphs of the corpus are small.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

RANGE = {"INT8": (-128, 127), "UINT8": (0, 255), "INT16": (-32768, 32767), "UINT16": (0, 65535)}
MOVES = {"Reshape", "Slice", "Split", "Transpose", "Flatten"}


@dataclass
class Codes:
    q: np.ndarray  # of Python ints
    scale: float
    zero: int
    kind: str


@dataclass
class Sum:
    """A Gemm's accumulator, the scale of each column, and the largest |acc| that its codes allow (S2)."""

    acc: np.ndarray
    scales: list[float]
    bound: int


@dataclass
class Pending:
    """An operator of codes that the next QuantizeLinear completes."""

    op: str
    inputs: list[Any]
    node: Any


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Codes of every QuantizeLinear (int64 arrays) and every graph output (float32), by name."""
    constants = {t.name: t for t in model.graph.initializer}
    values: dict[str, Any] = {k: np.asarray(v, np.float32) for k, v in feeds.items()}
    found = {}

    def get(name: str) -> Any:
        return numpy_helper.to_array(constants[name]) if name in constants else values[name]

    for node in model.graph.node:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "DequantizeLinear":
            scale = get(node.input[1])
            if node.input[0] in constants:
                zero = int(get(node.input[2]).reshape(-1)[0]) if len(node.input) > 2 else 0
                q = get(node.input[0])
                out: Any = (ints(q), [float(s) for s in scale.reshape(-1)], zero)
                if scale.size == 1 and constants[node.input[0]].data_type != onnx.TensorProto.INT32:
                    out = Codes(ints(q), float(scale.reshape(-1)[0]), zero, kind_of(constants[node.input[0]].data_type))
            else:
                out = Codes(values[node.input[0]].q, float(scale), int(get(node.input[2])), values[node.input[0]].kind)
        elif node.op_type == "QuantizeLinear":
            zero = constants[node.input[2]]
            out = quantize(get(node.input[0]), float(get(node.input[1])), int(get(node.input[2])), kind_of(zero.data_type))
            found[node.output[0]] = out.q.astype(np.int64)
        elif node.op_type == "Gemm":
            out = gemm(*(get(i) for i in node.input))
        elif node.op_type == "Conv":
            out = convolve(*(get(i) for i in node.input), attributes)
        elif node.op_type in MOVES and isinstance(get(node.input[0]), Codes):
            x = get(node.input[0])
            moved = move(node.op_type, x.q, [get(i) for i in node.input[1:]], attributes, len(node.output))
            for name, q in zip(node.output, moved, strict=True):
                values[name] = Codes(q, x.scale, x.zero, x.kind)
            continue
        else:
            inputs = [get(i) if i else None for i in node.input]
            if all(i is None or isinstance(i, np.ndarray) for i in inputs):
                out = float_op(node.op_type, inputs)
            else:
                out = Pending(node.op_type, inputs, attributes)
        values[node.output[0]] = out
    for output in model.graph.output:
        found[output.name] = real(values[output.name])
    return found


def kind_of(data_type: int) -> str:
    return onnx.TensorProto.DataType.Name(data_type).replace("UINT4", "UINT8").replace("INT4", "INT8")


def ints(a: np.ndarray) -> np.ndarray:
    return np.vectorize(int, otypes=[object])(a.astype(np.int64)) if a.size else a.astype(object)


def half_even(f: Fraction) -> int:
    floor, rest = f.numerator // f.denominator, f - f.numerator // f.denominator
    return floor + (rest > Fraction(1, 2) or (rest == Fraction(1, 2) and floor % 2))


def clamp(q: int, kind: str) -> int:
    return max(RANGE[kind][0], min(RANGE[kind][1], q))


def each(function: Any, *arrays: Any) -> np.ndarray:
    return np.vectorize(function, otypes=[object])(*arrays)


def multiplier(ratio: float, bound: int, most: int = 22) -> tuple[int, int]:
    """S3, from the exact value of the float64 ratio."""
    r = Fraction(ratio)
    e = 0
    while Fraction(2) ** e <= r:
        e += 1
    while Fraction(2) ** (e - 1) > r:
        e -= 1
    bits = bound.bit_length()
    m_bits = min(most, 22 if bits <= 31 else 53 - bits)
    m = half_even(r / Fraction(2) ** e * 2**m_bits)
    if m == 2**m_bits:
        m, e = m // 2, e + 1
    s = m_bits - e
    return (0, 1) if s > 62 else (m, s)


def requantized(acc: int, m: int, s: int, zero: int, kind: str) -> int:
    return clamp(half_even(Fraction(acc * m, 2**s)) + zero, kind)


def gemm(x: Codes, w: Any, b: Any = None) -> Sum:
    wq, scales, zero = (w.q, [w.scale], w.zero) if isinstance(w, Codes) else w
    centred = wq - zero
    bias = b[0] if b is not None else np.zeros(len(wq), object)
    acc = (x.q - x.zero).dot(centred.T) + bias
    low, high = RANGE[x.kind]
    reach = max(high - x.zero, x.zero - low)
    bound = max(int(sum(abs(v) for v in row)) * reach + abs(int(c)) for row, c in zip(centred, bias, strict=True))
    scales = scales * len(wq) if len(scales) == 1 else scales
    return Sum(acc, [x.scale * s for s in scales], bound)


def convolve(x: Codes, w: Any, b: Any, attributes: dict[str, Any]) -> Sum:
    """Position by position: each is a gemm of one patch, -1 of the padding a real zero."""
    wq, scales, zero = w
    n, kernel = wq.ndim - 2, wq.shape[2:]
    dilations, strides, pads = attributes.get("dilations", [1] * n), attributes["strides"], attributes["pads"]
    space = x.q.shape[2:]
    sizes = [(space[d] + pads[d] + pads[n + d] - dilations[d] * (kernel[d] - 1) - 1) // strides[d] + 1 for d in range(n)]
    positions, sums = [], None
    for position in np.ndindex(*sizes):
        patch = np.full((len(x.q), wq.shape[1], *kernel), x.zero, object)
        for tap in np.ndindex(*kernel):
            at = [position[d] * strides[d] - pads[d] + tap[d] * dilations[d] for d in range(n)]
            if all(0 <= a < s for a, s in zip(at, space, strict=True)):
                patch[(slice(None), slice(None), *tap)] = x.q[(slice(None), slice(None), *at)]
        sums = gemm(Codes(patch.reshape(len(patch), -1), x.scale, x.zero, x.kind), (wq.reshape(len(wq), -1), scales, zero), b)
        positions.append(sums.acc)
    assert sums is not None
    acc = np.stack(positions, axis=-1).reshape(len(x.q), len(wq), *sizes)
    return Sum(acc, sums.scales, sums.bound)


def quantize(value: Any, scale: float, zero: int, kind: str) -> Codes:
    if isinstance(value, Pending) and value.op == "Relu" and zero == RANGE[kind][0]:
        return quantize(value.inputs[0], scale, zero, kind)
    if isinstance(value, np.ndarray):
        with np.errstate(over="ignore"):
            divided = np.asarray(value, np.float32) / np.float32(scale)

        def entry(v: float) -> int:
            if math.isinf(v):
                return RANGE[kind][v > 0]
            return clamp(half_even(Fraction(v)) + zero, kind)

        return Codes(each(entry, divided.astype(np.float64)), scale, zero, kind)
    if isinstance(value, Sum):
        pairs = [multiplier(r / scale, value.bound) for r in value.scales]
        columns = [each(lambda a, p=p: requantized(a, *p, zero, kind), value.acc[:, k]) for k, p in enumerate(pairs)]
        return Codes(np.stack(columns, axis=1), scale, zero, kind)
    if isinstance(value, Codes):
        if (value.scale, value.zero, value.kind) == (scale, zero, kind):
            return value
        m, s = multiplier(value.scale / scale, 1 << 17)
        return Codes(each(lambda q: requantized(q - value.zero, m, s, zero, kind), value.q), scale, zero, kind)
    of_codes = all(isinstance(i, Codes) for i in value.inputs)  # SiLU's Mul is not: one of its factors is pending too
    return (OPERATORS.get(value.op, unary) if of_codes else unary)(value, scale, zero, kind)


def add(p: Pending, scale: float, zero: int, kind: str) -> Codes:
    a, b = p.inputs
    ra, rb = a.scale / scale, b.scale / scale
    s = multiplier(max(ra, rb), 1 << 17)[1]
    ma, mb = half_even(Fraction(ra) * 2**s), half_even(Fraction(rb) * 2**s) * (-1 if p.op == "Sub" else 1)
    q = each(lambda x, y: requantized((x - a.zero) * ma + (y - b.zero) * mb, 1, s, zero, kind), a.q, b.q)
    return Codes(q, scale, zero, kind)


def mul(p: Pending, scale: float, zero: int, kind: str) -> Codes:
    a, b = p.inputs
    m, s = multiplier(a.scale * b.scale / scale, 1 << 32, 19)
    q = each(lambda x, y: requantized((x - a.zero) * (y - b.zero), m, s, zero, kind), a.q, b.q)
    return Codes(q, scale, zero, kind)


def concat(p: Pending, scale: float, zero: int, kind: str) -> Codes:
    parts = [quantize(i, scale, zero, kind).q for i in p.inputs]
    return Codes(np.concatenate(parts, p.node["axis"]), scale, zero, kind)


OPERATORS = {"Add": add, "Sub": add, "Mul": mul, "Concat": concat}


def unary(p: Pending, scale: float, zero: int, kind: str) -> Codes:
    """S6: 8-bit codes exactly, 16-bit codes through segments."""
    root = p
    while isinstance(root, Pending):
        root = next(i for i in root.inputs if not isinstance(i, np.ndarray))
    low, high = RANGE[root.kind]
    if high - low < 256:

        def exact(q: int) -> int:
            return clamp(half_even(Fraction(function(p, (q - root.zero) * root.scale) / scale)) + zero, kind)

        return Codes(each(exact, root.q), scale, zero, kind)
    values = [function(p, q * root.scale) for q in range(-32768, 32768)]
    peak = max(abs(v) for v in values)
    unit = 2.0**-15 if 0.5 < peak <= 1 else float(np.float32(peak / 32767 if peak else 1))
    values = [v / unit for v in values]
    clipped = [max(-32768.0, min(32767.0, v)) for v in values]
    s = segments(values, 32, (50, 422, 1024, 1626, 1998))
    if s is None or max(abs(s(q) - clipped[q + 32768]) for q in range(-32768, 32768)) > 2.5:
        s = segments(clipped, 2048, (5, 27))
        assert s is not None
    m, shift = multiplier(unit / scale, 1 << 15)
    return Codes(each(lambda q: requantized(s(q), m, shift, zero, kind), root.q), scale, zero, kind)


def segments(values: list[float], count: int, nodes: tuple[int, ...]) -> Any:
    """S6: the integer function of a code, through Lagrange's polynomials in Fractions; None where 16 bits do not do."""
    size, degree = 65536 // count, len(nodes) - 1
    t = [Fraction(2 * j, size) - 1 for j in nodes]
    powers = []  # of each node's Lagrange polynomial, lowest first
    for k in range(degree + 1):
        p = [Fraction(1)]
        for j in range(degree + 1):
            if j != k:
                shifted, scaled = [Fraction(0), *p], [-t[j] * a for a in p] + [Fraction(0)]
                p = [(a + b) / (t[k] - t[j]) for a, b in zip(shifted, scaled, strict=True)]
        powers.append(p)
    exact = []
    for i in range(count):
        v = [Fraction(values[i * size + j]) for j in nodes]
        exact.append([sum(v[k] * powers[k][d] for k in range(degree + 1)) for d in range(degree + 1)])
    least = [[], [0], [Fraction(1, 2), 0], [0, Fraction(3, 4), 0], [Fraction(-1, 8), 0, 1, 0]]
    for guard in range(count.bit_length() - 1, -1, -1):
        c = [rounded(row, guard, least) for row in exact]
        if all(abs(a) <= 32767 for row in c for a in row[1:]) and (s := horner(c, guard, count)):
            return s
    return None


def rounded(row: list[Fraction], guard: int, least: list[list[Any]]) -> list[int]:
    c = [row[0], *(a * 2**guard for a in row[1:])]
    for k in range(len(c) - 1, 0, -1):
        whole = half_even(Fraction(half_even(c[k] * 2**20), 2**20))
        for j, part in enumerate(least[k]):
            c[j] += (c[k] - whole) * part / (1 if j else 2**guard)
        c[k] = whole
    c[0] = clamp(half_even(Fraction(half_even(c[0] * 2**20), 2**20)), "INT16")
    return c


def horner(c: list[list[int]], guard: int, count: int) -> Any:
    """The function if no intermediate leaves 16 bits, else None."""
    bits = count.bit_length() - 1
    made = {}
    for q in range(-32768, 32768):
        u = q + 32768
        row, f = c[u >> (16 - bits)], ((u << bits) % 65536) - 32768
        h = row[-1]
        for a in row[-2:0:-1]:
            h = a + ((h * f + 16384) >> 15)
            if abs(h) > 32767:
                return None
        made[q] = clamp(row[0] + ((h * (f >> guard) + 16384) >> 15), "INT16")
    return made.__getitem__


def function(p: Any, x: float) -> float:
    """The float64 value of a chain of operators at x."""
    if isinstance(p, Codes):
        return x
    if isinstance(p, np.ndarray):
        return float(p)
    a = [function(i, x) for i in p.inputs if i is not None]
    match p.op:
        case "Tanh":
            return float(np.tanh(a[0]))
        case "Sigmoid":
            return float(1 / (1 + np.exp(-a[0])))
        case "Relu":
            return max(a[0], 0.0)
        case "Elu":
            return a[0] if a[0] > 0 else float(np.expm1(a[0]))
        case "Softplus":
            return float(np.logaddexp(0.0, a[0]))
        case "Mul":
            return a[0] * a[1]
        case "Clip":
            return min(max(a[0], a[1]), a[2])
    raise NotImplementedError(p.op)


def float_op(op: str, i: list[Any]) -> np.ndarray:
    """Entry: one IEEE float32 operation each (S1)."""
    with np.errstate(over="ignore"):
        return {"Sub": np.subtract, "Mul": np.multiply, "Min": np.minimum, "Max": np.maximum, "Add": np.add}[op](i[0], i[1])


def move(op: str, q: np.ndarray, rest: list[Any], attributes: dict[str, Any], outputs: int) -> list[np.ndarray]:
    match op:
        case "Reshape":
            return [q.reshape([q.shape[k] if d == 0 else int(d) for k, d in enumerate(rest[0])])]
        case "Flatten":
            return [q.reshape(len(q), -1)]
        case "Transpose":
            return [q.transpose(attributes["perm"])]
        case "Slice":
            index = [slice(None)] * q.ndim
            for start, end, axis in zip(*rest[:3], strict=True):
                index[int(axis)] = slice(int(start), int(end))
            return [q[tuple(index)]]
        case _:
            edges = np.cumsum(rest[0])[:-1] if rest else outputs
            return np.split(q, edges, attributes["axis"])


def real(value: Any) -> np.ndarray:
    """S7: float32(acc) * float32(scale), or (q - zero) * scale; one float32 multiplication."""
    if isinstance(value, Sum):
        return value.acc.astype(np.float32) * np.array(value.scales).astype(np.float32)
    if isinstance(value, Codes):
        return (value.q - value.zero).astype(np.float32) * np.float32(value.scale)
    return value
