"""What training under quantization from the start buys in reinforcement learning, beside quantizing what was trained in float.

    python benchmarks/qat_rl.py -o benchmarks/results/qat_rl.jsonl [--only sac/Pendulum-v1] [--seeds 0] [--train int2]
    python benchmarks/qat_rl.py --table benchmarks/results/qat_rl.jsonl > benchmarks/results/qat_rl.md

Every return is that of the integer artifact (or of the float policy), mean of 50 episodes on seeds that no training saw, the same
for all. Float and quantized runs have the same algorithm, settings, steps and seed; calibration is on the training's own states.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO, SAC

import fewbit
from fewbit.engine.load import load, quickest
from fewbit.rl import returns
from fewbit.sources import load as source

SMALL = {"net_arch": [64, 64]}
CASES: dict[str, tuple[type, str, int, dict[str, Any]]] = {
    "ppo/CartPole-v1": (PPO, "CartPole-v1", 20_000, {"n_steps": 1024, "n_epochs": 6, "learning_rate": 1e-3}),
    "sac/Pendulum-v1": (SAC, "Pendulum-v1", 5_000, {"learning_rate": 1e-3, "policy_kwargs": SMALL}),
    "sac/InvertedDoublePendulum-v5": (SAC, "InvertedDoublePendulum-v5", 10_000, {"learning_rate": 1e-3, "policy_kwargs": SMALL}),
}
FLOAT, WEIGHTS, AFTERWARDS = "float", ("int4", "int2"), ("rtn", "smooth+gptq")
EPISODES, FIRST = 50, 700_000


def trained(name: str, seed: int, callback: Any = None) -> tuple[Any, float]:
    """(model, CPU seconds of learn())."""
    algorithm, env, steps, settings = CASES[name]
    model = algorithm("MlpPolicy", env, seed=seed, device="cpu", **settings)
    start = time.process_time()
    model.learn(steps, callback=callback)
    return model, time.process_time() - start


def states(model: Any) -> np.ndarray:
    """What it saw: the last rollout, or the replay buffer."""
    held = getattr(model, "replay_buffer", None)
    seen = held.observations[: held.size()] if held is not None else model.rollout_buffer.observations
    return np.asarray(seen, np.float32).reshape(-1, *model.observation_space.shape)[-4000:]


def score(policy: Any, env: str) -> float:
    return float(returns.episodes(policy, env, range(FIRST, FIRST + EPISODES), None, 0, policy.inputs)[0].mean())


def artifact(model: Any, weights: str, method: str, env: str) -> float:
    made = fewbit.quantize(model, observations=states(model), scheme=fewbit.Scheme(weights, method=method))
    return score(quickest(made.model), env)


def rows(name: str, seed: int, formats: list[str]) -> Any:
    """One dict a run, as they come."""
    env = CASES[name][1]
    for w in formats:
        model, seconds = trained(name, seed, None if w == FLOAT else fewbit.rl.QuantizedTraining(w))
        if w == FLOAT:
            afterwards = {f"{f} {m}": artifact(model, f, m, env) for f in WEIGHTS for m in AFTERWARDS}
            floats = score(load(source(model).model, "onnxruntime"), env)
            yield {"case": name, "seed": seed, "trained": FLOAT, "seconds": seconds, "float": floats} | afterwards
            continue
        # "weights_alone": before activations and observations are quantized too, so what fake-quantizing these could win.
        alone = score(load(source(model).model, "onnxruntime"), env)
        found = {"seconds": seconds, "return": artifact(model, w, "rtn", env), "weights_alone": alone}
        yield {"case": name, "seed": seed, "trained": w} | found


def table(path: Path) -> None:
    """Markdown, a row a run's seed; "-": not run."""
    every = [json.loads(line) for line in path.read_text().splitlines()]
    steps = ", ".join(f"{name} {case[2]}" for name, case in CASES.items() if any(r["case"] == name for r in every))
    print(HEAD.replace("STEPS", steps))
    for name, seed in sorted({(r["case"], r["seed"]) for r in every}):
        own = {r["trained"]: r for r in every if (r["case"], r["seed"]) == (name, seed)}
        cells = [own[FLOAT]["float"] if FLOAT in own else None]
        for w in WEIGHTS:
            cells += [own[FLOAT][f"{w} {m}"] if FLOAT in own else None for m in AFTERWARDS]
            cells.append(own[w]["return"] if w in own else None)
        print(f"| {name}, {seed} | {' | '.join('-' if c is None else f'{c:.0f}' for c in cells)} |")
    quantized = [r for r in every if r["trained"] != FLOAT]
    apart = max(abs(r["return"] - r["weights_alone"]) for r in quantized)
    seconds = {(r["case"], r["seed"]): r["seconds"] for r in every if r["trained"] == FLOAT}
    cost = [r["seconds"] / seconds[k] for r in quantized if (k := (r["case"], r["seed"])) in seconds]
    print(
        f"\nThe float network with the grid's weights differs from its artifact by at most {apart:.1f} of the return: that is all"
    )
    print("that fake-quantizing activations and observations in training could win. learn() took ", end="")
    print(f"{min(cost):.2f} to {max(cost):.2f} times the float run's CPU seconds.")


HEAD = f"""\
Mean return of {EPISODES} episodes, by the seed of the training. Steps: STEPS.
"trained": `fewbit.rl.QuantizedTraining(weights)`, then `--method rtn`. Hidden activations have 8 bits, observations 16.
Script: `benchmarks/qat_rl.py`.

| seed | float | int4: rtn | smooth+gptq | trained | int2: rtn | smooth+gptq | trained |
|---|---|---|---|---|---|---|---|"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", type=Path)
    parser.add_argument("--only", nargs="*", default=list(CASES))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--train", nargs="*", default=[FLOAT, *WEIGHTS])
    parser.add_argument("--table", type=Path)
    a = parser.parse_args()
    if a.table:
        table(a.table)
        return
    torch.set_num_threads(1)
    for name in a.only:
        for seed in a.seeds:
            for record in rows(name, seed, a.train):
                print(record, flush=True)
                with a.o.open("a") as out:
                    out.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
