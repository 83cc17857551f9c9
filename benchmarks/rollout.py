"""Steps a second of rollouts: the quantized actor inside its workers, Stable-Baselines3, RLlib, and the bare environments.

    python benchmarks/rollout.py speed HalfCheetah-v5 [--rounds 5] [--rllib PYTHON] -o benchmarks/results/rollout.jsonl
    python benchmarks/rollout.py learn ppo/CartPole-v1 [--seeds 5] -o benchmarks/results/rollout.jsonl
    python benchmarks/rollout.py requantize HalfCheetah-v5 -o benchmarks/results/rollout.jsonl
    python benchmarks/rollout.py table benchmarks/results/rollout.jsonl > benchmarks/results/rollout.md

speed: every contender in turn for about `--seconds`, in as many rounds; medians. The policies are new, so that all of them, and
the random actions of the bare environments, meet the same states; noise is drawn and log-probabilities are found wherever the
contender finds them. A worker is a process. RLlib pins another gymnasium: --rllib names the Python of an environment of its own.
requantize: from a policy's float weights to an engine that runs them, beside quantizing its graph anew.
learn: the same algorithm, settings, steps and seed with and without fewbit.rl.accelerate, in turn.
"""

import argparse
import json
import multiprocessing
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

import fewbit
from fewbit.rl.live import Live

POLICIES = {"HalfCheetah-v5": SAC, "LunarLander-v3": PPO, "CartPole-v1": PPO}
COUNTS, WORKERS = (1, 8, 32), (1, 2)
Run = Callable[[float], float]  # seconds -> steps a second
LEARN: dict[str, tuple[Any, str, int, dict[str, Any]]] = {
    "ppo/CartPole-v1": (PPO, "CartPole-v1", 20_000, {"n_steps": 1024, "n_epochs": 6, "learning_rate": 1e-3}),
    "sac/Pendulum-v1": (SAC, "Pendulum-v1", 5_000, {"learning_rate": 1e-3, "policy_kwargs": {"net_arch": [64, 64]}}),
}


def timed(step: Callable[[], int], seconds: float) -> float:
    """Steps a second of calls that say how many they made."""
    start, made = time.perf_counter(), 0
    while (took := time.perf_counter() - start) < seconds:
        made += step()
    return made / took


def predict_loop(model: Any, env: str) -> Run:
    e = gym.make(env)
    seen = [e.reset(seed=0)[0]]

    def step() -> int:
        for _ in range(50):
            seen[0], _, terminated, truncated, _ = e.step(model.predict(seen[0])[0])
            if terminated or truncated:
                seen[0] = e.reset()[0]
        return 50

    return lambda seconds: timed(step, seconds)


def vectorised(model: Any, env: str, count: int, cls: Any) -> Run:
    how = {"start_method": "fork"} if cls is SubprocVecEnv else {}
    vec = make_vec_env(env, count, seed=0, vec_env_cls=cls, vec_env_kwargs=how)
    seen = [vec.reset()]

    def step() -> int:
        for _ in range(10):
            seen[0] = vec.step(model.predict(seen[0])[0])[0]
        return 10 * count

    return lambda seconds: timed(step, seconds)


def pooled(model: Any | None, env: str, count: int, threads: int) -> Run:
    """EnvPool: with Stable-Baselines3's predict, or random actions."""
    import envpool

    pool = envpool.make(env, env_type="gymnasium", num_envs=count, num_threads=threads, seed=0)
    seen = [pool.reset()[0]]
    pool.action_space.seed(0)
    drawn = np.stack([pool.action_space.sample() for _ in range(count)])

    def step() -> int:
        for _ in range(10):
            seen[0] = pool.step(drawn if model is None else model.predict(seen[0])[0])[0]
        return 10 * count

    return lambda seconds: timed(step, seconds)


