"""A quantized folder -> the unchanged `transformers` model with packed layers, and its tokenizer.

The model is built without memory for its matrices (torch's meta device); then each tensor is read from its file, packed or
placed, and forgotten, so that the peak is the packed model and one layer.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fewbit import checkpoint
from fewbit.errors import FewbitError, MissingExtra
from fewbit.llm import calibration, packed
from fewbit.llm.linear import Memory, QuantEmbedding, QuantLinear, make_panels
from fewbit.llm.packed import Recipe
from fewbit.llm.tensors import Tensors

try:
    import torch
    import transformers
    from torch.overrides import TorchFunctionMode
except ImportError as e:
    raise MissingExtra((e.name or "transformers").split(".")[0], "llm") from None


class _NoMemory(TorchFunctionMode):
    """Matrices, which modules make by torch.empty, get no memory; what is computed (rotary tables, masks) is real."""

    def __torch_function__(self, func: Callable, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        return func(*args, **kwargs | {"device": "meta"} if func is torch.empty else kwargs)


def load(folder: str | Path, threads: int | None = None, activations: str = "int8", instruction_set: str = "") -> tuple[Any, Any]:
    """(model, tokenizer) of a folder that `fewbit llm quantize` wrote; `model.generate` is transformers' own.

    threads: of the packed layers (torch's own number without); activations: "int8", quantized a token at a time, or "float".
    """
    folder = Path(folder)
    config_path = folder / "config.json"
    config = checkpoint.read_json(config_path, "give a folder that `fewbit llm quantize` wrote")
    recipe = packed.from_config(config.get("quantization_config"), str(config_path))
    foreign = next((x.weights for x in (recipe.default, *recipe.layers.values()) if x.weights not in packed.WEIGHTS), "")
    if foreign:
        raise FewbitError(f"{folder}: {foreign} runs in llama.cpp; write the file for it: fewbit llm export {folder} --to gguf")
    tensors = Tensors(folder)
    model = _skeleton(folder)
    options = {"activations": activations, "threads": threads, "instruction_set": instruction_set}
    _place_packed(model, tensors, recipe, options)
    _place_floats(model, tensors)
    _tie(model, options)  # what still has no head
    missing = [name for name, p in (*model.named_parameters(), *model.named_buffers()) if p.device.type == "meta"]
    if missing:
        raise FewbitError(f"{folder}: tensor {missing[0]} is missing ({len(missing)} in all); quantize again")
    if (folder / "generation_config.json").exists():
        model.generation_config = transformers.GenerationConfig.from_pretrained(folder)
    return model.eval(), calibration.load_tokenizer(folder)


def _skeleton(folder: Path) -> Any:
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        with _NoMemory():
            return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).requires_grad_(False)
    except (ValueError, KeyError, OSError, TypeError) as e:
        raise FewbitError(f"{folder / 'config.json'}: transformers makes no model of it: {_short(e)}") from None


def _short(e: Exception) -> str:
    """Theirs, on one line."""
    return " ".join(str(e).split())[:200]


def _place_packed(model: Any, tensors: Tensors, recipe: Recipe, options: dict[str, Any]) -> None:
    names, memory = [key.removesuffix(".codes") for key in tensors if key.endswith(".codes")], Memory()
    for name in names:
        module, where = _module(model, name, tensors), str(tensors.folder)
        weight = packed.read(name, tensors, recipe.of(name), where)
        if tuple(module.weight.shape) != weight.shape:
            raise FewbitError(f"{where}: {name} is {list(weight.shape)}, {list(module.weight.shape)} in the model of config.json")
        if isinstance(module, torch.nn.Embedding):
            panels, kind = make_panels(weight, None, name, memory)
            model.set_submodule(name, QuantEmbedding(panels, kind, options["instruction_set"]))
            continue
        bias = None if module.bias is None else tensors(f"{name}.bias")
        if module.bias is not None and (bias is None or bias.shape != weight.shape[:1]):
            raise FewbitError(f"{where}: tensor {name}.bias is missing, or not of {weight.shape[0]} numbers; quantize again")
        panels, kind = make_panels(weight, None if bias is None else bias.astype(np.float32), name, memory)
        model.set_submodule(name, QuantLinear(panels, kind, **options))


def _module(model: Any, name: str, tensors: Tensors) -> Any:
    try:
        module = model.get_submodule(name)
    except AttributeError:
        module = None
    if not (isinstance(module, torch.nn.Linear) or type(module) is torch.nn.Embedding):
        raise FewbitError(f"{tensors.folder}: {name}.codes belongs to no Linear or Embedding of the model in config.json")
    return module


def _place_floats(model: Any, tensors: Tensors) -> None:
    wanted = dict(model.named_parameters(remove_duplicate=False))
    for name in [n for n in tensors if n in wanted]:
        array = tensors(name)
        assert array is not None
        if array.shape != tuple(wanted[name].shape):
            raise FewbitError(
                f"{tensors.folder}: {name} is {list(array.shape)}, {list(wanted[name].shape)} in the model of config.json"
            )
        parent, _, leaf = name.rpartition(".")
        value = torch.nn.Parameter(torch.from_numpy(array.astype(np.float32, copy=False)), requires_grad=False)
        setattr(model.get_submodule(parent), leaf, value)


def _tie(model: Any, options: dict[str, Any]) -> None:
    """The head shares the embedding's memory where the model says so and the folder gives it none of its own."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    own = isinstance(head, QuantLinear) or head is None or not head.weight.is_meta
    if own or not model.config.get_text_config().tie_word_embeddings:
        return
    if isinstance(embedding, QuantEmbedding):
        if head.bias is not None:
            raise FewbitError(
                "the head has a bias and shares a packed embedding, which cannot be run; keep the embedding in float"
            )
        model.set_output_embeddings(QuantLinear(embedding.panels, embedding.kind, **options))
    else:
        head.weight = embedding.weight
