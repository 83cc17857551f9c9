"""A checkpoint's tensors beside the model that transformers makes of its config.json: what each is called there, and what lacks.

transformers renames tensors as it loads (Pythia's embed_out is its model's lm_head, a base model's names lack their prefix); its
own tables say how. What it joins on the way (experts that lie one by one in the files) has no tensor of its own to read.
"""

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from fewbit.errors import FewbitError
from fewbit.llm.source import Source
from fewbit.llm.tensors import Tensors

EXPERTS = re.compile(r"(^|\.)experts(\.|$)")
PACKED = (".codes", ".blocks")  # of an artifact's weight, in place of .weight
BESIDE = (".scale", ".zero_point")


def shapes(folder: Path) -> dict[str, tuple[int, ...] | None]:
    """Of every tensor of a checkpoint, by its name there; None of an artifact's packed weights, under NAME.weight."""
    tensors, found = Tensors(folder), dict[str, tuple[int, ...] | None]()
    for key in tensors:
        name, _, leaf = key.rpartition(".")
        if f".{leaf}" in PACKED:
            found[f"{name}.weight"] = None
        elif f".{leaf}" not in BESIDE:
            found[key] = tensors.shape(key)
    return found


def as_model(source: Source, model: nn.Module) -> Source:
    """The source with its tensors under the names that they have in the model; what the model lacks keeps its own."""
    stored = names(model, source.shards)
    renamed = {stored_as: name for name, stored_as in stored.items()}
    shards = {renamed.get(n, n): path for n, path in source.shards.items()}
    return replace(source, shards=shards, stored={name: n for name, n in stored.items() if name != n})


def names(model: nn.Module, held: Iterable[str]) -> dict[str, str]:
    """Name in the model -> name in the files, of the tensors that transformers takes over as they are.

    Args:
        model: Any transformers model, on the meta device or not.
        held: Names of all the tensors in a checkpoint's files.
    """
    wanted, found = model.state_dict(), dict[str, str]()
    rename = _renaming(model, wanted)
    for name in held:
        target = name if name in wanted else rename(name)
        if target in wanted and (target not in found or target == name):
            found[target] = name
    return found


def _renaming(model: Any, wanted: dict[str, Any]) -> Any:
    """transformers' own: of a name in the files the one in the model, "" of a part of something joined."""
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, rename_source_key
    except ImportError:  # an earlier 5.x, which has fewer of these tables
        return lambda name: f"{model.base_model_prefix}.{name}"
    steps = get_model_conversion_mapping(model)
    joins = [s for s in steps if isinstance(s, WeightConverter)]
    plain: Any = [s for s in steps if not isinstance(s, WeightConverter)]

    def rename(name: str) -> str:
        target, joined = rename_source_key(name, plain, joins, model.base_model_prefix, wanted)
        return "" if joined else target

    return rename


def tied(model: Any) -> set[str]:
    """Names of parameters that are others' (a head that is the embedding), so that no file need hold them."""
    if hasattr(model, "all_tied_weights_keys"):
        return set(model.all_tied_weights_keys)
    return set(getattr(model, "_tied_weights_keys", None) or ())


def tie(model: Any, held: set[str]) -> None:
    """Share the embedding with a head that is said to be tied, unless the files hold a head of its own: that one is run, as
    transformers does.

    Args:
        model: With its weights in place.
        held: Names of the tensors that were placed.
    """
    own = {n: p for n, p in model.named_parameters(remove_duplicate=False) if n in held and n in tied(model)}
    model.tie_weights()
    for name, weight in own.items():
        module, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(module), leaf, weight)


def missing(model: Any, held: Iterable[str]) -> list[str]:
    """Names of the model's tensors that a checkpoint with tensors of these names does not give."""
    found, others = names(model, held), tied(model)
    optional = [re.compile(p) for p in getattr(model, "_keys_to_ignore_on_load_missing", None) or ()]
    lacking = [n for n in model.state_dict() if n not in found and n not in others]
    return [n for n in lacking if not any(p.search(n) for p in optional)]


def check(model: nn.Module, where: Path) -> None:
    """Refuse a checkpoint, or an artifact, that is not whole, before any work.

    Args:
        model: What transformers makes of config.json, on the meta device.
        where: The folder.

    Raises:
        FewbitError: Experts, a tensor that is missing, or one of another shape than the model's.
    """
    refuse_experts(model, where)
    held = shapes(where)
    lacking = missing(model, held)
    if lacking:
        more = f" ({len(lacking)} are missing in all)" if len(lacking) > 1 else ""
        raise FewbitError(
            f"{where}: tensor {lacking[0]} of {type(model).__name__} is not in its safetensors files{more}; download it again"
        )
    wanted = model.state_dict()
    for name, stored in names(model, held).items():
        shape = held[stored]
        if shape is not None and shape != tuple(wanted[name].shape):
            raise FewbitError(
                f"{where}: the weights of {stored} do not fit config.json: {list(shape)}, {list(wanted[name].shape)} in its model"
            )


def refuse_experts(model: nn.Module, where: Path) -> None:
    """Mixtures of experts have most of their weights in what is no Linear, and a router that no error may reach."""
    name = next((n for n, _ in model.named_parameters() if EXPERTS.search(n)), "")
    if name:
        raise FewbitError(f"{where}: {type(model).__name__} has experts ({name}); mixtures of experts are not supported")


def linears(model: Any, where: Path) -> set[str]:
    """Names of the weights of the language model's Linears inside its blocks: what export rounds.

    Heads, and the towers that see or hear beside the language model, are left out.

    Raises:
        FewbitError: The model's layers are GPT-2's Conv1D, whose weights lie the other way round.
    """
    from transformers.pytorch_utils import Conv1D

    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    prefix = next((f"{n}." for n, m in model.named_modules() if m is decoder and n), "")
    inside = [(n, m) for n, m in model.named_modules() if n.startswith(prefix) and re.search(r"\.\d+\.", n)]
    turned = next((n for n, m in inside if isinstance(m, Conv1D)), "")
    if turned:
        raise FewbitError(
            f"{where}: {turned} is a Conv1D, whose weight lies [in, out]; only Linear layers are quantized, and "
            f"{type(model).__name__} has none in its blocks"
        )
    return {f"{n}.weight" for n, m in inside if isinstance(m, nn.Linear)}
