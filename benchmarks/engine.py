"""The engine's targets, as ratios on this machine: python benchmarks/engine.py > benchmarks/results/engine.md

Networks of the shapes that policies have, random weights; `fewbit bench`'s own measurement, every instruction set, one thread.
"""

import os
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import fewbit
from fewbit import _native, machine
from fewbit.bench import bench
from fewbit.engine.lower import lower
from fewbit.graph.read import read

NETWORKS = {"17-64-64-6 tanh": "Tanh", "17-256-256-6 ReLU": "Relu", "376-400-400-17 ReLU": "Relu"}
PEERS = ["onnxruntime", "openvino", "numpy", "torch"]


def network(sizes: list[int], activation: str, path: Path) -> None:
    rng, nodes, constants, x = np.random.default_rng(0), [], [], "observation"
    for k, (i, o) in enumerate(zip(sizes, sizes[1:], strict=False)):
        weight, bias = rng.normal(size=(o, i)) / np.sqrt(i) * 1.4, rng.normal(size=o) * 0.1
        constants += [numpy_helper.from_array(a.astype(np.float32), f"{n}{k}") for n, a in (("w", weight), ("b", bias))]
        nodes.append(helper.make_node("Gemm", [x, f"w{k}", f"b{k}"], [f"g{k}"], transB=1, name=f"gemm{k}"))
        x = f"g{k}"
        if k < len(sizes) - 2:
            nodes.append(helper.make_node(activation, [x], [f"a{k}"], name=f"activation{k}"))
            x = f"a{k}"
    ends = (("observation", sizes[0]), (x, sizes[-1]))
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", d]) for n, d in ends]
    graph = helper.make_graph(nodes, "policy", values[:1], values[1:], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)


def row(name: str, artifact: Path, isa: str) -> str:
    os.environ["FEWBIT_ISA"] = isa
    found = bench(read(artifact), [1, 256], PEERS)
    us = {t.name: t.us for t in found["timings"] if t.right}
    theirs = {k: v for k, v in us.items() if not k.startswith("fewbit")}
    best = {n: min(theirs, key=lambda k, n=n: theirs[k][n]) for n in (1, 256)}
    ours, floats, ort = us["fewbit"], us["fewbit float32"], us["onnxruntime float32"]
    gmacs = found["multiply_accumulates"] * 256 / ours[256] / 1e3
    peak = _native.peak(isa) / 1e9
    cells = [name, isa, f"{found['bare_us'][1]:.2f}", f"{found['empty_call_us']:.3f}", f"{ours[1]:.2f}"]
    for n in (1, 256):
        least = theirs[best[n]][n]
        cells += [f"{ours[n]:.2f}"] if n == 256 else []
        cells += [f"{least:.1f} ({best[n]})", f"**{least / ours[n]:.1f}x**"]
    cells += [f"{gmacs:.0f} of {peak:.0f} ({gmacs / peak:.0%})"]
    cells += [f"{floats[1]:.2f} / {ort[1]:.1f} (**{ort[1] / floats[1]:.1f}x**)"]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "?")
    print(f"CPU: {model}, caches {machine.caches()}, instruction sets {', '.join(_native.available())}; one thread\n")
    print("| network | instruction set | C++ alone, us | empty call | fewbit, batch 1 | best peer | ratio | fewbit, batch 256"
          " | best peer | ratio | GMAC/s of peak | float32 batch 1: fewbit / ONNX Runtime |")  # fmt: skip
    print("|" + "---|" * 12)
    with tempfile.TemporaryDirectory() as folder:
        for name, activation in NETWORKS.items():
            sizes = [int(n) for n in name.split()[0].split("-")]
            source, artifact = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
            network(sizes, activation, source)
            observations = np.random.default_rng(1).normal(size=(512, sizes[0])).astype(np.float32)
            fewbit.quantize(source, observations=observations, scheme=fewbit.Scheme(method="rtn")).save(artifact)
            assert lower(read(artifact)).exact
            for isa in [i for i in _native.available() if i != "portable"]:
                print(row(name, artifact, isa), flush=True)


if __name__ == "__main__":
    main()