def bare_loop(env: str, count: int) -> Run:
    """Nothing but the environments, with actions that were drawn before."""
    envs = [gym.make(env) for _ in range(count)]
    for k, e in enumerate(envs):
        e.reset(seed=k)
        e.action_space.seed(k)
    actions = [[e.action_space.sample() for e in envs] for _ in range(64)]

    def step() -> int:
        for row in actions:
            for e, action in zip(envs, row, strict=True):
                _, _, terminated, truncated, _ = e.step(action)
                if terminated or truncated:
                    e.reset()
        return 64 * count

    return lambda seconds: timed(step, seconds)


def _bare_process(pipe: Any, env: str, count: int) -> None:
    warnings.simplefilter("ignore")
    run = bare_loop(env, count)
    pipe.send(0.0)
    while True:
        pipe.send(run(pipe.recv()))


def bare(env: str, count: int, workers: int) -> Run:
    context = multiprocessing.get_context("fork")  # light: the children only step
    pipes = []
    for _ in range(workers):
        ours, theirs = context.Pipe()
        context.Process(target=_bare_process, args=(theirs, env, count), daemon=True).start()
        pipes.append(ours)
    for p in pipes:
        p.recv()

    def run(seconds: float) -> float:
        for p in pipes:
            p.send(seconds)
        return sum(p.recv() for p in pipes)

    return run


def ours(actor: Any, env: str, count: int, workers: int, vector: str) -> Run:
    rollout = fewbit.rl.rollout(actor, env, envs=count, workers=workers, vector=vector)
    rate = [0.0]

    def run(seconds: float) -> float:
        steps = max(2000, int(rate[0] * seconds))
        start = time.perf_counter()
        made = len(rollout.collect(steps))
        rate[0] = made / (time.perf_counter() - start)
        return rate[0]

    run(0)
    return run


