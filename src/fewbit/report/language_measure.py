"""What a language model's page measures: bits as stored, perplexity and KL, KL block by block, continuations and their speed."""

import time
from pathlib import Path
from typing import Any

import torch

from fewbit import checkpoint
from fewbit.llm import artifact, calibration, packed
from fewbit.llm import perplexity as p
from fewbit.llm.loading import Tensors, load

Words = dict[str, Any]


def stored(folder: Path) -> Words:
    """Weights' formats, bytes of the folder's tensors and of the packed ones, bits a packed weight (scales counted)."""
    recipe = packed.from_config(checkpoint.read_json(folder / "config.json", "").get("quantization_config"), str(folder))
    tensors, used, count = Tensors(folder), 0, 0
    for name in (k.removesuffix(".codes") for k in tensors if k.endswith(".codes")):
        weight = packed.read(name, tensors, recipe.of(name), str(folder))
        used, count = used + weight.nbytes, count + weight.shape[0] * weight.shape[1]
    layer = recipe.default
    return {
        "weights": layer.weights, "group_size": layer.group_size, "symmetric": layer.symmetric, "method": recipe.method,
        "layers_apart": len(recipe.layers), "bytes": artifact.size(folder), "packed_bytes": used, "packed_weights": count,
        "bits_per_weight": 8 * used / max(1, count),
    }  # fmt: skip


def losses(folder: Path, source: Path, text: Path, windows: int, window: int, progress: Any) -> Words:
    """Perplexity and KL on windows from the middle of the text on; block by block on the first of them."""
    first = calibration.beginning(folder)
    ids = calibration.windows(calibration.tokens(folder, text), window, None, 0.5, windows, str(text), first)
    ours, theirs = p.load(folder), p.load(source)
    found = p.perplexity(ours, ids, theirs, progress)
    keep = ("perplexity", "perplexity_float", "kl", "top1_agreement", "tokens")
    kl, states = by_block(ours, theirs, ids[0], progress)
    return {k: found[k] for k in keep} | {"blocks": kl, "states": states, "blocks_tokens": len(ids[0])}


def by_block(ours: Any, theirs: Any, ids: torch.Tensor, progress: Any) -> tuple[list[float], list[float]]:
    """(KL to the float model, in nats, with that block's weights alone quantized; relative error of the hidden state behind it
    with all before it quantized too, without the first token), a number a block; ids int64 [length]."""
    with torch.inference_mode():
        want = theirs(input_ids=ids[None], output_hidden_states=True, use_cache=False)
        got = ours(input_ids=ids[None], output_hidden_states=True, use_cache=False)
        pairs = zip(want.hidden_states[1:], got.hidden_states[1:], strict=True)
        states = [float((b - a)[0, 1:].norm() / a[0, 1:].norm()) for a, b in pairs]
        right = torch.log_softmax(want.logits[0].float(), -1)
        mine, found = _blocks(ours), []
        blocks = _blocks(theirs)
        for k in range(len(blocks)):
            kept, blocks[k] = blocks[k], mine[k]
            try:
                here = torch.log_softmax(theirs(input_ids=ids[None], use_cache=False).logits[0].float(), -1)
            finally:
                blocks[k] = kept
            found.append(float((right.exp() * (right - here)).sum(-1).mean()))
            progress("blocks", k + 1, len(blocks))
    return found, states


def _blocks(model: Any) -> torch.nn.ModuleList:
    """The one list of num_hidden_layers modules."""
    depth = model.config.get_text_config().num_hidden_layers
    return next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == depth)


def continuations(folder: Path, source: Path, prompts: tuple[str, ...], tokens: int, progress: Any) -> Words:
    """Greedy continuations of both, and tokens a second, the prompts' own time included."""
    model, tokenizer = load(folder)
    ours, quick = _write(model, tokenizer, prompts, tokens)
    theirs, slow = _write(p.load(source), tokenizer, prompts, tokens)
    rows = [{"prompt": a, "float": b, "quantized": c} for a, b, c in zip(prompts, theirs, ours, strict=True)]
    sizes = {"bytes_float": artifact.size(source), "threads": torch.get_num_threads()}
    return {"continuations": rows, "tokens_per_second": quick, "tokens_per_second_float": slow} | sizes


def _write(model: Any, tokenizer: Any, prompts: tuple[str, ...], tokens: int) -> tuple[list[str], float]:
    texts, made, began = [], 0, time.perf_counter()
    for prompt in prompts:
        given = tokenizer(prompt, return_tensors="pt")
        inputs = {k: given[k] for k in ("input_ids", "attention_mask")}
        out = model.generate(**inputs, do_sample=False, max_new_tokens=tokens)[0][inputs["input_ids"].shape[1] :]
        texts.append(tokenizer.decode(out, skip_special_tokens=True))
        made += len(out)
    return texts, made / (time.perf_counter() - began)
