"""The grouped matrix-vector products against the memory's own speed, llama.cpp and torch: all in turns in one process.

    python benchmarks/llm_kernels.py [--ggml NAME=LIBRARY[,LIBRARY…]]… > benchmarks/results/llm_kernels.md

Each product goes over so many copies of its weight that they come from memory and not from a cache; medians of turns.
llama.cpp runs all copies in one graph, which spares it the start of a call; fewbit's layer is called from Python for each.
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
from fewbit.llm.linear import QuantLinear, make_panels

SHAPES = [(576, 1536), (2048, 2048), (4096, 11008)]
KINDS = {"int4": (4, 64, False), "int4 symmetric/32": (4, 32, True), "int8": (8, 64, False), "int3": (3, 64, False)}
WORKING_SET = 160 << 20  # bytes of all copies of one weight, at least two copies
STREAM, TURNS = 256 << 20, 21


def quantized(weight: np.ndarray, bits: int, size: int, symmetric: bool) -> packed.PackedWeight:
    """Round to nearest: the speed does not depend on the codes."""
    groups, top = weight.reshape(len(weight), -1, size), (1 << bits) - 1
    most = np.abs(groups).max(2)
    scale = packed.stored_scale(2 * most / top)
    middle = 1 << (bits - 1)
    codes = np.clip(np.rint(groups / scale[:, :, None]) + middle, 0, top).astype(np.uint8).reshape(weight.shape)
    return packed.pack(codes, scale, None if symmetric else np.full(scale.shape, middle), bits, size)


def ours(weight: np.ndarray, kind: tuple[int, int, bool], x: torch.Tensor, threads: int):
    """(call over all copies, copies, bytes of one, result)."""
    panels, what = make_panels(quantized(weight, *kind), None)
    copies = max(2, -(-WORKING_SET // panels.numel()))
    layers = [QuantLinear(panels.clone(), what, threads=threads) for _ in range(copies)]

    def call() -> None:
        for layer in layers:
            layer(x)

    return call, copies, panels.numel(), layers[0](x).numpy()[0]


def in_torch(weight: np.ndarray, x: torch.Tensor):
    copies = max(2, -(-WORKING_SET // weight.nbytes))
    weights = [torch.from_numpy(weight).clone() for _ in range(copies)]

    def call() -> None:
        for w in weights:
            torch.nn.functional.linear(x, w)

    return call, copies, weight.nbytes


def reading(threads: int) -> Callable[[], object]:
    """One pass over STREAM bytes, as fewbit.machine measures the bandwidth."""
    shares = [np.ones(STREAM // threads // 4, np.float32) for _ in range(threads)]
    pool = ThreadPoolExecutor(threads)
    return lambda: list(pool.map(np.maximum.reduce, shares))


def in_turns(calls: dict[str, Callable[[], object]]) -> dict[str, tuple[float, float]]:
    """(median, least) seconds of each, one after the other in every turn."""
    for call in calls.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(TURNS):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: (statistics.median(s), min(s)) for name, s in seconds.items()}


def measure(shape: tuple[int, int], threads: int, peers: dict[str, Ggml]) -> list[str]:
    torch.set_num_threads(threads)
    rng = np.random.default_rng(0)
    weight, x = rng.normal(size=shape).astype(np.float32), rng.normal(size=(1, shape[1])).astype(np.float32)
    exact = weight @ x[0]
    calls: dict[str, Callable[[], object]] = {"read": reading(threads)}
    sizes: dict[str, tuple[int, int]] = {}  # name -> (copies, bytes of one)
    errors: dict[str, float] = {}
    for name, kind in KINDS.items():
        calls[name], copies, size, y = ours(weight, kind, torch.from_numpy(x), threads)
        sizes[name], errors[name] = (copies, size), float(np.linalg.norm(y - exact) / np.linalg.norm(exact))
    for peer, ggml in peers.items():
        for form, repacked in [("Q4_0", False), ("Q4_0", True), ("Q4_1", False), ("Q8_0", False)]:
            size = {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}[form] * weight.size // 32
            copies = max(2, -(-WORKING_SET // size))
            made = ggml.products(weight, form, copies, x, repacked)
            if made is None:
                continue
            name = f"{peer} {form}{' repacked' if repacked else ''}"
            calls[name] = lambda call=made[0]: call(threads)
            calls[name]()
            sizes[name], errors[name] = (copies, size), float(np.linalg.norm(made[1]() - exact) / np.linalg.norm(exact))
    calls["torch float32"], copies, size = in_torch(weight, torch.from_numpy(x))
    sizes["torch float32"] = (copies, size)
    seconds = in_turns(calls)
    bandwidth = [STREAM / s for s in seconds["read"]]
    lines = []
    for name, (copies, size) in sizes.items():
        cells = [f"{shape[0]}x{shape[1]}", str(threads), name]
        for one, most in zip((s / copies for s in seconds[name]), bandwidth, strict=True):
            cells += [f"{one * 1e6:.1f}", f"{size / one / 1e9:.1f} ({size / one / most:.0%} of {most / 1e9:.1f})"]
        lines.append("| " + " | ".join([*cells, f"{errors[name]:.1%}" if name in errors else "-"]) + " |")
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
