"""What training buys at few bits: kept return of post-training quantization and of --method qat, three training seeds each.

    python benchmarks/qat.py ZOO ROBOTS -o benchmarks/results/qat.jsonl [--only sac/HalfCheetah-v3] [--weights int4 int2]
    python benchmarks/qat.py --table benchmarks/results/qat.jsonl > benchmarks/results/qat.md

8-bit hidden activations, 16-bit observations, everything through the integer artifact. Trained and chosen on other seeds than
those reported (from 0 on). What is in the file already is not run again.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import gymnasium
import onnx_ir as ir

import fewbit
from fewbit import sources
from fewbit.engine.load import quickest
from fewbit.graph.quantize import quantize as build
from fewbit.pipeline import calibration
from fewbit.rl.measure import Baseline, measure
from fewbit.training import Training, train

ENVS = {
    "sac/HalfCheetah-v3": "HalfCheetah-v5",
    "tqc/HalfCheetah-v3": "HalfCheetah-v5",
    "sac/Walker2d-v3": "Walker2d-v5",
    "trpo/Hopper-v3": "Hopper-v5",
    "go1": "robots:UnitreeGo1-v0",
    "g1": "robots:UnitreeG1-v0",
    "dqn/LunarLander-v2": "LunarLander-v3",
    "ppo/BipedalWalker-v3": "BipedalWalker-v3",
}
ROBOTS = {"go1": "go1/policy.onnx", "g1": "g1/motion.pt"}
REMEMBERS = "g1"  # asked for: no fall in any of its episodes either, so all of them are run, decided earlier or not
ASKED = {"int4": 0.99, "int3": 0.98, "int2": 0.95, "ternary": 0.95}
EASIER = {("sac/Walker2d-v3", "int4"): 0.95, ("dqn/LunarLander-v2", "int4"): 0.95, ("ppo/BipedalWalker-v3", "int4"): 0.95}
EASIER |= {(REMEMBERS, "int4"): 0.98}
SEEDS = 3
APART = 1000  # between training seeds, so that no state is met twice
POST = "smooth+gptq"
FIGURES = ("kept", "kept_ci95", "verdict", "fidelity_met", "return_float", "return_quantized", "packed_bytes", "seeds", "falls")


def asked(agent: str, weights: str) -> float:
    return EASIER.get((agent, weights), ASKED[weights])


def row(
    agent: str, weights: str, seed: int | None, source: sources.Source, baseline: Baseline, steps: int, cap: int, part: Path
) -> dict:
    """One training, or (seed None) what post-training quantization keeps; one that was killed goes on from part."""
    env, start, training = ENVS[agent], time.process_time(), {}
    feeds = calibration(source, env, None, None, APART * (seed or 0))
    if seed is None:
        model, _ = build(source.model, feeds, fewbit.Scheme(weights, method=POST))
    else:
        how = Training(env=env, seed=APART * seed, steps=steps, checkpoint=part)
        model, _, training = train(source, feeds, fewbit.Scheme(weights, method="qat"), how)
    cpu = time.process_time() - start
    part.unlink(missing_ok=True)
    found = measure(model, baseline, asked(agent, weights), cap, agent != REMEMBERS, lambda *_: None)
    if agent == REMEMBERS:
        found["falls"] = falls(model, env, found["seeds"])
    spent = max(cpu, training.get("cpu_seconds", 0.0))  # of the processes before, where it was killed
    training = {k: v for k, v in training.items() if k != "rounds"} | {"cpu_seconds": round(spent, 1)}
    named = {"agent": agent, "weights": weights, "method": POST if seed is None else "qat", "seed": seed}
    return named | {"training": training} | {k: found[k] for k in FIGURES if k in found}


def falls(model: ir.Model, env: str, seeds: list[int]) -> int:
    """Episodes of seeds first to last that ended before their time."""
    policy, robot, count = quickest(model), gymnasium.make(env), 0
    for seed in range(seeds[0], seeds[1] + 1):
        policy.reset()
        observation, done, fallen = robot.reset(seed=seed)[0], False, False
        while not done:
            observation, _, fallen, late, _ = robot.step(policy(observation))
            done = fallen or late
        count += fallen
    return count


def table(path: Path) -> None:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    by = {(r["agent"], r["weights"], r["seed"]): r for r in rows}
    print("| policy (float return) | weights | codes, bytes | asked | post-training | qat, seeds 0, 1, 2 | CPU seconds |")
    print("|---|---|---|---|---|---|---|")
    for agent in ENVS:
        for weights in ASKED:
            trained = [by[agent, weights, s] for s in range(SEEDS) if (agent, weights, s) in by]
            if not trained:
                continue
            before, first = by.get((agent, weights, None)), trained[0]
            seconds = max(r["training"]["cpu_seconds"] for r in trained)
            print(
                f"| {agent} ({first['return_float']['mean']:.0f}) | {weights} | {first['packed_bytes']:,} "
                f"| {100 * asked(agent, weights):.0f}% | {_kept(before) if before else ''} "
                f"| {'; '.join(_kept(r) for r in trained)} | {seconds:.0f} |"
            )


def _kept(r: dict) -> str:
    if r["kept"] is None:
        return "undefined"
    low, high = r["kept_ci95"]
    mark = {"pass": "**", "fail": "", "undecided": ""}[r["verdict"]]
    same = {"pass": "", "fail": "", "undecided": " =" if r["fidelity_met"] else " ?"}[r["verdict"]]
    return f"{mark}{100 * r['kept']:.1f}{mark} ({100 * low:.1f} to {100 * high:.1f}){same}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("zoo", nargs="?", type=Path)
    parser.add_argument("robots", nargs="?", type=Path)
    parser.add_argument("-o", type=Path)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--weights", nargs="*", default=list(ASKED))
    parser.add_argument("--seeds", type=int, nargs="*", default=[*range(SEEDS), -1], help="-1: post-training")
    parser.add_argument("--steps", type=int, default=30_000)
    parser.add_argument("--cap", type=int, default=40)
    parser.add_argument("--table", type=Path)
    a = parser.parse_args()
    if a.table:
        table(a.table)
        return
    sys.path.append(str(a.robots))
    lines = a.o.read_text().splitlines() if a.o.exists() else []
    done = {(r["agent"], r["weights"], r["seed"]) for r in map(json.loads, lines)}
    for agent in a.only or ENVS:
        path = a.robots / ROBOTS[agent] if agent in ROBOTS else a.zoo / agent / f"{Path(agent).name}.zip"
        source = sources.load(path, trust_torchscript=agent in ROBOTS)
        baseline = Baseline(source.model, ENVS[agent], None, 0)
        for weights in a.weights:
            for seed in (None if s < 0 else s for s in a.seeds):
                if (agent, weights, seed) in done:
                    continue
                part = a.o.with_name(f".{a.o.name}.part")
                record = row(agent, weights, seed, source, baseline, a.steps, a.cap, part)
                print(agent, weights, seed, record["kept"], record["kept_ci95"], record["training"]["cpu_seconds"], flush=True)
                with a.o.open("a") as out:
                    out.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
