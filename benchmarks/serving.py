"""What serving costs: requests a second on a core within a latency bound, float beside quantized, as money per million requests.

    python benchmarks/serving.py --policy ARTIFACT.onnx [--latency-ms 2] [--threads 1,2] [--price 0.04]
    python benchmarks/serving.py --model FLOAT_DIR --quantized OUT [--price 0.04]

A policy: threads that each answer batches of waiting requests as fast as they can. A request's latency is its batch's time; the
batch is the one with the most requests a second whose 99th percentile is within the bound. float32 is the same engine, and ONNX
Runtime, on the artifact's own float graph. A language model: transformers' generate, one sequence on one core, tokens instead of
requests. money = price of a core hour x cores / what is answered in an hour. Runners take turns; medians over the turns.
"""

import argparse
import json
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

BATCHES, TURNS, SECONDS = (1, 4, 16, 64, 256), 5, 0.5
Act = Callable[[np.ndarray], np.ndarray]


def loaded(acts: list[Act], observations: np.ndarray, seconds: float) -> tuple[float, float]:
    """(requests a second, seconds of the 99th percentile) of so many threads, each with an act of its own."""
    times: list[list[float]] = [[] for _ in acts]
    until = time.perf_counter() + seconds

    def work(act: Act, kept: list[float]) -> None:
        now = time.perf_counter()
        while now < until:
            act(observations)
            kept.append(-now + (now := time.perf_counter()))

    threads = [threading.Thread(target=work, args=pair) for pair in zip(acts, times, strict=True)]
    began = time.perf_counter()
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    calls = np.concatenate([np.array(t) for t in times])
    return len(calls) * len(observations) / (time.perf_counter() - began), float(np.quantile(calls, 0.99))


def money(rate: float, cores: int, price: float) -> float:
    """Per million."""
    return price * cores / (rate * 3600) * 1e6


def policy(path: Path, latency: float, threads: list[int], price: float) -> list[dict]:
    import fewbit
    from fewbit.engine.lower import lower
    from fewbit.graph.read import read
    from fewbit.graph.strip import strip

    model = read(path)
    floats, program = strip(model), lower(model)
    (shape,), (dtype,) = program.inputs.values(), program.input_dtypes.values()
    rows = np.random.default_rng(0).normal(0, 1, (max(BATCHES), *shape)).astype(dtype)
    runners: dict[str, Callable[[], Act]] = {
        "ONNX Runtime float32": lambda: fewbit.load(floats, "onnxruntime"),
        "fewbit float32": lambda: fewbit.load(floats),
        "fewbit artifact": lambda: fewbit.load(model),
    }
    found = []
    for n in threads:
        acts = {name: [make() for _ in range(n)] for name, make in runners.items()}
        tried: dict[tuple[str, int], list[tuple[float, float]]] = {(name, b): [] for name in acts for b in BATCHES}
        for _ in range(TURNS):
            for (name, b), kept in tried.items():
                kept.append(loaded(acts[name], np.ascontiguousarray(rows[:b]), SECONDS))
        for name in acts:
            medians = {b: tuple(statistics.median(x) for x in zip(*tried[name, b], strict=True)) for b in BATCHES}
            within = {b: m for b, m in medians.items() if m[1] <= latency}
            row = {"runner": name, "threads": n}
            if within:
                batch, (rate, p99) = max(within.items(), key=lambda item: item[1][0])
                row |= {
                    "batch": batch,
                    "requests_per_second": rate,
                    "p99_ms": p99 * 1e3,
                    "money_per_million": money(rate, n, price),
                }
            found.append(row)
    return found


def language(folder: Path, quantized: Path, price: float, tokens: int = 48) -> list[dict]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from fewbit.llm import load

    torch.set_num_threads(1)
    floats = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)
    models = {"transformers float32": floats, "fewbit": load(quantized, threads=1)}
    rates: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(TURNS):
        for name, (model, tokenizer) in models.items():
            inputs = tokenizer("The history of the city begins with", return_tensors="pt")
            began = time.perf_counter()
            model.generate(**inputs, do_sample=False, max_new_tokens=tokens, min_new_tokens=tokens)
            rates[name].append(tokens / (time.perf_counter() - began))
    return [
        {
            "runner": name,
            "threads": 1,
            "tokens_per_second": (rate := statistics.median(kept)),
            "money_per_million": money(rate, 1, price),
        }
        for name, kept in rates.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--quantized", type=Path)
    parser.add_argument("--latency-ms", type=float, default=2.0)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--price", type=float, default=0.04, help="of a core hour, in any currency")
    a = parser.parse_args()
    if not a.policy and not (a.model and a.quantized):
        parser.error("give --policy, or --model and --quantized")
    for path in (a.policy, a.model, a.quantized):
        if path is not None and not path.exists():
            parser.error(f"{path}: no such file")
    rows = policy(a.policy, a.latency_ms / 1e3, [int(n) for n in a.threads.split(",")], a.price) if a.policy else []
    for row in rows + (language(a.model, a.quantized, a.price) if a.model else []):
        print(json.dumps(row))


if __name__ == "__main__":
    main()
