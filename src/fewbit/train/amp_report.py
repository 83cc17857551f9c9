"""What MixedPrecision saw, as records and as text: a table by layer, the histogram of gradient exponents, a recommendation.

Read at scale 1, because a histogram has its loss scale divided out: "float16 would lose" is what it loses without loss scaling.
"""

import math
from dataclasses import dataclass

import torch

from fewbit.numerics.formats import FLOATS, FloatFormat
from fewbit.train.gradients import BINS, NONFINITE, SINGLE, Kept, fate, kept, largest_scale, present
from fewbit.train.watch import OUTPUTS, WEIGHTS, Watch

HALF = FLOATS["float16"]
TOO_MANY = 0.01  # share of a kind of gradient, in some layer, that may become zero or lose digits; our choice, not a law
ROWS = 20  # of the printed histogram


@dataclass(frozen=True)
class Seen:
    """Gradients of one kind in one layer. Counts are elements over all sampled steps; underflowed is None where it was not asked.

    zeros: as they came back at the run's loss scale; float16: what float16 would keep of those that are not zero, without a loss
    scale; histogram: the count of each exponent field, as train/gradients has it (of the second backward, where there was one).
    """

    elements: int
    zeros: int
    nonfinite: int
    underflowed: int | None
    asked: int
    float16: Kept
    histogram: tuple[int, ...]


@dataclass(frozen=True)
class LayerReport:
    """overflowed: skipped steps on which its gradients were not finite; began: those of them with no such layer after it."""

    name: str
    largest_output: float
    overflowed: int
    began: int
    outputs: Seen
    weights: Seen


@dataclass(frozen=True)
class Recommendation:
    """A format name, whether to scale the loss in it, and the numbers that say so."""

    format: str
    scaling: bool
    reason: str


@dataclass(frozen=True)
class Report:
    """str() of it is the text for people. scale: the present loss scale; skipped: steps by optimizer, in the order given."""

    format: str
    reason: str
    scale: float
    steps: int
    skipped: tuple[int, ...]
    sampled: int
    infinite_losses: int
    layers: tuple[LayerReport, ...]
    recommendation: Recommendation

    def __str__(self) -> str:
        return text(self)


def seen(watch: Watch, layer: int, kind: int) -> Seen:
    counts = watch.counts["histogram"][layer, kind]
    asked, lost = int(watch.counts["asked"][layer, kind]), int(watch.counts["lost"][layer, kind])
    numbers = tuple(int(v) for v in counts)
    total = sum(numbers)
    zeros = int(watch.counts["zeros"][layer, kind])
    return Seen(total, zeros, numbers[NONFINITE], lost if asked else None, asked, kept(counts, HALF), numbers)


def layer_reports(watch: Watch) -> tuple[LayerReport, ...]:
    c = watch.counts
    return tuple(
        LayerReport(
            layer.name,
            float(c["largest"][k]),
            int(c["overflowed"][k]),
            int(c["began"][k]),
            seen(watch, k, OUTPUTS),
            seen(watch, k, WEIGHTS),
        )
        for k, layer in enumerate(watch.layers)
    )


def gradients(layers: tuple[LayerReport, ...]) -> list[tuple[str, Seen]]:
    """(where, what was seen) of every kind of gradient in every layer that had any."""
    kinds = [(f"{kind} gradients of {r.name}", s) for r in layers for kind, s in (("output", r.outputs), ("weight", r.weights))]
    return [(where, s) for where, s in kinds if s.elements]


def recommend(layers: tuple[LayerReport, ...], format: FloatFormat, infinite_losses: int = 0) -> Recommendation:
    """float16 or bfloat16 for the run that layers tell of, and whether to scale the loss; bfloat16 if nothing was seen.

    format: the run's. The rules, first that holds: an output past float16's largest value, bfloat16 (a loss scale leaves the
    forward pass as it is); gradients that span more than float16 holds at any scale, bfloat16; gradients that underflow at scale
    1, bfloat16 or float16 with scaling; otherwise float16, whose steps are finer.
    """
    found = gradients(layers)
    if not found:
        return Recommendation("bfloat16", False, "no gradients were sampled; bfloat16 has float32's range")
    big = max(layers, key=lambda r: r.largest_output)
    if big.largest_output > HALF.max:
        told = f"outputs of {big.name} reach {big.largest_output:.3g}, past float16's {HALF.max:g}"
        return Recommendation("bfloat16", False, f"{told}; a loss scale does not help the forward pass")
    if infinite_losses:
        wide = format.exponent_bits == SINGLE.exponent_bits
        cause = (
            f"though {format.name} has float32's range: look for it in the data and the step" if wide else "which no scale cures"
        )
        return Recommendation("bfloat16", False, f"the loss was not finite on {infinite_losses} steps, {cause}")
    total = torch.tensor([s.histogram for _, s in found]).sum(0)
    best = largest_scale(total, HALF)
    return _by_gradients(found, best)


