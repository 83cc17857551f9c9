"""`fewbit llm generate FOLDER PROMPT`."""

import json as jsonlib
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from fewbit.cli import common
from fewbit.errors import FewbitError


def generate(
    folder: Annotated[Path, typer.Argument(help="what `fewbit llm quantize` wrote")],
    prompt: Annotated[str, typer.Argument(help="the text to go on from; a chat model's template is put around it")],
    max_tokens: Annotated[int, typer.Option(help="new tokens at most")] = 256,
    threads: Annotated[int | None, typer.Option(help="threads; torch's own number without")] = None,
    temperature: Annotated[float, typer.Option(help="0: the likeliest token each time")] = 0.0,
    seed: Annotated[int | None, typer.Option(help="of the draws at a temperature above 0 (default 0)")] = None,
    activations: Annotated[str, typer.Option(help="int8, or float: slower, the weights' error alone")] = "int8",
    kv: Annotated[str, typer.Option(help="int8: keys and values of what was read in a quarter of the bytes; float")] = "",
    raw: Annotated[bool, typer.Option("--raw", help="the prompt as it stands, without the chat template")] = False,
    json: Annotated[bool, typer.Option("--json", help="one JSON object on standard output, at the end")] = False,
) -> int:
    """Write on from a prompt, word by word, with transformers' own generate over packed weights."""
    given = {
        "--max-tokens": (max_tokens, 1),
        "--threads": (1 if threads is None else threads, 1),
        "--temperature": (temperature, 0),
    }
    for name, (value, least) in given.items():
        if not least <= value < 1 << 20:
            raise FewbitError(f"{name} {value}: give a number from {least}")
    if temperature == 0:
        common.belongs("--temperature above 0", {"--seed": seed})
    common.needs("llm", "torch", "safetensors", "transformers")
    from fewbit.llm import kv_cache
    from fewbit.llm.loading import load

    if kv not in kv_cache.KINDS:
        raise FewbitError(f"--kv {kv}: int8, or leave it out")
    import torch  # isort: skip

    if threads:
        torch.set_num_threads(threads)
    model, tokenizer = load(folder, threads, activations)
    record = run(
        model, tokenizer, prompt, max_tokens, temperature, seed or 0, raw, not json, kv_cache.arguments(model) if kv else {}
    )
    if json:
        print(jsonlib.dumps(record))
    else:
        rate = record["tokens_per_second"]
        print(f"{record['tokens']} tokens" + (f", {rate:.1f} a second" if rate else ""), file=sys.stderr)
    return 0


def run(
    model: Any,
    tokenizer: Any,
    prompt: str,
    max_tokens: int,
    temperature: float,
    seed: int,
    raw: bool,
    show: bool,
    cache: dict[str, Any],
) -> dict[str, Any]:
    """Generate, streaming the text to standard output if `show`; the record that --json prints. cache: of llm/kv_cache, or {}."""
    import torch
    import transformers

    from fewbit.llm import blocks

    torch.manual_seed(seed)
    inputs = encode(tokenizer, prompt, raw)
    length = inputs["input_ids"].shape[1]
    blocks.check_ids(model, inputs["input_ids"], getattr(model, "name_or_path", "") or type(model).__name__)
    most = blocks.positions(model)
    if most is not None and length + max_tokens > most + 1:  # the last token is written, not read
        raise FewbitError(
            f"the prompt has {length} tokens and the model's table of positions {most}; give --max-tokens {most + 1 - length} "
            "at most, or a shorter prompt"
        )
    clock = _Clock(tokenizer, show)
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    transformers.logging.set_verbosity_error()
    out = model.generate(**inputs, **sampling, **cache, max_new_tokens=max_tokens, streamer=clock)
    new = out[0][length:]
    return {
        "text": tokenizer.decode(new, skip_special_tokens=True),
        "prompt_tokens": length,
        "tokens": len(new),
        "tokens_per_second": clock.rate(),
        "first_token_seconds": clock.first - clock.start,
        "model_bytes": model.get_memory_footprint(),
        "peak_memory_bytes": peak_memory(),
    }


def encode(tokenizer: Any, prompt: str, raw: bool) -> dict[str, Any]:
    """input_ids and attention_mask [1, length] of the prompt, in the chat template where there is one, unless raw."""
    if any("\ud800" <= c <= "\udfff" for c in prompt):
        raise FewbitError("the prompt holds half a character (a lone surrogate, bytes that are not UTF-8); give it as UTF-8 text")
    if raw or not getattr(tokenizer, "chat_template", None):
        found = tokenizer(prompt, return_tensors="pt")
    else:
        chat = [{"role": "user", "content": prompt}]
        found = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    if found["input_ids"].shape[1] == 0:
        raise FewbitError("the prompt is empty; give at least one word")
    return {k: v for k, v in found.items() if k in ("input_ids", "attention_mask")}


class _Clock:
    """A streamer of transformers: text as it comes (if shown), and when each token came."""

    def __init__(self, tokenizer: Any, show: bool):
        from transformers import TextStreamer

        self._text = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True) if show else None
        self.start = self.first = self.last = time.perf_counter()
        self._puts = 0

    def put(self, value: Any) -> None:
        self._puts += 1  # the first is the prompt
        self.last = time.perf_counter()
        if self._puts == 2:
            self.first = self.last
        if self._text:
            self._text.put(value)

    def end(self) -> None:
        if self._text:
            self._text.end()

    def rate(self) -> float | None:
        """Tokens a second after the first, whose time is the prompt's; None of one token."""
        return (self._puts - 2) / (self.last - self.first) if self._puts > 2 else None


def peak_memory() -> int | None:
    """Bytes that this process has held at most; None where the system does not say."""
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
