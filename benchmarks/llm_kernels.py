"""The grouped matrix-vector products against the memory's own speed, llama.cpp and torch: all in turns in one process.

    python benchmarks/llm_kernels.py [--ggml NAME=LIBRARY[,LIBRARY…]]… > benchmarks/results/llm_kernels.md

Each product has so many copies of its weight that they come from memory and not from a cache. Every call is timed by itself:
the median call, and the least disturbed one. Calls start in Python: a torch module, or a graph of one product in llama.cpp.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from ggml_peer import Ggml

from fewbit import _native, machine
from fewbit.llm import packed
from fewbit.llm.linear import Memory, QuantLinear, make_panels

SHAPES = [(576, 1536), (2048, 2048), (4096, 11008)]
KINDS = {"int4": (4, 64, False), "int4 symmetric/32": (4, 32, True), "int8": (8, 64, False), "int3": (3, 64, False)}
WORKING_SET = 160 << 20  # bytes of all copies of one weight, at least two copies
PIECE, TURNS = 8 << 20, 9


def quantized(weight: np.ndarray, bits: int, size: int, symmetric: bool) -> packed.PackedWeight:
    """Round to nearest: the speed does not depend on the codes."""
    groups, top = weight.reshape(len(weight), -1, size), (1 << bits) - 1
    most = np.abs(groups).max(2)
    scale = packed.stored_scale(2 * most / top)
    middle = 1 << (bits - 1)
    codes = np.clip(np.rint(groups / scale[:, :, None]) + middle, 0, top).astype(np.uint8).reshape(weight.shape)
    return packed.pack(codes, scale, None if symmetric else np.full(scale.shape, middle), bits, size)


def ours(weight: np.ndarray, kind: tuple[int, int, bool], x: torch.Tensor, threads: int):
    """(a call for each copy, bytes of one, result)."""
    panels, what = make_panels(quantized(weight, *kind), None)
    memory = Memory()
    layers = [
        QuantLinear(memory.take(panels.numel()).copy_(panels), what, threads=threads) for _ in range(copies(panels.numel()))
    ]
    return [lambda f=layer: f(x) for layer in layers], panels.numel(), layers[0](x).numpy()[0]


def copies(size: int) -> int:
    return max(2, -(-WORKING_SET // size))


def in_torch(weight: np.ndarray, x: torch.Tensor) -> list[Callable[[], object]]:
    weights = [torch.from_numpy(weight).clone() for _ in range(copies(weight.nbytes))]
    return [lambda w=w: torch.nn.functional.linear(x, w) for w in weights]


def reading(threads: int) -> list[Callable[[], object]]:
    """Reads of PIECE bytes a thread, each of other memory, as fewbit.machine reads to measure the bandwidth."""
    pieces = [np.ones(PIECE // 4, np.float32) for _ in range(WORKING_SET // PIECE)]
    if threads == 1:
        return [lambda p=p: np.maximum.reduce(p) for p in pieces]
    pool = ThreadPoolExecutor(threads)
    sets = [pieces[k : k + threads] for k in range(0, len(pieces) - threads + 1, threads)]
    return [lambda s=s: list(pool.map(np.maximum.reduce, s)) for s in sets]


def in_turns(calls: dict[str, list[Callable[[], object]]]) -> dict[str, tuple[float, float]]:
    """(median, least) seconds of one call; each copy is called once a turn, so none lies in a cache."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(TURNS + 1):
        for name, each in calls.items():
            for call in each:
                start = time.perf_counter()
                call()
                seconds[name] += [time.perf_counter() - start] if turn else []
    return {name: (statistics.median(s), min(s)) for name, s in seconds.items()}


def measure(shape: tuple[int, int], threads: int, peers: dict[str, Ggml]) -> list[str]:
    torch.set_num_threads(threads)
    rng = np.random.default_rng(0)
    weight, x = rng.normal(size=shape).astype(np.float32), rng.normal(size=(1, shape[1])).astype(np.float32)
    exact = weight @ x[0]
    calls, sizes, results = {"read": reading(threads)}, {"read": PIECE * threads}, {}
    for name, kind in KINDS.items():
        calls[name], sizes[name], results[name] = ours(weight, kind, torch.from_numpy(x), threads)
    for peer, ggml in peers.items():
        for form, repacked in [("Q4_0", False), ("Q4_0", True), ("Q4_1", False), ("Q8_0", False)]:
            size = {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}[form] * weight.size // 32
            name = f"{peer} {form}{' repacked' if repacked else ''}"
            made = ggml.products(weight, form, copies(size), x, repacked, threads)
            if made is not None:
                calls[name], sizes[name], results[name] = made[0], size, made[1]()
    calls["torch float32"], sizes["torch float32"] = in_torch(weight, torch.from_numpy(x)), weight.nbytes
    seconds, lines = in_turns(calls), []
    most = [sizes["read"] / s for s in seconds["read"]]
    for name in sizes:
        cells = [f"{shape[0]}x{shape[1]}", str(threads), name]
        for one, limit in zip(seconds[name], most, strict=True):
            cells += [f"{one * 1e6:.1f}", f"{sizes[name] / one / 1e9:.1f} ({sizes[name] / one / limit:.0%})"]
        error = np.linalg.norm(results[name] - exact) / np.linalg.norm(exact) if name in results else None
        lines.append("| " + " | ".join([*cells, "-" if error is None else f"{error:.1%}"]) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ggml", action="append", default=[], help="NAME=LIBRARY[,LIBRARY…], in the order they must be loaded")
    parser.add_argument("--threads", default="1,2")
    given = parser.parse_args()
    peers = {}
    for item in given.ggml:
        name, _, files = item.partition("=")
        peers[name] = Ggml([Path(f) for f in files.split(",")])
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "?")
    print(f"CPU: {model}, {machine.cores()} cores, caches {machine.caches()}; fewbit runs {_native.available()[0]}.")
    for name, ggml in peers.items():
        print(f"{name}: ggml's CPU backend with {ggml.features()}.")
    print(f"Copies of each weight fill {WORKING_SET >> 20} MB; {TURNS} turns. int4, int8, int3: groups of 64, zero points.")
    print(
        "GB/s: of the bytes that a format keeps of the weight, beside the read bandwidth of the same turns; of the median and of"
    )
    print("the least disturbed turn. Error: of the result against float32 weights, relative.\n")
    print("| shape | threads | | us, median | GB/s | us, least | GB/s | error |\n|" + "---|" * 8)
    for threads in (int(t) for t in given.threads.split(",")):
        for shape in SHAPES:
            for line in measure(shape, threads, peers):
                print(line, flush=True)


if __name__ == "__main__":
    main()
