"""What moves, picks, repeats or sums numbers: splits, slices, gathers, reshapes, pads, reductions, round trips."""

import numpy as np
import onnx

from random_graphs.builder import Builder, number_of


def split(b: Builder, x: str, count: int) -> list[str]:
    """Along the last axis, sizes given or (from opset 18 on) the last one smaller."""
    shape, width = b.shapes[x], int(b.shapes[x][-1] or 0)
    axis = b.one(len(shape) - 1, -1) if b.opset >= 11 else len(shape) - 1
    cuts = np.sort(b.rng.choice(np.arange(1, width), count - 1, replace=False))
    sizes = np.diff([0, *cuts, width])
    attributes: dict = {"axis": axis}
    inputs = [x]
    chunk = -(-width // count)
    if b.opset >= 18 and b.chance(0.5) and chunk * (count - 1) < width:
        sizes, attributes["num_outputs"] = np.array([chunk] * (count - 1) + [width - chunk * (count - 1)]), count
    elif width % count == 0 and b.opset < 18 and b.chance(0.4):
        sizes = np.full(count, width // count)
    elif b.opset < 13:
        attributes["split"] = sizes.tolist()
    else:
        inputs.append(b.constant(sizes.astype(np.int64), "split"))
    return b.node("Split", *inputs, shapes=[(*shape[:-1], int(s)) for s in sizes], **attributes)


def slice_columns(b: Builder, x: str) -> str:
    """Part of the last axis: a range, the end open, from behind, reversed, or every second."""
    shape, width = b.shapes[x], int(b.shapes[x][-1] or 0)
    if width < 3:
        return x
    axis = b.one(len(shape) - 1, -1) if b.opset >= 10 else len(shape) - 1
    start, end, step = b.one((0, width - 1, 1), (1, 2**63 - 1, 1), (1, width, 1), (-2, 2**31 - 1, 1), (0, -1, 1),
                             (0, width, 2), (-1, -(2**63) + 1, -1))  # fmt: skip
    if b.opset < 10 and step != 1:
        start, end, step = 1, width, 1
    kept = len(range(*slice(start, end, step).indices(width)))
    out = [(*shape[:-1], kept)]
    if b.opset < 10:
        return b.node("Slice", x, starts=[start], ends=[end], axes=[axis], shapes=out)
    kind = np.int32 if abs(end) < 2**31 and b.chance(0.15) else np.int64
    ends = [b.constant(np.array([v], kind), "ends") for v in (start, end, axis)]
    steps = [b.constant(np.array([step], kind), "steps")] if step != 1 or b.chance(0.3) else []
    return b.node("Slice", x, *ends, *steps, shapes=out)


def gather_columns(b: Builder, x: str) -> str:
    shape, width = b.shapes[x], int(b.shapes[x][-1] or 0)
    axis = len(shape) - 1 if b.opset < 11 else b.one(-1, len(shape) - 1)
    low = 0 if b.opset < 11 else -width
    if b.chance(0.2):
        index = b.constant(np.array(b.below(low, width - 1), np.int64), "index")
        one = b.node("Gather", x, index, axis=axis, shapes=[shape[:-1]])
        return b.axes("Unsqueeze", one, [len(shape) - 1], (*shape[:-1], 1), 13)
    count = b.below(1, width)
    index = b.rng.integers(low, width, count).astype(b.one(np.int64, np.int64, np.int32))
    return b.node("Gather", x, b.constant(index, "index"), axis=axis, shapes=[(*shape[:-1], count)])


def reshape_to(b: Builder, x: str, rest: tuple[int, ...]) -> str:
    """The batch first, then rest: written with -1, 0, or from the input's own Shape."""
    shape = (None, *rest)
    attributes = {"allowzero": 0} if b.opset >= 14 and b.chance(0.3) else {}
    way = b.one("minus", "minus", "zero", "shape")
    if b.habits.batch == 1 and b.chance(0.7):
        target = b.constant(np.array([1, *rest], np.int64), "shape")
    elif way == "minus":
        target = b.constant(np.array([-1, *rest], np.int64), "shape")
    elif way == "zero":
        k = b.below(0, len(rest) - 1)
        target = b.constant(np.array([0, *(-1 if i == k else d for i, d in enumerate(rest))], np.int64), "shape")
    else:
        target = shape_of_batch(b, x, rest)
    return b.node("Reshape", x, target, shapes=[shape], **attributes)


def shape_of_batch(b: Builder, x: str, rest: tuple[int, ...]) -> str:
    """Shape, Gather (or Slice), Unsqueeze, Concat: [batch, *rest] at run time."""
    rank = len(b.shapes[x])
    if b.opset >= 15 and b.chance(0.4):
        first = b.node("Shape", x, shapes=[(1,)], dtypes=[np.int64], start=b.one(None, 0), end=1)
    else:
        whole = b.node("Shape", x, shapes=[(rank,)], dtypes=[np.int64])
        if b.chance(0.7):
            index = b.one(np.array(0, np.int64), np.array([0], np.int64))
            first = b.node("Gather", whole, b.constant(index, "index"), axis=b.one(None, 0), shapes=[index.shape])
            if not index.shape:
                first = b.axes("Unsqueeze", first, [0], (1,), 13)
        elif b.opset < 10:
            first = b.node("Slice", whole, starts=[0], ends=[1], axes=[0], shapes=[(1,)])
        else:
            ends = [b.constant(np.array([v], np.int64), "ends") for v in (0, 1)]
            first = b.node("Slice", whole, *ends, shapes=[(1,)])
    return b.node("Concat", first, b.constant(np.array(rest, np.int64), "rest"), axis=0, shapes=[(1 + len(rest),)])


def round_trip(b: Builder, x: str) -> str:
    """There and back: what leaves the numbers as they are, or nearly."""
    shape = b.shapes[x]
    rest = tuple(int(d or 0) for d in shape[1:])
    way = b.one("identity", "dropout", "cast", "unsqueeze", "transpose", "reshape", "flatten", "double negation")
    if way == "identity":
        return b.node("Identity", x)
    if way == "dropout":
        return dropout(b, x)
    if way == "cast":
        wide = np.float32 if b.habits.dtype == np.float64 else np.float64
        there = b.node("Cast", x, to=number_of(wide), dtypes=[wide])
        return b.node("Cast", there, to=number_of(b.habits.dtype), dtypes=[b.habits.dtype])
    if way == "unsqueeze":
        axis = b.below(1, len(shape))
        wide_shape = (*shape[:axis], 1, *shape[axis:])
        there = b.axes("Unsqueeze", x, [axis if b.opset < 11 or b.chance(0.5) else axis - len(wide_shape)], wide_shape, 13)
        return b.axes("Squeeze", there, [axis], shape, 13)
    if way == "transpose" and len(shape) >= 2:
        perm = [0, *(1 + int(i) for i in b.rng.permutation(len(shape) - 1))]
        if len(shape) == 2 and b.chance(0.3):
            perm = [1, 0]
        there = b.node("Transpose", x, perm=perm, shapes=[tuple(shape[p] for p in perm)])
        return b.node("Transpose", there, perm=[int(i) for i in np.argsort(perm)], shapes=[shape])
    if way == "flatten" and len(rest) == 1:
        return b.node("Flatten", x, axis=b.one(None, 1))
    if way == "reshape":
        total = int(np.prod(rest))
        factor = b.one(*[d for d in range(1, total + 1) if total % d == 0])
        return reshape_to(b, reshape_to(b, x, (factor, total // factor)), rest)
    return b.node("Neg", b.node("Neg", x))


def dropout(b: Builder, x: str) -> str:
    if b.opset < 12:
        return b.node("Dropout", x, ratio=b.one(None, 0.3))
    inputs = [x]
    if b.chance(0.5):
        inputs.append(b.constant(np.float32(0.3), "ratio") if b.chance(0.7) else "")
        if b.chance(0.5):
            inputs.append(b.constant(np.array(False), "training"))
        elif not inputs[-1]:
            inputs.pop()
    return b.node("Dropout", *inputs)


def reduce_groups(b: Builder, x: str) -> str:
    """[batch, n] seen as [batch, k, n / k], one axis of which is reduced."""
    width = int(b.shapes[x][-1] or 0)
    factors = [d for d in range(2, width) if width % d == 0]
    if len(b.shapes[x]) != 2 or not factors:
        return reduce_last(b, x)
    k = b.one(*factors)
    y = reshape_to(b, x, (k, width // k))
    axis = b.one(1, 2)
    keep = b.chance(0.4)
    kept = [1 if i == axis else d for i, d in enumerate(b.shapes[y]) if keep or i != axis]
    op = b.one("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceMin", "ReduceMean")
    y = b.axes(op, y, [axis - 3 if b.opset >= 11 and b.chance(0.3) else axis], tuple(kept), 13 if op == "ReduceSum" else 18,
               keepdims=b.one(None, 1) if keep else 0)  # fmt: skip
    return reshape_to(b, y, (int(np.prod([d for d in kept if d is not None])),)) if keep else y


def reduce_last(b: Builder, x: str) -> str:
    """One number of each row beside the row itself: a value subtracted from or put beside what it is of."""
    op = b.one("ReduceMean", "ReduceSum", "ReduceMax", "ReduceLogSumExp")
    one = (*b.shapes[x][:-1], 1)
    y = b.axes(op, x, [-1] if b.opset >= 11 else [len(one) - 1], one, 13 if op == "ReduceSum" else 18, keepdims=1)
    return b.node("Sub", x, y, shapes=[b.shapes[x]])


def expanded(b: Builder, x: str) -> str:
    """A learned row, expanded to the batch, beside x: log_std, a token, a time embedding."""
    if b.opset < 8 or len(b.shapes[x]) != 2:
        return round_trip(b, x)
    width = b.below(1, 4)
    row = b.constant(b.random(1, width), "row")
    if b.habits.batch == 1:
        wide = b.node("Expand", row, b.constant(np.array([1, width], np.int64), "shape"), shapes=[(None, width)])
    elif b.opset >= 9 and b.chance(0.3):
        target = shape_of_batch(b, x, (width,))
        value = onnx.numpy_helper.from_array(np.array([0.5], b.habits.dtype))
        wide = b.node("ConstantOfShape", target, value=value, shapes=[(None, width)], dtypes=[b.habits.dtype])
    elif b.opset >= 9 and b.chance(0.4):
        target = shape_of_batch(b, x, (-1,))  # torch: where(shape == -1, 1, shape)
        one = onnx.numpy_helper.from_array(np.array([1], np.int64))
        ones = b.node("ConstantOfShape", b.constant(np.array([2], np.int64), "rank"), value=one, shapes=[(2,)])
        minus = b.node("Mul", ones, b.constant(np.array(-1, np.int64), "minus"))
        same = b.node("Equal", target, minus, dtypes=[bool])
        wide = b.node("Expand", row, b.node("Where", same, ones, target, dtypes=[np.int64]), shapes=[(None, width)])
    else:
        wide = b.node("Expand", row, shape_of_batch(b, x, (b.one(1, width),)), shapes=[(None, width)])
    shape = (None, width + int(b.shapes[x][-1] or 0))
    return b.node(
        "Concat", *((x, wide) if b.chance(0.7) else (wide, x)), axis=b.one(1, -1) if b.opset >= 11 else 1, shapes=[shape]
    )


def pad_columns(b: Builder, x: str) -> str:
    shape = b.shapes[x]
    before, after = b.below(0, 2), b.below(0, 2)
    return pad(b, x, [0] * (len(shape) - 1) + [before], [0] * (len(shape) - 1) + [after])


def pad(b: Builder, x: str, before: list[int], after: list[int]) -> str:
    """Zeros, a number, the edge or a reflection."""
    shape = tuple(d if d is None else d + p + q for d, p, q in zip(b.shapes[x], before, after, strict=True))
    mode = b.one(None, None, "constant", "edge", "reflect")
    fits = all(d is None or max(p, q) < d for d, p, q in zip(b.shapes[x], before, after, strict=True))
    mode = "edge" if mode == "reflect" and not fits else mode  # nothing is reflected beyond the other end
    value = b.one(None, 0.0, 0.5) if mode in (None, "constant") else None
    if b.opset < 11:
        return b.node("Pad", x, pads=before + after, mode=mode, value=value, shapes=[shape])
    inputs = [x, b.constant(np.array(before + after, np.int64), "pads")]
    if value is not None:
        inputs.append(b.constant(b.number(value), "fill"))
    return b.node("Pad", *inputs, mode=mode, shapes=[shape])
