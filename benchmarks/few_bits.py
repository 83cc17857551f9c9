"""What fewer bits buy beside their loss: python benchmarks/few_bits.py > benchmarks/results/few_bits.md

Bytes of the codes and microseconds an action of the engine (one thread, all widths in turn, medians), flash and instructions of
the C on a cortex-m4 (counted in an emulator). Random weights of shapes that policies have: neither depends on training.
"""

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from boards import SIZES, measured
from boards_peers import Program
from engine import network

import fewbit
from fewbit import _native
from fewbit.engine.lower import lower
from fewbit.engine.program import packed_bytes
from fewbit.graph.read import read
from fewbit.targets import c

WIDTHS = ("int8", "int4", "int3", "int2", "ternary")
ROUNDS, CALLS = 25, 400


def microseconds(policies: list, observation: np.ndarray) -> list[float]:
    times: list[list[float]] = [[] for _ in policies]
    for _ in range(ROUNDS):
        for act, found in zip(policies, times, strict=True):
            start = time.perf_counter_ns()
            for _ in range(CALLS):
                act(observation)
            found.append((time.perf_counter_ns() - start) / CALLS / 1000)
    return [statistics.median(t) for t in times]


def rows(name: str, sizes: list[int], folder: Path) -> None:
    source, paths = folder / "float.onnx", [folder / f"{w}.onnx" for w in WIDTHS]
    network(sizes, "Relu", source)
    data = np.random.default_rng(1).normal(size=(512, sizes[0])).astype(np.float32)
    for width, path in zip(WIDTHS, paths, strict=True):
        fewbit.quantize(source, observations=data, scheme=fewbit.Scheme(width, method="clip")).save(path)
    us = microseconds([fewbit.load(p) for p in paths], data[0])
    for width, path, took in zip(WIDTHS, paths, us, strict=True):
        program, action = lower(read(path)), fewbit.load(path)(data[0])
        board = Program(c.generate(program, "policy")["files"], known=action)
        flash, _, _, instructions = measured(board, "cortex-m4", data[0], action)
        print(f"| {name} | {width} | {packed_bytes(program):,} | {took:.2f} | {flash:,} | {instructions:,} |", flush=True)


def main() -> None:
    print(f"{__doc__.splitlines()[0]}\n")
    print(f"Engine: {_native.available()[0]}. Medians of {ROUNDS} rounds of {CALLS} calls from Python.\n")
    print("| network | weights | codes, bytes | engine, us | C on cortex-m4: flash, bytes | instructions an action |")
    print("|---|---|---|---|---|---|")
    for name, sizes in SIZES.items():
        with tempfile.TemporaryDirectory() as folder:
            rows(name, sizes, Path(folder))


if __name__ == "__main__":
    main()
