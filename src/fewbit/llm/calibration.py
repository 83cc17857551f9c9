"""Text to ids: samples to calibrate on, windows to measure on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fewbit.errors import FewbitError, MissingExtra, first_line

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tokenizer_config.json")


@dataclass(frozen=True)
class Beginning:
    """What the tokenizer puts before every text, BOS with most that put anything: its ids, and their names for the reader."""

    ids: tuple[int, ...] = ()
    names: str = ""


NOTHING = Beginning()


def tokens(folder: Path, text: Path) -> torch.Tensor:
    """int64 [n]: the whole text by the folder's own tokenizer, no special tokens added."""
    try:
        content = text.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise FewbitError(f"{text}: not UTF-8 text") from None
    found = load_tokenizer(folder)(content, add_special_tokens=False, verbose=False)
    return torch.tensor(found["input_ids"], dtype=torch.int64)


def beginning(folder: Path) -> Beginning:
    """Of the folder's tokenizer. A model that was trained so (Gemma, Llama 3) is another one without it."""
    tokenizer = load_tokenizer(folder)
    alone = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    before = next((k for k in range(len(whole)) if whole[k : k + len(alone)] == alone), 0)
    ids = tuple(whole[:before])
    return Beginning(ids, " ".join(map(str, tokenizer.convert_ids_to_tokens(list(ids)))))


def load_tokenizer(folder: Path) -> Any:
    """The folder's own tokenizer, as transformers makes it."""
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise MissingExtra("transformers", "llm") from None
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as e:
        if not any((folder / name).exists() for name in TOKENIZER_FILES):
            raise FewbitError(
                f"{folder}: no tokenizer in it ({', '.join(TOKENIZER_FILES)}); copy the checkpoint's tokenizer files there"
            ) from None
        raise FewbitError(f"{folder}: its tokenizer cannot be loaded: {first_line(e)}") from None


def samples(ids: torch.Tensor, count: int, length: int, where: str, first: Beginning = NOTHING) -> torch.Tensor:
    """int64 [count, length], spread evenly over the ids, each begun as the tokenizer begins a text; they overlap where there
    are too few ids."""
    own = length - len(first.ids)  # of the text
    if count < 1 or own < 2 - bool(first.ids):
        raise FewbitError(f"--samples {count} --length {length}: give at least one sample of two tokens")
    if len(ids) < own + count - 1:
        raise FewbitError(
            f"{where}: {len(ids)} tokens are too few to calibrate on; {count} samples of {own} need {own + count - 1}"
            f" at least, and better {count * own}"
        )
    starts = [k * (len(ids) - own) // max(count - 1, 1) for k in range(count)]
    return _begun([ids[s : s + own] for s in starts], first)


def windows(
    ids: torch.Tensor,
    length: int,
    stride: int | None,
    start: float,
    count: int | None,
    where: str,
    first: Beginning = NOTHING,
) -> torch.Tensor:
    """int64 [windows, length], each begun as the tokenizer begins a text, every `stride` tokens (one behind the other without)
    from the share `start` of the text on; count: at most so many."""
    begin, own = int(len(ids) * start), length - len(first.ids)
    if own < 1:
        raise FewbitError(f"--window {length}: no room for text behind {first.names}; give a larger one")
    starts = range(begin, len(ids) - own + 1, stride or own)[:count]
    if not starts:
        raise FewbitError(f"{where}: {len(ids) - begin} tokens from there on do not fill one window of {own}; give more text")
    return _begun([ids[s : s + own] for s in starts], first)


def _begun(pieces: list[torch.Tensor], first: Beginning) -> torch.Tensor:
    return torch.stack([torch.cat([torch.tensor(first.ids, dtype=torch.int64), piece]) for piece in pieces])
