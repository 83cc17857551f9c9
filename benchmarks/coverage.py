"""How often the 95% interval of "kept" holds the truth, on made-up returns with rare failures, and how wide it is.

    python benchmarks/coverage.py -o benchmarks/results/coverage.md [--trials 1000]

Both policies' returns are drawn: a distribution of mean 100, and with a probability of its own each fails and returns about
what random actions do, 0. Beside it the interval of fewbit 0.1, the wider of a bootstrap-t and Student's (1.96 standard
errors from 100 episodes on).
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fewbit.rl.evidence import judge, student_975

Draw = Callable[[np.random.Generator, int], np.ndarray]  # -> n numbers of mean 0 and standard deviation 1, or none

LEVEL, RANDOM, FAILED = 100.0, 2.0, 2.0  # a good episode; scatter of random actions' returns and of failures, around 0
EPISODES = (20, 40, 100)
FAILURES = (0.0, 0.005, 0.01, 0.025, 0.05, 0.1)
PAIRS = [(p, p) for p in FAILURES] + [(0.0, p) for p in FAILURES[1:]] + [(p, 0.0) for p in FAILURES[1:]]
BEFORE_TRIALS, RESAMPLES = 10, 1000  # the interval of 0.1: one trial in so many, with so many resamples

DISTRIBUTIONS: dict[str, tuple[float, Draw]] = {  # scatter, drawn how
    "all alike": (0.0, lambda rng, n: np.zeros(n)),
    "normal, 1%": (1.0, lambda rng, n: rng.normal(0, 1, n)),
    "normal, 15%": (15.0, lambda rng, n: rng.normal(0, 1, n)),
    "normal, 50%": (50.0, lambda rng, n: rng.normal(0, 1, n)),
    "skewed to the left, 15%": (15.0, lambda rng, n: 1 - rng.exponential(1, n)),
    "skewed to the right, 15%": (15.0, lambda rng, n: rng.exponential(1, n) - 1),
    "skewed to the right, 100%": (100.0, lambda rng, n: rng.exponential(1, n) - 1),
    "two humps, 15%": (15.0, lambda rng, n: np.where(rng.random(n) < 0.3, -1.5, 1.5 * 3 / 7) + rng.normal(0, 0.1, n)),
    "five steps, 15%": (15.0, lambda rng, n: rng.binomial(4, 0.8, n) / 0.8 - 4),
    "succeeds or not, 75%": (100 / 3**0.5, lambda rng, n: np.where(rng.random(n) < 0.75, 1 / 3**0.5, -(3**0.5))),
}


@dataclass(frozen=True)
class Cell:
    """One distribution, number of episodes and pair of failure probabilities: shares covered and mean widths, now and before."""

    name: str
    n: int
    failures: tuple[float, float]
    defined: float
    covered: float
    width: float
    covered_before: float
    width_before: float


def returns(rng: np.random.Generator, name: str, n: int, failure: float) -> np.ndarray:
    """[n] episodes of one policy."""
    scatter, draw = DISTRIBUTIONS[name]
    good, failed = LEVEL + scatter * draw(rng, n), rng.normal(0, FAILED, n)
    return np.where(rng.random(n) < failure, failed, good)


def cell(name: str, n: int, failures: tuple[float, float], trials: int) -> Cell:
    """Draws trials of it; the random policy's mean is 0, so that the truth is a ratio of what does not fail."""
    rng = np.random.default_rng([list(DISTRIBUTIONS).index(name), n, *(round(1000 * p) for p in failures)])
    truth = (1 - failures[1]) / (1 - failures[0])
    now, before, defined = [], [], 0
    for trial in range(trials):
        f, q = (returns(rng, name, n, p) for p in failures)
        r = rng.normal(0, RANDOM, 20)
        found = judge(f, q, r, 0.95)
        if found.low is None or found.high is None:
            continue
        defined += 1
        now.append((found.low, found.high))
        if trial % BEFORE_TRIALS == 0:
            before.append(interval_before(f, q, r, trial))
    hits = [np.mean([low - 1e-12 <= truth <= high + 1e-12 for low, high in pairs]) for pairs in (now, before)]
    widths = [np.mean([high - low for low, high in pairs]) for pairs in (now, before)]
    return Cell(name, n, failures, defined / trials, float(hits[0]), float(widths[0]), float(hits[1]), float(widths[1]))


