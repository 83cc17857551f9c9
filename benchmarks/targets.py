"""Every agent by the rules of every runtime: what it keeps there and how long an action takes, beside the engine and float.

    python benchmarks/targets.py ZOO ROBOTS [--only AGENT] [--cap 20] > benchmarks/results/targets.md

Each row is quantized anew with smooth+gptq for its target and measured in the target's own runtime, the same seeds for all.
Latency: the median of 1000 calls of one observation, one thread, all runtimes of a row alternating call by call.
"""

import argparse
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from policies import AGENTS, silent

from fewbit import sources, targets
from fewbit.artifact import Artifact
from fewbit.engine.load import load, quickest
from fewbit.graph.qdq import Scheme
from fewbit.observations import calibration
from fewbit.pipeline import _artifact
from fewbit.rl.measure import Baseline, compare

RECURRENT = {"g1": ("robots:UnitreeG1-v0", {}, 0.99)}
BY_RULES_ALONE = ("tensorrt",)  # no GPU here: the rewritten file runs in fewbit's engine, and is not timed
CALLS = 1000


def path_of(agent: str, zoo: Path, robots: Path) -> Path:
    special = {"go1": robots / "go1" / "policy.onnx", "g1": robots / "g1" / "motion.pt"}
    return special.get(agent) or zoo / agent / f"{agent.split('/')[1]}.zip"


def latencies(policies: dict, feeds: dict[str, np.ndarray]) -> dict[str, float]:
    """Median microseconds of one action, the runtimes taking turns."""
    one = {k: np.ascontiguousarray(v[:1]) for k, v in feeds.items()}
    given = one if len(one) > 1 else next(iter(one.values()))
    times: dict[str, list[int]] = {k: [] for k in policies}
    for _ in range(CALLS):
        for name, policy in policies.items():
            start = time.perf_counter_ns()
            policy(given)
            times[name].append(time.perf_counter_ns() - start)
    return {k: float(np.median(v)) / 1000 for k, v in times.items()}


def cell(artifact: Artifact, target: str, baseline: Baseline, keep: float, cap: int) -> str:
    policy = quickest(artifact.model) if target in ("any", *BY_RULES_ALONE) else targets.runtime(target).load(artifact.model)
    found = compare(policy, baseline, keep, cap, False, silent)[2]
    return f"{100 * found.kept:.1f} ({100 * found.low:.1f} to {100 * found.high:.1f})"


def row(agent: str, zoo: Path, robots: Path, cap: int) -> str:
    env, arguments, keep = (AGENTS | RECURRENT)[agent]
    original = sources.load(path_of(agent, zoo, robots), trust_torchscript=True)
    feeds = calibration(original, env, None, arguments, 0)
    baseline = Baseline(original.model, env, arguments, 0)
    cells, timed = [], {"float": load(original.model, "onnxruntime")}
    for target in ("any", *targets.RUNTIMES):
        made = _artifact(original, feeds, replace(Scheme(method="smooth+gptq"), target=target), None)
        cells.append(cell(made, target, baseline, keep, cap))
        if target not in BY_RULES_ALONE:
            timed[target] = load(made.model) if target == "any" else targets.runtime(target).load(made.model)
    us = latencies(timed, feeds)
    figures = " | ".join([*cells, *(f"{us[k]:.2f}" for k in timed)])
    return f"| {agent} ({baseline.returns(cap, silent).mean():.0f}) | {figures} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("zoo", type=Path)
    parser.add_argument("robots", type=Path)
    parser.add_argument("--only")
    parser.add_argument("--cap", type=int, default=20)
    given = parser.parse_args()
    sys.path.insert(0, str(given.robots))
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
    print(f"Kept, in percent of the float policy's return (95% interval, {given.cap} episodes); microseconds an action on {cpu},")
    print(f"{os.cpu_count()} cores doing other work too. tensorrt: the rewritten file in fewbit's engine, for want of a GPU.\n")
    print("| agent (float return) | engine | onnxruntime | openvino | tensorrt | us: float | engine | onnxruntime | openvino |")
    print("|---|---|---|---|---|---|---|---|---|")
    for agent in [given.only] if given.only else [*AGENTS, *RECURRENT]:
        print(row(agent, given.zoo, given.robots, given.cap), flush=True)


if __name__ == "__main__":
    main()