def rllib(python: str, env: str, count: int, workers: int) -> Run:
    """benchmarks/rollout_rllib.py, which answers each line (seconds) with a line (steps a second)."""
    script = str(Path(__file__).with_name("rollout_rllib.py"))
    child = subprocess.Popen(
        [python, script, env, str(count), str(workers)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert child.stdin is not None and child.stdout is not None
    stdin, stdout = child.stdin, child.stdout

    def run(seconds: float) -> float:
        stdin.write(f"{seconds}\n")
        stdin.flush()
        for line in stdout:
            if line.startswith("rate "):
                return float(line.split()[1])
        raise SystemExit("RLlib's process ended")

    run(0.2)
    return run


def contenders(env: str, peer: str | None, only: str | None) -> dict[str, Callable[[], Run]]:
    """By name: what makes each ready to run. `envs x workers` in the names."""
    model = POLICIES[env]("MlpPolicy", env, seed=0, device="cpu")
    live = Live(model.policy, np.random.default_rng(0).standard_normal((512, *model.observation_space.shape)).astype(np.float32))
    actor = live.actor()
    found: dict[str, Callable[[], Run]] = {"sb3 predict 1 x 1": lambda: predict_loop(model, env)}
    for n in COUNTS:
        found[f"sb3 DummyVecEnv {n} x 1"] = lambda n=n: vectorised(model, env, n, DummyVecEnv)
        if n > 1:
            found[f"sb3 SubprocVecEnv {n} x {n}"] = lambda n=n: vectorised(model, env, n, SubprocVecEnv)
            found[f"sb3 EnvPool {n} x 2"] = lambda n=n: pooled(model, env, n, 2)
            found[f"bare EnvPool {n} x 2"] = lambda n=n: pooled(None, env, n, 2)
        for w in WORKERS:
            found[f"bare gymnasium {n} x {w}"] = lambda n=n, w=w: bare(env, n, w)
            found[f"fewbit gymnasium {n} x {w}"] = lambda n=n, w=w: ours(actor, env, n, w, "gymnasium")
            if n > 1:
                found[f"fewbit EnvPool {n} x {w}"] = lambda n=n, w=w: ours(actor, env, n, w, "envpool")
            if peer:
                found[f"rllib {n} x {w}"] = lambda n=n, w=w: rllib(peer, env, n, w)
    return {k: v for k, v in found.items() if not only or re.search(only, k)}


def speed(env: str, rounds: int, seconds: float, peer: str | None, only: str | None) -> list[dict[str, Any]]:
    ready = {}
    for name, make in contenders(env, peer, only).items():
        print(f"{env}: {name} …", file=sys.stderr, flush=True)
        ready[name] = make()
    rates: dict[str, list[float]] = {name: [] for name in ready}
    for run in ready.values():
        run(0.2)
    for _ in range(rounds):
        for name, run in ready.items():
            rates[name].append(run(seconds))
    return [{"kind": "speed", "env": env, "name": k, "steps_per_s": float(np.median(v)), "rounds": v} for k, v in rates.items()]


def learn(name: str, seed: int) -> list[dict[str, Any]]:
    """One seed, without and with, the order changing with the seed."""
    algorithm, env, steps, settings = LEARN[name]
    rows = []
    for fast in (False, True) if seed % 2 else (True, False):
        model = algorithm("MlpPolicy", env, seed=seed, device="cpu", **settings)
        start, cpu = time.perf_counter(), time.process_time()
        if fast:
            fewbit.rl.accelerate(model)
        captured = time.perf_counter() - start
        model.learn(steps)
        took, cpu = time.perf_counter() - start, time.process_time() - cpu
        final, _ = evaluate_policy(model, make_vec_env(env, 20, seed=1000), 40)
        curve = [e["r"] for e in model.ep_info_buffer]
        row = {"kind": "learn", "case": name, "seed": seed, "accelerated": fast, "seconds": took, "cpu_seconds": cpu}
        rows.append(
            row
            | {"steps": steps, "capture_seconds": captured, "final": float(final), "last_training_returns": float(np.mean(curve))}
        )
    return rows


def requantize(env: str, rounds: int) -> list[dict[str, Any]]:
    """Medians in milliseconds, of the policies that Stable-Baselines3 makes for PPO and SAC."""
    rows = []
    for algorithm in (PPO, SAC):
        model = algorithm("MlpPolicy", env, seed=0, device="cpu")
        seen = np.random.default_rng(0).standard_normal((512, *model.observation_space.shape)).astype(np.float32)
        live = Live(model.policy, seen)
        ways = {
            "codes alone": lambda live=live: live.actor().engine(),
            "ranges looked at": lambda live=live, seen=seen: live.actor(seen).engine(),
            "graph anew": lambda live=live, seen=seen: (live.calibrate(seen), live.actor().engine()),
        }
        took: dict[str, list[float]] = {k: [] for k in ways}
        for _ in range(rounds):
            for name, way in ways.items():
                start = time.perf_counter()
                way()
                took[name].append(1e3 * (time.perf_counter() - start))
        rows.append(
            {"kind": "requantize", "env": env, "policy": algorithm.__name__} | {k: float(np.median(v)) for k, v in took.items()}
        )
    return rows


def table(path: str) -> None:
    rows = [json.loads(line) for line in Path(path).read_text().splitlines()]
    print("# Rollouts\n\nMade by `python benchmarks/rollout.py` (see its first lines); every row in rollout.jsonl.\n")
    for env in POLICIES:
        found = {r["name"]: r["steps_per_s"] for r in rows if r["kind"] == "speed" and r["env"] == env}
        if found:
            _speeds(env, found)
    for r in (r for r in rows if r["kind"] == "requantize"):
        ways = ", ".join(f"{k} {v:.2f} ms" for k, v in r.items() if k not in ("kind", "env", "policy"))
        print(f"{r['policy']} on {r['env']}, quantized again: {ways}.\n")
    for case in LEARN:
        _learned(case, [r for r in rows if r["kind"] == "learn" and r["case"] == case])


def _speeds(env: str, found: dict[str, float]) -> None:
    kinds = ("sb3 predict", "sb3 DummyVecEnv", "sb3 SubprocVecEnv", "sb3 EnvPool", "rllib", "fewbit gymnasium", "fewbit EnvPool")
    places = [(n, w) for w in WORKERS for n in COUNTS]
    print(f"## {env}, steps a second\n\n| environments x workers | {' | '.join(f'{n} x {w}' for n, w in places)} |")
    print(f"|---|{'---|' * len(places)}")
    for kind in (*kinds, "bare gymnasium", "bare EnvPool"):
        cells = [found.get(f"{kind} {n} x {n if 'Subproc' in kind and w == 2 else w}") for n, w in places]
        if any(cells):
            print(f"| {kind} | {' | '.join('' if c is None else f'{c:,.0f}' for c in cells)} |")
    sb3 = {k: v for k, v in found.items() if k.startswith("sb3")}
    gymnasium = {k: v for k, v in sb3.items() if "EnvPool" not in k}
    best = max(gymnasium, key=lambda k: gymnasium[k])
    one = found["fewbit gymnasium 1 x 1"]
    most = max((k for k in found if k.startswith("fewbit gymnasium")), key=lambda k: found[k])
    print(f"\n- one environment: {one / found['sb3 predict 1 x 1']:.1f} times `predict`")
    print(f"- best on gymnasium: {found[most] / found[best]:.1f} times Stable-Baselines3's best ({best})")
    for n, w in places:
        print(f"- {n} x {w}: {found[f'fewbit gymnasium {n} x {w}'] / found[f'bare gymnasium {n} x {w}']:.0%} of the bare")
    pools = [k for k in found if k.startswith("fewbit EnvPool")]
    if pools:
        most = max(pools, key=lambda k: found[k])
        peer, limit = (max(v for k, v in found.items() if k.startswith(f"{x} EnvPool")) for x in ("sb3", "bare"))
        print(f"- EnvPool, best of each: {found[most] / peer:.1f} times of sb3's, {found[most] / limit:.0%} of the bare")
    print()


def _learned(case: str, rows: list[dict[str, Any]]) -> None:
    pairs = {r["seed"]: {q["accelerated"]: q for q in rows if q["seed"] == r["seed"]} for r in rows}
    pairs = {seed: p for seed, p in pairs.items() if len(p) == 2}
    if not pairs:
        return
    print(f"## {case}, {rows[0]['steps']} steps, {len(pairs)} seeds\n\n| seed | return | accelerated | seconds | accelerated |")
    print("|---|---|---|---|---|")
    for seed, p in sorted(pairs.items()):
        a, b = p[False], p[True]
        print(f"| {seed} | {a['final']:.1f} | {b['final']:.1f} | {a['seconds']:.1f} | {b['seconds']:.1f} |")
    gap = np.array([p[True]["final"] - p[False]["final"] for p in pairs.values()])
    ratio = np.array([p[False]["seconds"] / p[True]["seconds"] for p in pairs.values()])
    t = {3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 8: 2.365, 10: 2.262}.get(len(gap), 1.96)
    half = t * gap.std(ddof=1) / np.sqrt(len(gap)) if len(gap) > 1 else np.nan
    print(
        f"\nDifference of the returns: {gap.mean():+.1f}, 95% interval {gap.mean() - half:+.1f} to {gap.mean() + half:+.1f}. ",
        end="",
    )
    print(f"learn() is {np.median(ratio):.2f} times as fast (median, the capture included)", end="")
    cpu = [p[False]["cpu_seconds"] / p[True]["cpu_seconds"] for p in pairs.values() if "cpu_seconds" in p[True]]
    print(f", and takes 1 / {np.median(cpu):.2f} of the CPU seconds.\n" if cpu else ".\n")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("speed", "requantize", "learn", "table"))
    parser.add_argument("of")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--seeds", type=int, nargs="*", default=list(range(5)))
    parser.add_argument("--rllib")
    parser.add_argument("--only", help="a regular expression of contenders to run")
    parser.add_argument("-o", "--output", default="rollout.jsonl")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if args.what == "table":
        return table(args.of)
    parts = [speed(args.of, args.rounds, args.seconds, args.rllib, args.only)] if args.what == "speed" else []
    parts += [requantize(args.of, 10 * args.rounds)] if args.what == "requantize" else []
    for rows in parts or (learn(args.of, seed) for seed in args.seeds):
        with open(args.output, "a") as f:
            f.writelines(json.dumps(r) + "\n" for r in rows)


if __name__ == "__main__":
    main()
