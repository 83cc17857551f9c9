"""Random ONNX networks through fewbit, many of them: accepted and refused for each operator, every fault with its seed.

python benchmarks/random_graphs.py --count 20000 --first 0 [--minimise] [--record results.jsonl]
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from textwrap import indent
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from random_graphs.minimise import minimise, to_python  # noqa: E402
from random_graphs.sample import sample  # noqa: E402
from random_graphs.verdict import judge  # noqa: E402
from random_graphs.words import kind_of  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--minimise", action="store_true", help="the smallest network of each kind of fault, as text")
    parser.add_argument("--seeds", help="these alone, with commas")
    parser.add_argument("--record", type=Path, help="a line of JSON a network, written on; what it holds is not run again")
    args = parser.parse_args()
    seeds = [int(s) for s in args.seeds.split(",")] if args.seeds else range(args.first, args.first + args.count)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        record = args.record or Path(folder) / "record.jsonl"
        run_all(seeds, record, Path(folder))
        rows = [r for r in read_record(record) if r["seed"] in set(seeds)]
        print_table(rows)
        print_kinds("refusals", [(r["seed"], r["kind"], r["why"]) for r in rows if r["status"] == "refused"])
        faults = [(r["seed"], kind, text) for r in rows for kind, text in r["faults"].items()]
        print_kinds("faults", faults, Path(folder) if args.minimise else None)
    totals = Counter(r["status"] for r in rows)
    print(f"{dict(totals)} of {len(rows)} in {time.monotonic() - start:.0f} s")
    sys.exit(1 if totals["fault"] else 0)


def run_all(seeds: Sequence[int], record: Path, folder: Path) -> None:
    """Every seed that the record does not hold, in a process of its own: one that dies is the fault of the seed it was at."""
    while left := sorted(set(seeds) - {r["seed"] for r in read_record(record)}):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                with record.open("a") as lines:
                    for seed in left:
                        print(json.dumps(judged(seed, folder)), file=lines, flush=True)
                code = 0
            except KeyboardInterrupt:
                code = 130
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code in (1, 130):
            sys.exit(code)
        if code and (left := sorted(set(left) - {r["seed"] for r in read_record(record)})):
            why = f"the process died of signal {-code}"
            row = {"seed": left[0], "status": "fault", "why": why, "kind": why, "faults": {why: why}, "operators": []}
            with record.open("a") as lines:
                print(json.dumps(row), file=lines)


def judged(seed: int, folder: Path) -> dict[str, Any]:
    made = sample(seed)
    verdict = judge(made, folder)
    kind = kind_of(verdict.why, verdict.names)
    row = {"seed": seed, "status": verdict.status, "why": verdict.why, "kind": kind, "faults": verdict.kinds}
    return row | {"operators": sorted(made.operators)}


def read_record(record: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []


def print_table(rows: list[dict[str, Any]]) -> None:
    """Networks accepted, refused and at fault that hold each operator; "named": the refusal names it."""
    tally: dict[str, Counter] = defaultdict(Counter)
    for r in rows:
        for op in r["operators"]:
            tally[op][r["status"]] += 1
            tally[op]["named"] += r["status"] == "refused" and op in r["why"]
    print(f"\n{'operator':24}{'accepted':>9}{'refused':>9}{'named':>7}{'faults':>8}  refused %")
    for op, t in sorted(tally.items()):
        share = 100 * t["refused"] / max(1, t["right"] + t["refused"] + t["fault"])
        print(f"{op:24}{t['right']:9}{t['refused']:9}{t['named']:7}{t['fault']:8}{share:9.1f}")


def print_kinds(title: str, found: list[tuple[int, str, str]], folder: Path | None = None) -> None:
    """(seed, kind, words) by kind, the commonest first; with a folder the smallest network of each."""
    kinds: dict[str, dict[int, str]] = defaultdict(dict)
    for seed, kind, words in found:
        kinds[kind][seed] = words
    print(f"\n{title}")
    for kind, seeds in sorted(kinds.items(), key=lambda k: -len(k[1])):
        first = next(iter(seeds))
        print(f"{len(seeds):6} {kind}\n       seeds {list(seeds)[:8]}; {seeds[first][:300]}")
        if folder is not None:
            print(indent(to_python(minimise(sample(first), kind, folder)), "           "), flush=True)


if __name__ == "__main__":
    main()