def _by_gradients(found: list[tuple[str, Seen]], best: float) -> Recommendation:
    steps = {True: HALF.epsilon, False: FLOATS["bfloat16"].epsilon}
    where, worst = max(found, key=lambda f: _gone(f[1]))
    scaled = {w: kept(torch.tensor(s.histogram), HALF, best) for w, s in found}
    still = max(scaled, key=lambda w: scaled[w].lost)
    power = f"2^{round(math.log2(best))}"
    told = f"unscaled float16 makes {_gone(worst):.1%} of the {where} zero (below {HALF.smallest_subnormal / 2:.1e})"
    digits = max(s.float16.subnormal for _, s in found)
    if scaled[still].lost > TOO_MANY:
        also = f"at {power}, the largest scale that overflows nothing, still {scaled[still].lost:.1%} of the {still}"
        return Recommendation("bfloat16", False, f"{told}, and {also}: they span more than float16 holds")
    if _gone(worst) > TOO_MANY or digits > TOO_MANY:
        least = f"2^{round(math.log2(enough([s for _, s in found], best)))}"
        cure = f"bfloat16 loses none; or float16 with a loss scale: {least} is enough, {power} the most before it overflows"
        dim = f"up to {digits:.1%} of a layer's are subnormal there and lose digits"
        return Recommendation("bfloat16", False, f"{told}; {dim}; {cure}")
    fine = f"its steps ({steps[True]:.1e}) are {steps[False] / steps[True]:.0f} times finer than bfloat16's"
    return Recommendation("float16", True, f"{told}; {fine}; scaling costs nothing here and guards against smaller ones")


def enough(found: list[Seen], best: float) -> float:
    """The smallest power of two, up to best, at which float16 makes no more than TOO_MANY of any of these zero or subnormal."""
    for power in range(round(math.log2(best))):
        if all(max((k := kept(torch.tensor(s.histogram), HALF, 2.0**power)).lost, k.subnormal) <= TOO_MANY for s in found):
            return 2.0**power
    return best


def _gone(s: Seen) -> float:
    """The share lost to float16 at scale 1: shown to have underflowed already, or such that it would."""
    return max(s.float16.lost, s.underflowed / s.asked if s.underflowed is not None else 0.0)


def text(r: Report) -> str:
    """The report for people: heading, table, histogram, recommendation."""
    skipped = " and ".join(str(n) for n in r.skipped)
    head = f"{r.format} ({r.reason}), loss scale {r.scale:g}; {r.steps} steps, {skipped} skipped, {r.sampled} sampled"
    loss = f"\nthe loss was not finite on {r.infinite_losses} skipped steps" if r.infinite_losses else ""
    advice = r.recommendation
    named = advice.format + (" with loss scaling" if advice.scaling else "")
    return "\n".join(
        [
            head + loss,
            "",
            *table(r.layers),
            "",
            *bars(r),
            "",
            f"recommended: {named}",
            *(f"  {part}" for part in advice.reason.split("; ")),
        ]
    )


def table(layers: tuple[LayerReport, ...]) -> list[str]:
    """One line a layer. Of both kinds of gradients, in percent: zero, underflowed, and lost if float16 were not scaled."""
    width = max([len(r.name) for r in layers] + [5])
    lines = [
        f"{'':{width}}  largest     overflowed   output gradients, %          weight gradients, %",
        f"{'layer':{width}}  output      (began)      zero  underflow  unscaled    zero  underflow  unscaled",
    ]
    for r in layers:
        cells = "    ".join(_percent(s) for s in (r.outputs, r.weights))
        lines.append(f"{r.name:{width}}  {r.largest_output:<10.3g}  {f'{r.overflowed} ({r.began})':11}  {cells}")
    return lines


def _percent(s: Seen) -> str:
    if not s.elements:
        return f"{'-':>4}  {'-':>9}  {'-':>8}"
    underflow = "-" if s.underflowed is None else f"{100 * s.underflowed / s.asked:.1f}"
    return f"{100 * s.zeros / s.elements:4.0f}  {underflow:>9}  {100 * s.float16.lost:8.1f}"


def bars(r: Report) -> list[str]:
    """The histogram of all gradients' exponents, what float16 makes of each range without a scale and with the best one."""
    total = torch.tensor([s.histogram for _, s in gradients(r.layers)] or [[0] * BINS]).sum(0)
    bins = present(total)
    if not bins:
        return ["no gradients were sampled"]
    best = largest_scale(total, HALF)
    width = -(-(bins[-1] - bins[0] + 1) // ROWS)
    lines = [f"{'magnitude of gradients':36} share  {'float16':16} float16, loss * 2^{round(math.log2(best))}"]
    sums = {first: int(total[first : first + width].sum()) for first in range(bins[0], bins[-1] + 1, width)}
    for first, count in sums.items():
        low = first - SINGLE.bias
        fates = [_fates(range(low, low + width), HALF, shift) for shift in (0, round(math.log2(best)))]
        bar, share = "#" * round(20 * count / max(sums.values())), count / sum(sums.values())
        lines.append(f"2^{low:<4} to 2^{low + width:<4} {bar:20} {share:6.1%}  {fates[0]:16} {fates[1]}")
    return lines


def _fates(exponents: range, fmt: FloatFormat, shift: int) -> str:
    names = dict.fromkeys(fate(e + shift, fmt) for e in exponents)
    return " ".join(names)
