"""Random ONNX networks through fewbit, many of them: accepted and refused for each operator, every fault with its seed.

python benchmarks/random_graphs.py --count 20000 --first 0 [--minimise] [--json results.json]
"""

import argparse
import json
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from textwrap import indent

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from random_graphs.minimise import minimise, to_python  # noqa: E402
from random_graphs.sample import sample  # noqa: E402
from random_graphs.verdict import Verdict, judge, kind_of  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--minimise", action="store_true", help="the smallest network of each kind of fault, as text")
    parser.add_argument("--seeds", help="these alone, with commas")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    start = time.monotonic()
    verdicts: dict[int, Verdict] = {}
    tally: dict[str, Counter] = defaultdict(Counter)
    with tempfile.TemporaryDirectory() as folder:
        seeds = [int(s) for s in args.seeds.split(",")] if args.seeds else range(args.first, args.first + args.count)
        for seed in seeds:
            made = sample(seed)
            verdicts[seed] = verdict = judge(made, Path(folder))
            for op in made.operators:
                tally[op][verdict.status] += 1
                tally[op]["named"] += verdict.status == "refused" and op in verdict.why
        print_table(tally)
        print_refusals(verdicts)
        print_faults(verdicts, Path(folder) if args.minimise else None)
    totals = Counter(v.status for v in verdicts.values())
    print(f"{dict(totals)} of {len(verdicts)} in {time.monotonic() - start:.0f} s")
    if args.json:
        rows = {str(k): {"status": v.status, "why": v.why} for k, v in verdicts.items() if v.status != "right"}
        args.json.write_text(json.dumps({"operators": tally, "totals": totals, "not_right": rows}, indent=1))
    sys.exit(1 if totals["fault"] else 0)


def print_table(tally: dict[str, Counter]) -> None:
    print(f"\n{'operator':24}{'accepted':>9}{'refused':>9}{'named':>7}{'faults':>8}  refused %")
    for op in sorted(tally):
        t = tally[op]
        share = 100 * t["refused"] / max(1, t["right"] + t["refused"] + t["fault"])
        print(f"{op:24}{t['right']:9}{t['refused']:9}{t['named']:7}{t['fault']:8}{share:9.1f}")


def print_refusals(verdicts: dict[int, Verdict]) -> None:
    """The words of refusals with names taken out, the commonest first."""
    found = defaultdict(list)
    for seed, v in verdicts.items():
        if v.status == "refused":
            found[kind_of(v.why, v.names)].append(seed)
    print("\nrefusals")
    for words, seeds in sorted(found.items(), key=lambda r: -len(r[1])):
        print(f"{len(seeds):6} {words[:200]}  (seed {seeds[0]})")


def print_faults(verdicts: dict[int, Verdict], folder: Path | None) -> None:
    kinds: dict[str, dict[int, str]] = defaultdict(dict)
    for seed, v in verdicts.items():
        for kind, fault in v.kinds.items():
            kinds[kind][seed] = fault
    print("\nfaults")
    for kind, seeds in sorted(kinds.items(), key=lambda r: -len(r[1])):
        first = next(iter(seeds))
        print(f"{len(seeds):6} {kind}\n       seeds {list(seeds)[:8]}; {seeds[first][:300]}")
        if folder is not None:
            print(indent(to_python(minimise(sample(first), kind, folder)), "           "), flush=True)


if __name__ == "__main__":
    main()
