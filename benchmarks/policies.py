"""What int8 costs a policy, by every method: ours, ONNX Runtime's, PyTorch's, NNCF's. One JSON line a row.

    python benchmarks/policies.py ZOO ROBOTS -o benchmarks/results/policies.jsonl [--only sac/HalfCheetah-v3] [--cap 100]
    python benchmarks/policies.py --table benchmarks/results/policies.jsonl

NNCF lives in an environment of its own: give its Python as --nncf (benchmarks/nncf_peer.py says what to install there).
"""

import argparse
import functools
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx_ir as ir

from fewbit import ladder, pipeline, sources
from fewbit.engine.load import Policy, load
from fewbit.graph.qdq import Scheme
from fewbit.graph.quantize import quantize
from fewbit.graph.read import prepare
from fewbit.rl.measure import Baseline, compare, measure, summary

AGENTS = {
    "sac/HalfCheetah-v3": ("HalfCheetah-v5", {}, 0.99),
    "tqc/HalfCheetah-v3": ("HalfCheetah-v5", {}, 0.99),
    "ppo/HalfCheetah-v3": ("HalfCheetah-v5", {}, 0.99),
    "ars/HalfCheetah-v3": ("HalfCheetah-v5", {}, 0.99),
    "trpo/Hopper-v3": ("Hopper-v5", {}, 0.99),
    "go1": ("robots:UnitreeGo1-v0", {}, 0.99),
    "sac/Walker2d-v3": ("Walker2d-v4", {}, 0.95),
    "a2c/Humanoid-v3": ("Humanoid-v4", {}, 0.95),
    "sac/Pendulum-v1": ("Pendulum-v1", {}, 0.95),
    "tqc/Pendulum-v1": ("Pendulum-v1", {}, 0.95),
    "ddpg/Pendulum-v1": ("Pendulum-v1", {}, 0.95),
    "ppo/Pendulum-v1": ("Pendulum-v1", {}, 0.95),
    "ppo/CartPole-v1": ("CartPole-v1", {}, 0.95),
    "dqn/CartPole-v1": ("CartPole-v1", {}, 0.95),
    "qrdqn/CartPole-v1": ("CartPole-v1", {}, 0.95),
    "ppo/LunarLander-v2": ("LunarLander-v3", {}, 0.95),
    "dqn/LunarLander-v2": ("LunarLander-v3", {}, 0.95),
    "a2c/LunarLanderContinuous-v2": ("LunarLander-v3", {"continuous": True}, 0.95),
    "ppo/BipedalWalker-v3": ("BipedalWalker-v3", {}, 0.95),
    "trpo/BipedalWalker-v3": ("BipedalWalker-v3", {}, 0.95),
}
OURS = {
    "fewbit rtn": Scheme(method="rtn"),
    "fewbit gptq": Scheme(method="gptq"),
    "fewbit adaround": Scheme(method="adaround"),
    "fewbit awq": Scheme(method="awq"),
    "fewbit smooth": Scheme(method="smooth"),
    "fewbit cross_layer": Scheme(method="cross_layer"),
    "fewbit smooth+gptq": Scheme(method="smooth+gptq"),
    "fewbit smooth+gptq int6": Scheme("int6", method="smooth+gptq"),
    "fewbit smooth+gptq int4": Scheme("int4", method="smooth+gptq"),
    "fewbit dynamic": Scheme(method="dynamic"),
    "fewbit float16": Scheme("float16"),
}
PEERS = ("onnxruntime static", "onnxruntime static 16-bit activations", "onnxruntime static percentile",
         "onnxruntime static entropy", "onnxruntime dynamic", "torch dynamic", "nncf", "nncf accuracy control")  # fmt: skip


def silent(*_: object) -> None:
    pass


def row(agent: str, method: str, policy: Policy, baseline: Baseline, keep: float, cap: int) -> dict:
    start = time.time()
    q, f, found = compare(policy, baseline, keep, cap, True, silent)
    record = {"agent": agent, "method": method, "keep": keep, "verdict": found.verdict, "kept": found.kept,
              "kept_ci95": [found.low, found.high], "return_quantized": summary(q), "return_float": summary(f),
              "return_random": summary(baseline.random), "seeds": [baseline.seed, baseline.seed + len(q) - 1],
              "seconds": round(time.time() - start, 1)}  # fmt: skip
    return record | baseline.fidelity(policy)


