"""What quantization cost a language model: perplexity, KL divergence and agreement with the float one, window by window."""

import math
import time
from pathlib import Path
from typing import Any

import torch

from fewbit.errors import FewbitError
from fewbit.llm import artifact, blocks, contents, kv_cache, source
from fewbit.llm.forecast import peak_bytes


def load(folder: Path) -> torch.nn.Module:
    """The transformers model of a checkpoint or, through dequantized weights, of an artifact; float32, for evaluation."""
    model = blocks.build(folder)
    if artifact.is_artifact(folder):
        state = artifact.state_dict(folder)
    else:
        found = contents.as_model(source.open_source(folder), model)
        state = found.load(list(found.shards))
    model.load_state_dict({n: t.float() if t.is_floating_point() else t for n, t in state.items()}, strict=False, assign=True)
    contents.tie(model, set(state))
    blocks.fill_buffers(model, model)
    bare = next((n for n, p in model.named_parameters() if p.is_meta), None)
    if bare:
        raise FewbitError(f"{folder}: tensor {bare} is in none of its safetensors files")
    return model


def perplexity(
    model: torch.nn.Module, windows: torch.Tensor, against: torch.nn.Module | None, progress: Any = None, kv: str = ""
) -> dict[str, Any]:
    """windows int64 [n, length]: every position predicts the next. kl: mean of KL(float || quantized), in nats.

    kv: "int8" to keep the model's (not the float one's) keys and values so.
    """
    for which in (model, against) if against is not None else (model,):
        blocks.check_ids(which, windows, getattr(which, "name_or_path", "") or type(which).__name__)
    loss = loss_float = kl = 0.0
    same = count = 0
    seconds = 0.0
    with torch.inference_mode():
        for k, ids in enumerate(windows):
            began = time.perf_counter()
            ours = _log_probabilities(model, ids, kv_cache.arguments(model) if kv else {"use_cache": False})
            seconds += time.perf_counter() - began
            wanted = ids[1:, None]
            loss -= float(ours.gather(1, wanted).double().sum())
            count += len(wanted)
            if against is not None:
                theirs = _log_probabilities(against, ids, {"use_cache": False})
                loss_float -= float(theirs.gather(1, wanted).double().sum())
                kl += float((theirs.exp() * (theirs - ours)).sum(dtype=torch.float64))
                same += int((ours.argmax(1) == theirs.argmax(1)).sum())
            if progress:
                progress("windows", k + 1, len(windows))
    found: dict[str, Any] = {"perplexity": math.exp(loss / count), "tokens": count}
    if against is not None:
        found |= {"perplexity_float": math.exp(loss_float / count), "kl": kl / count, "top1_agreement": same / count}
    return found | {"seconds": seconds, "tokens_per_second": windows.numel() / seconds, "peak_bytes": peak_bytes()}


def _log_probabilities(model: torch.nn.Module, ids: torch.Tensor, given: dict[str, Any]) -> torch.Tensor:
    """float32 [length - 1, vocabulary]."""
    logits = model(input_ids=ids[None], **given).logits[0, :-1].float()
    if not torch.isfinite(logits).all():
        raise FewbitError("the model's logits are not finite; its weights are damaged")
    return torch.log_softmax(logits, dim=1)
