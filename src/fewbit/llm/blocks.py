"""A causal model by structure: where its blocks are, what each one is called with, and which Linears share an input.

The model is built without weights; one block at a time is given its own. Nothing here goes by the name of a family: the
blocks are the one ModuleList of num_hidden_layers alike, a block maps hidden states to hidden states.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fewbit.errors import FewbitError, MissingExtra, first_line
from fewbit.llm import contents
from fewbit.llm.source import Source

PROBE = 64  # tokens
ENCODERS = ("ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForPreTraining",
            "ForMultipleChoice", "ForNextSentencePrediction")  # fmt: skip


@dataclass(frozen=True)
class Structure:
    """model: weights on the meta device; base: the module that runs the blocks; prefix: of the blocks' parameters."""

    model: nn.Module
    base: nn.Module
    blocks: nn.ModuleList
    prefix: str
    source: Source

    @property
    def config(self) -> Any:
        """transformers' configuration of the text model."""
        model: Any = self.model
        return model.config.get_text_config()

    @property
    def head_dim(self) -> int:
        """Channels of an attention head, 0 where the configuration does not say."""
        heads = getattr(self.config, "num_attention_heads", 0) or 0
        return getattr(self.config, "head_dim", None) or (self.config.hidden_size // heads if heads else 0)

    def names(self, k: int) -> list[str]:
        """Full names of block k's parameters and saved buffers."""
        return [f"{self.prefix}{k}.{n}" for n in self.blocks[k].state_dict()]

    def outer(self) -> list[str]:
        """Names of what the checkpoint holds beside the blocks."""
        inside = {n for k in range(len(self.blocks)) for n in self.names(k)}
        return [n for n in self.source.shards if n not in inside]


def head(structure: Structure) -> str | None:
    """The name of a Linear outside the blocks whose weight the checkpoint holds."""
    outer = set(structure.outer())
    found = (n for n, m in structure.model.named_modules() if isinstance(m, nn.Linear))
    return next((n for n in found if f"{n}.weight" in outer), None)


def embedding(structure: Structure) -> str | None:
    """The name of the table of the tokens' vectors, if looking up is all that it does."""
    table = structure.model.get_input_embeddings()  # type: ignore[operator]
    return next((n for n, m in structure.model.named_modules() if m is table and type(m) is nn.Embedding), None)


def check_ids(model: Any, ids: torch.Tensor, where: str) -> None:
    """Refuse token ids [..., length] that the model has no vector for: beyond its vocabulary or its table of positions.

    Raises:
        FewbitError: `where` (a folder) and what is too large.
    """
    table = model.get_input_embeddings()
    rows = int(getattr(table, "num_embeddings", 0) or table.kind.out)
    if int(ids.max()) >= rows:
        raise FewbitError(f"{where}: its tokenizer gives id {int(ids.max())}, the model has {rows} embeddings")
    most = positions(model)
    if most is not None and ids.shape[-1] > most:
        raise FewbitError(f"{where}: {ids.shape[-1]} tokens at a time; the model's table of positions holds {most}, give fewer")


def positions(model: Any) -> int | None:
    """How many a table of learned positions holds (GPT-2, OPT); None where they are computed."""
    most, table = getattr(model.config.get_text_config(), "max_position_embeddings", None), model.get_input_embeddings()
    tables = [m for m in model.modules() if isinstance(m, nn.Embedding) and m is not table]
    spare = 2  # rows that OPT leaves unused
    return most if most and any(most <= m.num_embeddings <= most + spare for m in tables) else None


def build(folder: Path) -> nn.Module:
    """The model of config.json on the meta device."""
    try:
        from transformers import AutoConfig, AutoModelForCausalLM
    except ImportError:
        raise MissingExtra("transformers", "llm") from None
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        _check_kind(folder, config)
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    except FewbitError:
        raise
    except Exception as e:  # transformers raises anything, from KeyError to its own, in many lines
        raise FewbitError(f"{folder}: transformers makes no causal model of it: {first_line(e)}") from None


def _check_kind(folder: Path, config: Any) -> None:
    """Refuse what is no decoder of text alone, by what config.json says of it."""
    said = ", ".join(getattr(config, "architectures", None) or ()) or str(config.model_type)
    if getattr(config, "is_encoder_decoder", False):
        raise FewbitError(f"{folder}: {said} is an encoder with a decoder; only causal language models are supported")
    if any(said.endswith(end) for end in ENCODERS):
        raise FewbitError(f"{folder}: {said} does not predict the next token; only causal language models are supported")


def _check_alone(folder: Path, model: Any) -> None:
    """Refuse attention that looks ahead, and towers that see or hear beside the language model."""
    if model.config.get_text_config() is not model.config:
        raise FewbitError(
            f"{folder}: {type(model).__name__} is more than a language model (its config.json has a text_config beside others); "
            "save its language model as a checkpoint of its own, and give that"
        )
    if any(getattr(m, "is_causal", True) is False for m in model.modules()):
        raise FewbitError(
            f"{folder}: {type(model).__name__} attends to tokens that follow (an encoder); "
            "only causal language models are supported"
        )


def read(source: Source) -> Structure:
    """Build the model and find its blocks."""
    model = build(source.folder)
    _check_alone(source.folder, model)
    contents.check(model, source.folder)
    contents.linears(model, source.folder)
    source = contents.as_model(source, model)
    layers = getattr(model.config.get_text_config(), "num_hidden_layers", None)  # type: ignore[union-attr,operator]
    lists = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == layers]
    lists = [(n, m) for n, m in lists if len({type(b) for b in m}) == 1 and any(isinstance(x, nn.Linear) for x in m.modules())]
    if len(lists) != 1:
        raise FewbitError(
            f"{source.folder}: {type(model).__name__} has not the expected structure: {len(lists)} lists of "
            f"{layers} alike blocks with Linear layers, one is expected"
        )
    name, blocks = lists[0]
    return Structure(model, model.get_submodule(name.rpartition(".")[0]), blocks, f"{name}.", source)


