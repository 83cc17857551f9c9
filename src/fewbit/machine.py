"""Measure this machine: read bandwidth, matrix-product operations a second, caches, and the memory wall.

Bandwidth is a maximum over an array (one stream of reads, SIMD in NumPy). The products are ONNX Runtime's: MatMul in float32,
MatMulInteger in int8 (uint8 inputs, int8 weights, int32 sums), whose weights are packed once and read at every call.
"""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from fewbit.devices import Device
from fewbit.errors import FewbitError

KERNELS = {"float32": "ONNX Runtime MatMul, 1 thread", "int8": "ONNX Runtime MatMulInteger (uint8 x int8 -> int32), 1 thread"}
LARGEST = 256 << 20  # bytes of the wall's largest float32 matrix
STREAM = 256 << 20  # bytes read for DRAM's bandwidth: beyond any laptop's cache


@dataclass(frozen=True)
class Point:
    """One matrix-vector product, width x width: bytes of its weights, where they lie, and seconds, predicted and measured."""

    width: int
    format: str
    bytes: int
    level: str
    predicted: float
    measured: float


def here() -> Device:
    """This machine as a record of the table, all its cores at work."""
    memory = memory_bytes()
    stream = int(min(STREAM, memory / 8))
    ops = {fmt: 2 * 256 * 1024**2 / best(product(fmt, 1024, 256, 0)) for fmt in KERNELS}
    source = "measured now: NumPy maximum over an array, ONNX Runtime matrix products, all cores"
    return Device("here", memory, read_bandwidth(stream, cores()), source, ops, max(caches().values(), default=0))


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> float:
    """Physical memory, or a container's share of it."""
    try:
        found = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        raise FewbitError("--device here: this system does not say its memory size; give bandwidth=…,memory=…") from None
    limit = _text(Path("/sys/fs/cgroup/memory.max"))
    return min(found, float(limit)) if limit.isdigit() else found


def caches() -> dict[str, int]:
    """{"L1": bytes, …} of the first core's data caches; empty where the system does not say (only Linux does)."""
    found = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        size, unit = _text(folder / "size"), {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
        if _text(folder / "type") in ("Data", "Unified") and size[:-1].isdigit() and size[-1] in unit:
            found[f"L{_text(folder / 'level')}"] = int(size[:-1]) * unit[size[-1]]
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def best(call: Callable[[], object], seconds: float = 0.15) -> float:
    """Seconds of the fastest call: what disturbs a measurement only ever makes it slower."""
    call()
    fastest, stop = float("inf"), time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        call()
        end = time.perf_counter()
        fastest = min(fastest, end - start)
        if end > stop:
            return max(fastest, 1e-9)


def read_bandwidth(size: int, threads: int = 1) -> float:
    """Bytes/s of reading `size` bytes again and again, each thread its own share of them."""
    repeats = max(1, (16 << 20) // size)  # so that the call itself, a microsecond, does not count
    shares = [
        np.broadcast_to(a, (repeats, a.size)) for a in (np.ones(max(size // threads // 4, 1), np.float32) for _ in range(threads))
    ]
    read = sum(a.nbytes for a in shares)
    if threads == 1:
        return read / best(lambda: np.maximum.reduce(shares[0], axis=1))
    with ThreadPoolExecutor(threads) as pool:  # NumPy's reductions release the lock
        return read / best(lambda: list(pool.map(lambda a: np.maximum.reduce(a, axis=1), shares)))


def product(fmt: str, width: int, rows: int = 1, threads: int = 1) -> Callable[[], object]:
    """A call of [rows, width] @ [width, width]; threads 0: one a core."""
    kinds = {
        "float32": ("MatMul", np.float32, np.float32, TensorProto.FLOAT, TensorProto.FLOAT),
        "int8": ("MatMulInteger", np.uint8, np.int8, TensorProto.UINT8, TensorProto.INT32),
    }
    op, x_type, w_type, x_kind, y_kind = kinds[fmt]
    shape, weight = [rows, width], np.ones((width, width), w_type)
    x, y = (helper.make_tensor_value_info(n, k, shape) for n, k in (("x", x_kind), ("y", y_kind)))
    nodes = [helper.make_node(op, ["x", "w"], ["y"])]
    graph = helper.make_graph(nodes, "product", [x], [y], [numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = {"x": np.ones(shape, x_type)}
    return lambda: session.run(None, feeds)


def wall(largest: int = LARGEST) -> list[Point]:
    """Matrix-vector products whose float32 weights grow from 4 KB fourfold up to `largest` bytes, and the same in int8.

    Predicted: an empty call, and then the longer of reading the weights (at the bandwidth of an array of that size, one
    thread) and computing (at the rate of a large product). All three are measured apart from the products they predict.
    """
    levels, largest = caches(), int(min(largest, memory_bytes() / 8))
    widths = [w for w in (32 << k for k in range(12)) if 4 * w * w <= largest]
    bandwidth = {size: read_bandwidth(size) for size in sorted({w * w * e for w in widths for e in (4, 1)})}
    points = []
    for fmt, element in (("float32", 4), ("int8", 1)):
        empty, ops = best(product(fmt, 8)), 2 * 256 * 512**2 / best(product(fmt, 512, 256))
        for width in widths:
            size = width * width * element
            level = next((name for name, held in levels.items() if size <= held), "DRAM" if levels else "?")
            predicted = empty + max(size / bandwidth[size], 2 * width * width / ops)
            points.append(Point(width, fmt, size, level, predicted, best(product(fmt, width))))
    return points
