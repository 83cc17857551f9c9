"""What few bits cost a language model: SmolLM2-135M by fewbit's methods, and by llm-compressor's GPTQ on the same tokens.

    python benchmarks/llm.py MODEL -o benchmarks/results/llm.jsonl [--only auto:int4 gptq:int4] [--peer PYTHON] [--work FOLDER]
    python benchmarks/llm.py --table benchmarks/results/llm.jsonl > benchmarks/results/llm.md

MODEL: the float32 checkpoint. The text is CPython's own pydoc_data.topics, sorted by key and joined by blank lines: 64 samples
of 512 tokens of its first half to calibrate on, 12 windows of 1024 tokens, every 4096 from its middle on, to measure on.
--peer: the interpreter of an environment with llm-compressor 0.14 (transformers 5.17), which runs benchmarks/llm_peer.py with
the same samples and the same threads. Every run is a process of its own; seconds are wall-clock, cpu_seconds the process's.
"""

import argparse
import json
import pydoc_data.topics
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CASES = [
    ("rtn", "int8"), ("rtn", "int4"), ("awq", "int4"), ("gptq", "int4"), ("awq+gptq", "int4"), ("auto", "int4"),
    ("rtn", "int3"), ("gptq", "int3"), ("awq+gptq", "int3"), ("auto", "int3"), ("auto", "int8"),
]  # fmt: skip
PEERS = [("llm-compressor gptq", "int4"), ("llm-compressor gptq", "int3")]
MAIN = "from fewbit.cli.main import main; main()"
WINDOWS = ["--start", "0.5", "--windows", "12", "--window", "1024", "--stride", "4096"]
SHARE = 0.15  # what a forecast may be off by


def texts(model: Path, folder: Path) -> tuple[Path, Path]:
    """(the first half, up to the middle token; the whole)."""
    from transformers import AutoTokenizer

    topics = pydoc_data.topics.topics
    text = "\n\n".join(topics[k] for k in sorted(topics))
    found = AutoTokenizer.from_pretrained(model)(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    cut = found["offset_mapping"][len(found["input_ids"]) // 2][0]
    for name, content in (("calibration.txt", text[:cut]), ("whole.txt", text)):
        (folder / name).write_text(content, encoding="utf-8")
    return folder / "calibration.txt", folder / "whole.txt"


def run(command: list[object]) -> tuple[dict, float, float]:
    """(the JSON on its standard output, wall-clock seconds, CPU seconds)."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return json.loads(done.stdout.splitlines()[-1]), time.perf_counter() - began, cpu


def row(model: Path, method: str, weights: str, work: Path, peer: str | None, calibration: Path, whole: Path) -> dict:
    out = work / f"{method}-{weights}".replace(" ", "-")
    if method.startswith("llm-compressor"):
        command = [peer, Path(__file__).with_name("llm_peer.py"), model, out, calibration, weights]
    else:
        command = [sys.executable, "-c", MAIN, "llm", "quantize", model, "-o", out, "--weights", weights, "--method", method]
        command += ["--json"] if method == "rtn" else ["--calibration", calibration, "--json"]
    made, seconds, cpu = run(command)
    measure = [sys.executable, "-c", MAIN, "llm", "perplexity", out, "--text", whole, "--against", model, *WINDOWS, "--json"]
    found, _, _ = run(measure)
    for record, key in ((made, "artifact"), (found, "model")):  # no paths of this machine
        record.pop(key, None)
    return {"method": method, "weights": weights} | made | {"seconds": seconds, "cpu_seconds": cpu, "measured": found}


def forecast(r: dict) -> str:
    """How far the forecast after one block was off, in CPU time (other programs' does not count) and in memory."""
    said = r.get("forecast")
    if not said:
        return "-"
    off = (said["cpu_seconds_left"] / r["after_forecast"]["cpu_seconds"] - 1, said["peak_bytes"] / r["peak_bytes"] - 1)
    return f"{off[0]:+.0%}, {off[1]:+.0%}" + ("" if max(map(abs, off)) <= SHARE else " MISSED")


def size(r: dict) -> str:
    """Megabytes; a peer's folder holds its weights unpacked."""
    return "-" if r["method"].startswith("llm-compressor") else f"{r['measured']['bytes'] / 1e6:.0f}"


def table(path: Path) -> None:
    """Markdown; of a case that was run twice the later one counts."""
    rows = {(r["method"], r["weights"]): r for r in map(json.loads, path.read_text().splitlines())}
    columns = ["method", "weights", "perplexity", "over float", "KL", "same top token", "MB", "seconds (CPU)", "peak GB"]
    print("| " + " | ".join([*columns, "forecast off, time, memory"]) + " |")
    print("|" + "---|" * 10)
    for method, weights in sorted(rows, key=lambda k: (-int(k[1][3:]), k[0])):
        r = rows[method, weights]
        m = r["measured"]
        print(
            f"| {method} | {weights} | {m['perplexity']:.3f} | {m['perplexity'] / m['perplexity_float'] - 1:.1%} | {m['kl']:.4f} "
            f"| {m['top1_agreement']:.1%} | {size(r)} | {r['seconds']:.0f} ({r['cpu_seconds']:.0f}) "
            f"| {r['peak_bytes'] / 1e9:.2f} | {forecast(r)} |"
        )
    print(f"\nFloat: {next(iter(rows.values()))['measured']['perplexity_float']:.3f}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--only", nargs="*", help="METHOD:WEIGHTS")
    parser.add_argument("--peer")
    parser.add_argument("--work", type=Path, help="where artifacts go; a temporary folder")
    parser.add_argument("--table", type=Path)
    a = parser.parse_args()
    if a.table:
        return table(a.table)
    if not (a.model and a.out):
        parser.error("give MODEL and -o, or --table")
    with tempfile.TemporaryDirectory() as temporary:
        work = a.work or Path(temporary)
        calibration, whole = texts(a.model, work)
        for method, weights in CASES + (PEERS if a.peer else []):
            if not a.only or f"{method}:{weights}" in a.only:
                found = row(a.model, method, weights, work, a.peer, calibration, whole)
                with a.out.open("a") as f:
                    f.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