def fill(structure: Structure, module: nn.Module, prefix: str) -> None:
    """Give a module its parameters from the checkpoint, as float32, and its unsaved buffers their values."""
    names = list(module.state_dict())
    loaded = structure.source.load([prefix + n for n in names])
    try:
        module.load_state_dict({n: loaded[prefix + n] for n in names}, assign=True)
    except RuntimeError as e:
        detail = " ".join(str(e).split())[:300]
        raise FewbitError(f"{structure.source.folder}: the weights of {prefix} do not fit config.json: {detail}") from None
    fill_buffers(structure.model, module)


def fill_buffers(model: nn.Module, module: nn.Module) -> None:
    """Buffers that no checkpoint holds (rotary frequencies): transformers computes them again, as its own loading does."""
    for part in module.modules():
        unsaved = [n for n in part._non_persistent_buffers_set if part._buffers.get(n) is not None and part._buffers[n].is_meta]  # type: ignore[union-attr]
        for name in unsaved:
            empty = torch.empty_like(part._buffers[name], device="cpu")  # type: ignore[arg-type]
            part._buffers[name] = empty.fill_(float("nan")) if empty.is_floating_point() else empty
        if unsaved:  # it would draw the weights anew too: those of this part are out of its sight meanwhile
            kept = dict(part._parameters)
            part._parameters.update({n: None if p is None else nn.Parameter(p.to("meta")) for n, p in kept.items()})
            model._init_weights(part)  # type: ignore[operator]
            part._parameters.update(kept)
        for name in unsaved:
            if not torch.isfinite(part._buffers[name]).all():  # type: ignore[arg-type]
                raise FewbitError(f"{type(part).__name__}.{name}: transformers does not say how to compute it; not supported")


def empty(module: nn.Module) -> None:
    """Take the weights away again."""
    module.to("meta")


@dataclass(frozen=True)
class Call:
    """What the model hands a block beside the hidden states, for a batch and for a probe of it (masks have their size)."""

    batch: dict[str, Any]
    probe: dict[str, Any]


def outer_prefix(structure: Structure) -> str:
    """Of the names of what lies beside the blocks."""
    name = structure.prefix.rstrip(".").rpartition(".")[0]
    return f"{name}." if name else ""


def probe(batch: torch.Tensor) -> torch.Tensor:
    """The beginning of a batch's first sample, ids or hidden states: enough to see who is connected to whom."""
    return batch[:1, :PROBE]


def run(block: nn.Module, states: torch.Tensor, call: Call) -> torch.Tensor:
    """A block's output; some return a tuple that begins with it."""
    out = block(states, **(call.probe if states.shape[:2] == probe(states).shape[:2] else call.batch))
    out = out[0] if isinstance(out, tuple) else out
    if not isinstance(out, torch.Tensor) or out.shape != states.shape:
        raise FewbitError(f"{type(block).__name__} does not map hidden states to hidden states; not the expected structure")
    return out


def linears(block: nn.Module) -> dict[str, nn.Linear]:
    return {n: m for n, m in block.named_modules() if isinstance(m, nn.Linear)}


def groups(block: nn.Module, states: torch.Tensor, call: Call) -> list[list[str]]:
    """The block's Linears in the order they run, those that are given the same tensor together. Runs the block once."""
    seen: list[tuple[torch.Tensor, list[str]]] = []

    def note(name: str, x: torch.Tensor) -> None:
        for other, names in seen:
            if other is x:
                names.append(name)
                return
        seen.append((x, [name]))

    with inputs_watched(block, note), torch.inference_mode():
        run(block, states, call)
    found = [names for _, names in seen]
    flat = [n for names in found for n in names]
    other = next((n for n in linears(block) if flat.count(n) != 1), "")
    if other:
        raise FewbitError(
            f"{type(block).__name__}: its Linear {other} runs {flat.count(other)} times for a text, or its weight is used "
            "without it; --method rtn needs no run, else the model is not supported"
        )
    return found


@contextmanager
def inputs_watched(block: nn.Module, note: Callable[[str, torch.Tensor], None]) -> Iterator[None]:
    """note(name, input) before every Linear runs."""

    def hook(name: str) -> Callable[..., None]:
        return lambda module, inputs, named: note(name, inputs[0] if inputs else named["input"])

    handles = [m.register_forward_pre_hook(hook(n), with_kwargs=True) for n, m in linears(block).items()]
    try:
        yield
    finally:
        for h in handles:
            h.remove()
