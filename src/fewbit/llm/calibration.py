"""Text to ids: samples to calibrate on, windows to measure on."""

from pathlib import Path

import torch

from fewbit.errors import FewbitError, MissingExtra, first_line


def tokens(folder: Path, text: Path) -> torch.Tensor:
    """int64 [n]: the whole text by the folder's own tokenizer, no special tokens added."""
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise MissingExtra("transformers", "llm") from None
    try:
        content = text.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise FewbitError(f"{text}: not UTF-8 text") from None
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as e:
        raise FewbitError(f"{folder}: its tokenizer cannot be loaded: {first_line(e)}") from None
    return torch.tensor(tokenizer(content, add_special_tokens=False, verbose=False)["input_ids"], dtype=torch.int64)


def samples(ids: torch.Tensor, count: int, length: int, where: str) -> torch.Tensor:
    """int64 [count, length], spread evenly over the ids; they overlap where there are fewer than count * length."""
    if count < 1 or length < 2:
        raise FewbitError(f"--samples {count} --length {length}: give at least one sample of two tokens")
    if len(ids) < length + count - 1:
        raise FewbitError(
            f"{where}: {len(ids)} tokens are too few to calibrate on; {count} samples of {length} need {length + count - 1}"
            f" at least, and better {count * length}"
        )
    starts = [k * (len(ids) - length) // max(count - 1, 1) for k in range(count)]
    return torch.stack([ids[s : s + length] for s in starts])


def windows(ids: torch.Tensor, length: int, stride: int, start: float, count: int | None, where: str) -> torch.Tensor:
    """int64 [windows, length], every `stride` tokens from the share `start` of the text on; count: at most so many."""
    begin = int(len(ids) * start)
    starts = range(begin, len(ids) - length + 1, stride)[:count]
    if not starts:
        raise FewbitError(f"{where}: {len(ids) - begin} tokens from there on do not fill one window of {length}; give more text")
    return torch.stack([ids[s : s + length] for s in starts])
