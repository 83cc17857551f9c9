"""A GGUF file read back before it takes its name: its header whole, some tensors beside the numbers they were made from."""

from pathlib import Path
from typing import Any

import numpy as np

from fewbit import gguf_file
from fewbit.llm import gguf, packed, readback
from fewbit.llm.packed import Recipe
from fewbit.llm.tensors import Tensors
from fewbit.numerics import ggml

LEAVES = ("codes", "blocks", "weight")
HALF = 2.0**-10  # relative, of what float16 holds: weights of f16, minima of q4_1


def check(part: Path, out: Path, tensors: Tensors, recipe: Recipe | None, config: dict[str, Any]) -> int:
    """Compare the file `part`, which is to become `out`, with the folder it was made from; how many tensors were compared."""
    _, entries = gguf_file.read(part)
    owned = [(n, leaf) for n, _, leaf in (key.rpartition(".") for key in tensors) if leaf in LEAVES]
    inside = [f"{n}.{leaf}" for n, leaf in owned if "_proj" in n and not gguf.beyond(n, config)]
    outside = [f"{n}.{leaf}" for n, leaf in owned if n in gguf.OUTSIDE]
    count = 0
    for key in (*outside, *readback.some(sorted(inside))):
        name, _, leaf = key.rpartition(".")
        entry = entries.get(gguf.name_of(name, str(out)) + ".weight")
        if entry is None:  # a head that is the embedding
            continue
        found = _rows_back(_numbers(part, entry), name, config)
        wanted, step = _wanted(name, leaf, tensors, recipe)
        exact = entry.number == 0 or leaf == "blocks" or (leaf == "codes" and _signed(entry.number))
        readback.compare(name, found, wanted, 0.0 if exact else step, out)
        count += 1
    return count


def _signed(number: int) -> bool:
    return any(t.number == number and t.zero is not None for t in ggml.TYPES.values())


def _numbers(path: Path, entry: gguf_file.Entry) -> np.ndarray:
    data = gguf_file.load(path, entry)
    if entry.number in gguf_file.FLOATS:
        return data.astype(np.float32)
    kind = next(t for t in ggml.TYPES.values() if t.number == entry.number)
    return ggml.unpack(data, entry.shape[-1], kind).dequantized()


def _rows_back(rows: np.ndarray, name: str, config: dict[str, Any]) -> np.ndarray:
    """q and k of the llama family have each head's two halves interleaved there."""
    key = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(name.rpartition(".")[2])
    if key is None or not gguf.PERMUTED[config["model_type"]]:
        return rows
    heads = int(config.get(key) or config["num_attention_heads"])
    return rows.reshape(heads, -1, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def _wanted(name: str, leaf: str, tensors: Tensors, recipe: Recipe | None) -> tuple[np.ndarray, np.ndarray]:
    """(float32 numbers of the folder, what float16 may move each by)."""
    where = str(tensors.folder)
    if leaf == "codes" and recipe is not None:
        weight = packed.read(name, tensors, recipe.of(name), where)
        numbers = packed.dequantize(weight)
        least = np.abs(weight.scale.astype(np.float32) * packed.zero_points(weight)).max(axis=1, keepdims=True)
        return numbers, HALF * np.maximum(least, np.abs(numbers).max(axis=1, keepdims=True))
    data = tensors(f"{name}.{leaf}")
    assert data is not None
    if leaf == "blocks" and recipe is not None:
        numbers = packed.read_blocks(name, data, recipe.of(name), where).dequantized()
    else:
        numbers = data.astype(np.float32)
    return numbers, HALF * np.abs(numbers).max(axis=-1, keepdims=True)