def one_by_one(policy: Policy) -> Policy:
    """Each observation in a call of its own: a dynamic range is then that of one action, as on a robot."""

    def run(feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        count = len(next(iter(feeds.values())))
        return [np.concatenate([policy({k: v[i : i + 1] for k, v in feeds.items()}) for i in range(count)])]

    return Policy(run, policy.inputs, policy.executor)


def onnxruntime_static(model: ir.Model, feeds: dict[str, np.ndarray], kind: str) -> ir.Model:
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rows = iter([{k: v[i : i + 1] for k, v in feeds.items()} for i in range(0, len(next(iter(feeds.values()))), 5)])

        def get_next(self):  # type: ignore[no-untyped-def]
            return next(self.rows, None)

    options: dict = {}
    if kind == "onnxruntime static 16-bit activations":
        options = {"activation_type": QuantType.QInt16, "per_channel": True}
    elif "percentile" in kind:
        options = {"calibrate_method": CalibrationMethod.Percentile, "per_channel": True, "activation_type": QuantType.QUInt8}
    elif "entropy" in kind:
        options = {"calibrate_method": CalibrationMethod.Entropy, "per_channel": True, "activation_type": QuantType.QUInt8}
    return through_files(
        model, lambda a, b: (quant_pre_process(a, b + ".pre"), quantize_static(b + ".pre", b, Reader(), **options))
    )


def through_files(model: ir.Model, change) -> ir.Model:  # type: ignore[no-untyped-def]
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        a, b = f"{folder}/a.onnx", f"{folder}/b.onnx"
        onnx.save(ir.to_proto(model), a)
        change(a, b)
        return prepare(onnx.load(b))


def torch_dynamic(path: Path) -> Policy:
    import torch

    from fewbit.sources import sb3
    from fewbit.sources.normalizer import read

    beside = path.with_name("vecnormalize.pkl")
    torch.set_num_threads(1)
    module = sb3.Deterministic(sb3.build(path), read(beside) if beside.exists() else None, ["observation"]).eval()
    narrow = torch.ao.quantization.quantize_dynamic(module, {torch.nn.Linear}, torch.qint8, inplace=True)

    def run(feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        with torch.no_grad():
            return [narrow(torch.as_tensor(next(iter(feeds.values())), dtype=torch.float32)).numpy()]

    return one_by_one(Policy(run, {"observation": tuple(module.policy.observation_space.shape)}, "torch"))


def peer(method: str, path: Path, source: sources.Source, feeds: dict[str, np.ndarray], env: tuple, nncf: str | None) -> Policy:
    if method.startswith("onnxruntime static"):
        return load(onnxruntime_static(source.model, feeds, method), "onnxruntime")
    if method == "onnxruntime dynamic":
        from onnxruntime.quantization import quantize_dynamic

        return one_by_one(load(through_files(source.model, lambda a, b: quantize_dynamic(a, b)), "onnxruntime"))
    if method == "torch dynamic":
        if path.suffix != ".zip":
            raise LookupError("no torch module behind an ONNX file")
        return torch_dynamic(path)
    if nncf is None:
        raise LookupError("give --nncf")
    with tempfile.TemporaryDirectory() as folder:
        np.savez(f"{folder}/x.npz", **{k: v[::5] for k, v in feeds.items()})
        script = Path(__file__).with_name("nncf_peer.py")

        def run(a: str, b: str) -> None:
            extra = [env[0], json.dumps(env[1])] if "accuracy" in method else []
            subprocess.run([nncf, str(script), a, f"{folder}/x.npz", b, *extra], check=True, capture_output=True, timeout=1500)

        return load(through_files(source.model, run), "onnxruntime")


def run(agent: str, zoo: Path, robots: Path, nncf: str | None, cap: int, only: list[str] | None, write) -> None:  # type: ignore[no-untyped-def]
    env, env_args, keep = AGENTS[agent]
    path = robots / "go1/policy.onnx" if agent == "go1" else zoo / agent / f"{Path(agent).name}.zip"
    source = sources.load(path)
    feeds = pipeline._calibration(source, env, None, env_args, 0)
    baseline = Baseline(source.model, env, env_args, 0)
    for method in [*OURS, *PEERS, "fewbit search"]:
        if only and method not in only:
            continue
        try:
            if method == "fewbit search":
                write(searched(agent, source, feeds, baseline, keep, cap))
                continue
            if method in OURS:
                model, _ = quantize(source.model, feeds, OURS[method])
                executor = "onnxruntime" if method in ("fewbit dynamic", "fewbit float16") else "reference"
                policy = load(model, executor)
                policy = one_by_one(policy) if method == "fewbit dynamic" else policy
            else:
                policy = peer(method, path, source, feeds, (env, env_args), nncf)
            write(row(agent, method, policy, baseline, keep, cap))
        except LookupError as e:
            write({"agent": agent, "method": method, "skipped": str(e)})
        except Exception as e:
            write({"agent": agent, "method": method, "failed": f"{type(e).__name__}: {str(e)[:300]}"})


def searched(agent: str, source: sources.Source, feeds: dict, baseline: Baseline, keep: float, cap: int) -> dict:
    elsewhere = Baseline(source.model, baseline.env, baseline.env_args, pipeline.SEARCH_SEED)
    build = functools.cache(lambda scheme: quantize(source.model, feeds, scheme)[0])
    head = pipeline.layers(source.model)[-1].node.name or ""
    best, tried = ladder.climb(
        ladder.rungs(Scheme(method="auto"), head),
        lambda s: measure(build(s), elsewhere, keep, cap, True, silent, True),
        lambda s: measure(build(s), baseline, keep, cap, True, silent, True),
    )
    return {"agent": agent, "method": "fewbit search", "chosen": best.what, "rungs": len(tried)} | (best.reported or {})


SHOWN = ("onnxruntime static", "onnxruntime static 16-bit activations", "onnxruntime dynamic", "torch dynamic", "nncf",
         "nncf accuracy control", "fewbit rtn", "fewbit smooth+gptq", "fewbit smooth+gptq int6", "fewbit search")  # fmt: skip


def table(path: Path, methods: tuple[str, ...]) -> None:
    """Markdown; of a row that was run twice the later one counts."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    by = {(r["agent"], r["method"]): r for r in rows}
    print("| agent (float return), K | " + " | ".join(methods) + " |\n|" + "---|" * (len(methods) + 1))
    for agent, (_, _, keep) in AGENTS.items():
        f = next((r["return_float"] for r in rows if r["agent"] == agent and "return_float" in r), None)
        if f:
            cells = [cell(by.get((agent, m))) for m in methods]
            print(f"| {agent} ({f['mean']:.0f}), {keep:.0%} | " + " | ".join(cells) + " |")


def cell(r: dict | None) -> str:
    """kept in percent (its interval, episodes); bold: pass; =: undecided, and the actions meet the fidelity rule."""
    if r is None or "kept" not in r:
        return "not run" if r is None else "none" if "skipped" in r else "failed"
    if r["kept"] is None:
        return "undefined"
    low, high = r["kept_ci95"]
    mark = "**" if r["verdict"] == "pass" else ""
    faithful = " =" if r["verdict"] == "undecided" and r["fidelity_met"] else " ?" if r["verdict"] == "undecided" else ""
    chosen = f"; {r['chosen'].removeprefix('int8, ')}" if "chosen" in r else ""
    figures = f"{100 * low:.1f} to {100 * high:.1f}, {r['return_quantized']['n']}"
    return f"{mark}{100 * r['kept']:.1f}{mark}{faithful} ({figures}{chosen})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("zoo", nargs="?", type=Path)
    parser.add_argument("robots", nargs="?", type=Path)
    parser.add_argument("-o", type=Path)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--methods", nargs="*")
    parser.add_argument("--nncf")
    parser.add_argument("--cap", type=int, default=100)
    parser.add_argument("--table", type=Path)
    a = parser.parse_args()
    if a.table:
        table(a.table, tuple(a.methods or SHOWN))
        return
    sys.path.append(str(a.robots))

    def write(record: dict) -> None:
        kept = record.get("kept")
        print(record["agent"], record["method"], record.get("failed") or record.get("skipped") or kept and round(kept, 4),
              record.get("verdict"), record.get("seconds"), flush=True)  # fmt: skip
        with a.o.open("a") as out:
            out.write(json.dumps(record) + "\n")

    for agent in a.only or AGENTS:
        run(agent, a.zoo, a.robots, a.nncf, a.cap, a.methods, write)


if __name__ == "__main__":
    main()
