"""A language model's artifact as the same page: perplexity, bytes and bits, tokens a second, KL block by block, continuations."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewbit.errors import FewbitError, MissingExtra
from fewbit.report import plot
from fewbit.report.numbers import percent, plain, ratio, size
from fewbit.report.page import page

PROMPTS = ("The robot walked to the door and", "Water boils when", "In the list of integers, the largest")
TOKENS = 40  # of each continuation

Words = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """What to compare with: the float checkpoint's folder, a text (its second half is read), windows of so many tokens."""

    source: Path | None = None
    text: Path | None = None
    windows: int = 4
    window: int = 512
    prompts: tuple[str, ...] = PROMPTS


def language(folder: Path, options: Options, progress: Callable[[str, int, int], None] = lambda what, done, of: None) -> str:
    """The page's text."""
    try:
        from fewbit.report import language_measure as measure
    except ImportError as e:
        raise MissingExtra((e.name or "transformers").split(".")[0], "llm") from None

    stored = measure.stored(folder)
    found, missing = _measured(folder, options, progress, measure)
    record = {"quantization": stored, "evidence": found}
    sections = [{"id": "answer", "title": "The answer"} | answer(folder.name, stored, found)]
    if "blocks" in found:
        shown = {"rows": blocks_table(found), "figure": blocks(found), "tokens": found["blocks_tokens"]}
        sections.append({"id": "blocks", "title": "Where the error comes in"} | shown)
    if "continuations" in found:
        sections.append({"id": "continuations", "title": "What they write", "rows": found["continuations"]})
    return page(folder.name, sections, missing, record)


def _measured(folder: Path, options: Options, progress: Any, measure: Any) -> tuple[Words, list[dict[str, str]]]:
    how = "fewbit report FOLDER -o REPORT.html --against MODEL_DIR --text TEXT.txt"
    if options.source is None:
        return {}, [{"what": "Perplexity, KL and continuations", "why": "They take the float model beside it.", "how": how}]
    if not options.source.is_dir():
        raise FewbitError(f"{options.source}: no such folder; give the folder of the float checkpoint")
    found: Words = measure.continuations(folder, options.source, options.prompts, TOKENS, progress)
    if options.text is None:
        return found, [{"what": "Perplexity and KL", "why": "They take a text.", "how": how}]
    return found | measure.losses(folder, options.source, options.text, options.windows, options.window, progress), []


def answer(name: str, stored: Words, found: Words) -> Words:
    """The sentence, three figures, what to do next."""
    bits = f"{stored['bits_per_weight']:.2f}"
    if "perplexity" in found:
        over = found["perplexity"] / found["perplexity_float"] - 1
        sentence = (
            f"At {bits} bits a weight this language model's perplexity is {plain(found['perplexity'])}: "
            f"{percent(abs(over))} {'over' if over >= 0 else 'under'} the float model's {plain(found['perplexity_float'])}."
        )
    else:
        sentence = (
            f"What {bits} bits a weight cost this language model is not known: nobody measured it beside its float original."
        )
    figures = [_perplexity(found), _bytes(stored, found, bits), _speed(found)]
    commands = [
        ("Let it write", f'fewbit llm generate {name} "The robot"'),
        ("Measure it on a text of your own", f"fewbit llm perplexity {name} --text TEXT.txt --against MODEL_DIR"),
        (
            "Spend bits where they are needed",
            f"fewbit llm quantize MODEL_DIR -o OUT --bits-per-weight {bits} --calibration TEXT.txt",
        ),
    ]
    about = [(k.replace("_", " "), str(v)) for k, v in stored.items() if not isinstance(v, dict)]
    return {"verdict": "none", "sentence": sentence, "figures": figures, "next": commands, "about": about}


def _perplexity(found: Words) -> Words:
    if "perplexity" not in found:
        return {"key": "perplexity", "title": "Perplexity", "value": "not known", "note": "", "rows": []}
    rows = [
        ("float32", plain(found["perplexity_float"])),
        ("this model", plain(found["perplexity"])),
        ("KL to float, nats", f"{found['kl']:.3g}"),
        ("same likeliest token", percent(found["top1_agreement"])),
    ]
    note = f"on {found['tokens']:,} tokens"
    return {"key": "perplexity", "title": "Perplexity", "value": plain(found["perplexity"]), "note": note, "rows": rows}


def _bytes(stored: Words, found: Words, bits: str) -> Words:
    rows = [("float", size(found["bytes_float"]))] if "bytes_float" in found else []
    rows += [("this folder", size(stored["bytes"])), ("packed layers", size(stored["packed_bytes"])), ("bits a weight", bits)]
    note = f"{ratio(stored['bytes'], found['bytes_float'])} times smaller than float" if "bytes_float" in found else ""
    return {"key": "size", "title": "Size", "value": size(stored["bytes"]), "note": note, "rows": rows}


def _speed(found: Words) -> Words:
    if "tokens_per_second" not in found:
        return {"key": "speed", "title": "Speed", "value": "not known", "note": "", "rows": []}
    ours, theirs = found["tokens_per_second"], found["tokens_per_second_float"]
    rows = [
        ("float32, PyTorch", f"{theirs:.3g} tokens/s"),
        ("this model", f"{ours:.3g} tokens/s"),
        ("threads", str(found["threads"])),
    ]
    faster = f"{ratio(theirs, ours)} times faster" if ours > theirs else f"{ratio(ours, theirs)} times slower"
    return {"key": "speed", "title": "Speed", "value": f"{ours:.3g} tokens/s", "note": f"{faster}, one text", "rows": rows}


def blocks_table(found: Words) -> list[Words]:
    rows = zip(found["blocks"], found["states"], strict=True)
    return [{"block": k, "kl": f"{kl:.3g}", "state": percent(error, 2)} for k, (kl, error) in enumerate(rows)]


def blocks(found: Words) -> Any:
    """KL of the output with one block quantized at a time, and the relative error of the hidden states behind each."""
    with plot.figure(2, height=4.2, sharex=True) as (made, axes):
        places = range(len(found["blocks"]))
        axes[0].bar(places, found["blocks"], color=plot.COLOUR["quantized"], width=0.7)
        axes[0].set_ylabel("KL, this block alone")
        axes[1].plot(places, [100 * v for v in found["states"]], "o-", color=plot.COLOUR["quantized"], markersize=4)
        axes[1].set_ylabel("hidden state's error, %")
        axes[1].set_ylim(bottom=0)
        axes[1].set_xlabel("block")
        for row in axes:
            row.grid(axis="x", visible=False)
        return plot.svg(made, "By block: KL with that block alone quantized, and the error of the hidden state with all so far.")
