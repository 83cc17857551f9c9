"""The folder that is written: shards of packed weights beside all else of the source, and reading it back as float."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fewbit import checkpoint, files
from fewbit.errors import FewbitError, first_line
from fewbit.files import write_whole
from fewbit.llm import packed
from fewbit.numerics import ggml
from fewbit.solvers.grids import GgmlGrid, Grid, Solution

INDEX = "model.safetensors.index.json"
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")  # of the source, not copied
TEMPLATES = "additional_chat_templates"
RECORD = "fewbit.json"  # what made the artifact


def shard_name(k: int, of: int) -> str:
    return f"model-{k + 1:05d}-of-{of:05d}.safetensors"


def packed_tensors(name: str, solution: Solution) -> dict[str, torch.Tensor]:
    """NAME.codes, NAME.scale and, unless symmetric, NAME.zero_point; or NAME.blocks."""
    grid = solution.grid
    if isinstance(grid, GgmlGrid):
        return {f"{name}.blocks": torch.from_numpy(ggml.pack(grid.parts(solution)))}
    assert isinstance(grid, Grid)
    zero = None if grid.symmetric else solution.zero_point
    weight = packed.pack(solution.codes, solution.scale, zero, grid.bits, grid.group_size)
    return {n: torch.from_numpy(np.ascontiguousarray(a)) for n, a in packed.tensors(name, weight).items()}


def save(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """A safetensors file, whole or not at all; equal tensors make equal bytes."""
    part = path.with_name(f".{path.name}.part")
    try:
        with files.said_in_one_line(path):
            part.touch()
            mode = part.stat().st_mode  # as the user's umask says; the library makes files that only their owner reads
            save_file(dict(sorted(tensors.items())), part, metadata={"format": "pt"})
            part.chmod(mode)
            part.replace(path)
    except SafetensorError as e:
        raise FewbitError(f"{path}: cannot be written ({first_line(e)}); give a place that can be") from None
    finally:
        part.unlink(missing_ok=True)


def finish(folder: Path, source: Path, config: dict[str, Any], recipe: packed.Recipe, record: dict[str, Any]) -> None:
    """The index over the shards that lie in folder, config.json, and all other files of the source's folder."""
    total, where = 0, dict[str, str]()
    for path in sorted(folder.glob("model-*.safetensors")):
        with safe_open(path, framework="pt") as f:
            where |= dict.fromkeys(f.keys(), path.name)
        total += path.stat().st_size
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
    copy_others(source, folder)
    write_whole(folder / INDEX, json.dumps(index, indent=1) + "\n")
    write_whole(folder / RECORD, json.dumps(record, indent=1, sort_keys=True) + "\n")
    write_whole(folder / "config.json", json.dumps(config | {"quantization_config": packed.to_config(recipe)}, indent=1) + "\n")


def copy_others(source: Path, folder: Path) -> None:
    """All of a checkpoint's files but its weights and what says how they lie; and the templates in a folder of their own."""
    with files.said_in_one_line(folder):
        for path in source.iterdir():
            if path.is_file() and not path.name.endswith(WEIGHTS) and path.name not in (INDEX, "config.json", RECORD):
                shutil.copyfile(path, folder / path.name)
        if (source / TEMPLATES).is_dir():
            shutil.copytree(source / TEMPLATES, folder / TEMPLATES, dirs_exist_ok=True)


def is_artifact(folder: Path) -> bool:
    """A folder whose config.json says that fewbit quantized it."""
    entry = checkpoint.read_json(folder / "config.json", "a language model's folder holds one").get("quantization_config")
    return isinstance(entry, dict) and entry.get("quant_method") == packed.METHOD


def state_dict(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of an artifact, packed weights as float32 NAME.weight."""
    recipe = packed.from_config(checkpoint.read_json(folder / "config.json", "").get("quantization_config"), str(folder))
    found: dict[str, torch.Tensor] = {}
    for path in checkpoint.shards(folder):
        if not path.exists():
            raise FewbitError(f"{path}: named by {INDEX}, but missing; quantize again")
        checkpoint.entries(path)
        with safe_open(path, framework="pt") as f:
            keys = set(f.keys())
            names = {k.removesuffix(".codes") for k in keys if k.endswith(".codes")}
            for name in sorted(names):

                def tensor(key: str, f: Any = f, keys: set[str] = keys) -> np.ndarray | None:
                    return f.get_tensor(key).numpy() if key in keys else None

                weight = packed.read(name, tensor, recipe.of(name), str(folder))
                found[f"{name}.weight"] = torch.from_numpy(packed.dequantize(weight))
            for name in sorted(k.removesuffix(".blocks") for k in keys if k.endswith(".blocks")):
                parts = packed.read_blocks(name, f.get_tensor(f"{name}.blocks").numpy(), recipe.of(name), str(folder))
                found[f"{name}.weight"] = torch.from_numpy(parts.dequantized())
            keys = {k for k in keys if not k.endswith(".blocks")}
            rest = [k for k in keys if not any(k in (f"{n}.codes", f"{n}.scale", f"{n}.zero_point") for n in _owner(k, names))]
            found |= {k: f.get_tensor(k) for k in rest}
    bad = next((n for n, t in found.items() if t.is_floating_point() and not torch.isfinite(t).all()), "")
    if bad:
        raise FewbitError(f"{folder}: {bad} holds numbers that are not finite; quantize again")
    return found


def _owner(key: str, names: set[str]) -> list[str]:
    name = key.rpartition(".")[0]
    return [name] if name in names else []


def size(folder: Path) -> int:
    """Bytes of its safetensors files."""
    return sum(p.stat().st_size for p in checkpoint.shards(folder))
