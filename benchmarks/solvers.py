"""Time and memory of each solver on one layer (4096 x 4096, int4, correlated inputs of unlike size), one process each.

python benchmarks/solvers.py [--size 4096]
"""

import argparse
import resource
import subprocess
import sys
import time

import numpy as np

METHODS = ("rtn", "clip", "awq", "smooth", "gptq", "adaround")


def one(method: str, size: int) -> None:
    from fewbit import solvers
    from fewbit.numerics.formats import INTEGERS
    from fewbit.solvers import clip, rtn, scaling
    from fewbit.solvers.statistics import Statistics, output_error

    rng, fmt = np.random.default_rng(0), INTEGERS["int4"]
    weight = rng.standard_normal((size, size), dtype=np.float32)
    mix = rng.standard_normal((size, 64), dtype=np.float32)
    seen = Statistics(size)
    loud = np.exp(rng.standard_normal(size))  # some inputs are larger than others, as in real networks
    for _ in range(4):
        seen.observe((rng.standard_normal((2048, 64)) @ mix.T + 3 * rng.standard_normal((2048, size))) * loud)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    column = np.ones(size)
    if method in ("awq", "smooth"):
        column = scaling.awq(weight, seen, fmt) if method == "awq" else scaling.smooth(weight, seen)
    scaled = (weight * column).astype(np.float32)
    scale = clip.channel_scale(scaled, fmt, seen) if method == "clip" else rtn.channel_scale(scaled, fmt)
    codes = solvers.solve(method if method in solvers.SOLVERS else "rtn", scaled, scale, fmt, seen)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    nearest = rtn.channel_scale(weight, fmt)
    base = output_error(weight, rtn.solve(weight, nearest, fmt) * nearest[:, None].astype(float), seen.gram).sum()
    error = output_error(weight, codes * scale[:, None].astype(float) / column, seen.gram).sum()
    print(f"| {method} | {seconds:.1f} | {(after - before) / 1024:.0f} | {after / 1024:.0f} | {error / base:.3f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--method")
    a = parser.parse_args()
    if a.method:
        one(a.method, a.size)
        return
    print("| method | seconds | MiB more at its peak | MiB in all | output error, of rtn's |\n|---|---|---|---|---|", flush=True)
    for method in METHODS:
        if method == "adaround" and a.size > 1024:
            continue  # 1000 products of size^3: 26 s at 512, about four hours at 4096
        subprocess.run([sys.executable, __file__, "--size", str(a.size), "--method", method], check=True)


if __name__ == "__main__":
    main()