def interval_before(f: np.ndarray, q: np.ndarray, r: np.ndarray, seed: int) -> tuple[float, float]:
    """The interval of fewbit 0.1."""
    k, se = (float(v[0]) for v in _kept(f[None], q[None], r[None]))
    if se <= 1e-12:
        return k, k
    if len(f) >= 100:
        return k - 1.96 * se, k + 1.96 * se
    rng = np.random.default_rng(seed)
    pairs, others = rng.integers(0, len(f), (RESAMPLES, len(f))), rng.integers(0, len(r), (RESAMPLES, len(r)))
    drawn, error = _kept(f[pairs], q[pairs], r[others])
    t = (drawn[error > 0] - k) / error[error > 0]
    student = student_975(min(len(f), len(r)) - 1)
    return k - se * max(np.quantile(t, 0.975), student), k + se * max(-np.quantile(t, 0.025), student)


def _kept(f: np.ndarray, q: np.ndarray, r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """kept and its standard error (delta method) of each row."""
    fm, qm, rm = (a.mean(axis=1) for a in (f, q, r))
    span = np.where(fm > rm, fm - rm, np.nan)
    k = (qm - rm) / span
    pair = (q - k[:, None] * f).var(axis=1, ddof=1) / f.shape[1]
    rand = ((k - 1)[:, None] * r).var(axis=1, ddof=1) / r.shape[1]
    return np.nan_to_num(k), np.nan_to_num(np.sqrt(pair + rand) / span)


def lines(cells: list[Cell], trials: int) -> Iterator[str]:
    yield "# How often the interval holds the truth"
    yield ""
    yield f"`python benchmarks/coverage.py`, {trials} trials a cell (those of 0.1: {trials // BEFORE_TRIALS}), seeds fixed."
    yield "Returns of mean 100 with the scatter named, random actions around 0; float and quantized policy fail independently,"
    yield "with the same probability (0, 0.5, 1, 2.5, 5 or 10%), or only one of them does: 16 cells a line. Worst: the lowest"
    yield "share of the 16, with the failure probabilities (float, quantized) where it was found. Width: the mean of high - low"
    yield "where nothing fails, in percent of kept. Two standard errors of a share of 95% are"
    yield f"{2 * (0.95 * 0.05 / trials) ** 0.5:.1%}, the worst of 16 is about that much lower than the truth."
    yield ""
    yield "| returns | episodes | covered, worst | where | mean | width | 0.1: worst | mean | width |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for name in DISTRIBUTIONS:
        for n in EPISODES:
            some = [c for c in cells if c.name == name and c.n == n]
            worst, whole = min(some, key=lambda c: c.covered), next(c for c in some if c.failures == (0.0, 0.0))
            where = ", ".join(f"{100 * p:g}%" for p in worst.failures)
            mean, mean_before = (np.mean([getattr(c, k) for c in some]) for k in ("covered", "covered_before"))
            before = min(c.covered_before for c in some)
            yield (
                f"| {name} | {n} | {worst.covered:.1%} | {where} | {mean:.1%} | {whole.width:.1%} | "
                f"{before:.1%} | {mean_before:.1%} | {whole.width_before:.1%} |"
            )
    yield ""
    low = min(cells, key=lambda c: c.covered)
    yield f"The lowest of all {len(cells)} cells: {low.covered:.1%} ({low.name}, {low.n} episodes)."
    yield f"Undefined, since the float policy was no better than random actions: {1 - np.mean([c.defined for c in cells]):.2%}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", type=Path, default=Path("benchmarks/results/coverage.md"))
    parser.add_argument("--trials", type=int, default=1000)
    given = parser.parse_args()
    cells = [cell(name, n, pair, given.trials) for name in DISTRIBUTIONS for n in EPISODES for pair in PAIRS]
    given.o.write_text("\n".join(lines(cells, given.trials)) + "\n")


if __name__ == "__main__":
    main()
