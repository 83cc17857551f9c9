"""A tokenizer.json as GGUF metadata, as llama.cpp's converter writes it; byte-level BPE only.

llama.cpp splits text before its merges by rules of its own, each under a name; the name is found from the pre-tokenizer itself.
"""

import re
from pathlib import Path
from typing import Any

from fewbit import checkpoint
from fewbit.errors import FewbitError

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS: dict[tuple[Any, ...], str] = {  # (kind, pattern) of each step -> llama.cpp's name
    (("ByteLevel", True),): "gpt-2",
    (("Digits", True), ("ByteLevel", True)): "smollm",
    (("Split", WORDS % "{1,3}"), ("ByteLevel", False)): "llama-bpe",
    (("Split", WORDS % ""), ("ByteLevel", False)): "qwen2",
}
SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}


def metadata(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """tokenizer.* of the folder's tokenizer; config.json says how many tokens the model has, and names special ones."""
    path = folder / "tokenizer.json"
    held = checkpoint.read_json(path, "llama.cpp needs the tokenizer in its file")
    settings = folder / "tokenizer_config.json"
    options = checkpoint.read_json(settings, "") if settings.exists() else {}
    model: Any = held.get("model", {})
    try:
        tokens, types = _tokens(held, model, int(config["vocab_size"]), path)
        merges = [m if isinstance(m, str) else " ".join(m) for m in model.get("merges", [])]
        found: dict[str, Any] = {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": _split(held, model, path),
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": types,
            "tokenizer.ggml.merges": merges,
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        raise FewbitError(f"{path}: not the tokenizer of a byte-level BPE model; save it again with transformers") from None
    _check_text(held, path)
    found |= _special(tokens, options, config)
    return found | _added(folder, found) | _templates(folder, options)


def _check_text(held: dict[str, Any], path: Path) -> None:
    """What is done to a text before it is split, where llama.cpp does nothing. (It leaves out NFC, of Qwen's tokenizers too.)"""
    normalizer = held.get("normalizer") or {}
    steps = [str(step.get("type")) for step in normalizer.get("normalizers", [normalizer] if normalizer else [])]
    changes = next((s for s in steps if s != "NFC"), "")
    if changes:
        raise FewbitError(f"{path}: it changes texts ({changes[:40]}) before it splits them, which llama.cpp does not")
    for token in held.get("added_tokens", []):
        greedy = next((k for k in ("lstrip", "rstrip", "single_word") if token.get(k)), "")
        if greedy:
            raise FewbitError(f"{path}: the token {str(token.get('content'))[:40]} has {greedy}, which a GGUF file cannot say")


def _added(folder: Path, found: dict[str, Any]) -> dict[str, Any]:
    """What the tokenizer puts before and behind every text, seen on one; no file says it reliably (a template, a setting)."""
    from fewbit.llm.calibration import load_tokenizer

    tokenizer = load_tokenizer(folder)
    whole, bare = (list(tokenizer("a", add_special_tokens=added)["input_ids"]) for added in (True, False))
    at = next((k for k in range(len(whole)) if whole[k : k + len(bare)] == bare), 0)
    before, behind = whole[:at], whole[at + len(bare) :]
    eos = found.get("tokenizer.ggml.eos_token_id")
    if before + bare + behind != whole or len(before) > 1 or behind not in ([], [eos]):
        raise FewbitError(
            f"{folder}: its tokenizer makes {whole[:12]} of a text whose tokens are {bare[:12]}; a GGUF file can say one token "
            "before each text and the end-of-sequence token behind"
        )
    keys = {"tokenizer.ggml.add_bos_token": bool(before), "tokenizer.ggml.add_eos_token": bool(behind)}
    return keys | ({"tokenizer.ggml.bos_token_id": before[0]} if before else {})


def _templates(folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """The chat template, and others by name, from wherever transformers keeps them."""
    held = options.get("chat_template")
    named = {str(t["name"]): t["template"] for t in held if isinstance(t, dict)} if isinstance(held, list) else {"default": held}
    files = {"default": folder / "chat_template.jinja"}
    files |= {p.stem: p for p in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    named |= {name: path.read_text(encoding="utf-8") for name, path in files.items() if path.exists()}
    others = {re.sub(r"\W", "_", n, flags=re.ASCII): t for n, t in named.items() if n != "default" and isinstance(t, str)}
    found: dict[str, Any] = {f"tokenizer.chat_template.{n}": t for n, t in others.items()}
    found |= {"tokenizer.chat_templates": sorted(others)} if others else {}
    return found | ({"tokenizer.chat_template": named["default"]} if isinstance(named.get("default"), str) else {})


def _split(held: dict[str, Any], model: dict[str, Any], path: Path) -> str:
    pre = held.get("pre_tokenizer") or {}
    steps = pre.get("pretokenizers", [pre])
    kinds = []
    for step in steps:
        own: Any = {"ByteLevel": "use_regex", "Digits": "individual_digits"}.get(step.get("type", ""))
        pattern = step.get("pattern")
        kinds.append((step.get("type"), step.get(own) if own else pattern.get("Regex") if isinstance(pattern, dict) else None))
    name = SPLITS.get(tuple(kinds))
    spaced = any(step.get("add_prefix_space") for step in steps)
    if model.get("type") != "BPE" or name is None or spaced or model.get("byte_fallback"):
        kind = " then ".join(str(k) for k, _ in kinds)[:80]
        raise FewbitError(
            f"{path}: a {str(model.get('type'))[:20]} tokenizer that splits by {kind} is none whose name in llama.cpp is known "
            f"here ({', '.join(SPLITS.values())}); convert the model with llama.cpp's own script"
        )
    return name


def _tokens(held: dict[str, Any], model: dict[str, Any], size: int, path: Path) -> tuple[list[str], list[int]]:
    by_id = {int(k): (str(t), NORMAL) for t, k in model["vocab"].items()}
    for added in held.get("added_tokens", []):
        by_id[int(added["id"])] = (str(added["content"]), CONTROL if added.get("special") else USER_DEFINED)
    if max(by_id, default=0) >= size:
        raise FewbitError(f"{path}: has the token {max(by_id)}, the model {size} embeddings; save it again with the model's own")
    found = [by_id.get(k, (f"[PAD{k}]", UNUSED)) for k in range(size)]
    return [t for t, _ in found], [k for _, k in found]


def _special(tokens: list[str], options: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """Ids of special tokens: by name from the tokenizer's settings, else from config.json."""
    found = {}
    for ours, theirs in SPECIAL.items():
        named = options.get(f"{ours}_token")
        named = named.get("content") if isinstance(named, dict) else named
        token = tokens.index(named) if isinstance(named, str) and named in tokens else config.get(f"{ours}_token_id")
        token = token[0] if isinstance(token, list) and token else token
        if type(token) is int and 0 <= token < len(tokens):
            found[f"tokenizer.ggml.{theirs}_token_id"] = token
    return found
