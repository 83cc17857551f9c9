"""What the layouts of other programs share: an artifact or a checkpoint read shard by shard, written shard by shard."""

import json
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fewbit import checkpoint, files
from fewbit.errors import FewbitError
from fewbit.llm import artifact, blocks, contents, packed, readback, source
from fewbit.llm.options import WEIGHTS, Options
from fewbit.llm.packed import Layer, PackedWeight, Recipe
from fewbit.llm.readback import Read
from fewbit.llm.source import Source
from fewbit.llm.tensors import Tensors

ROUTER = re.compile(r"(router|\.gate\.weight$)")  # a Linear that chooses is not rounded

Layout = Callable[[str, PackedWeight, Layer], dict[str, torch.Tensor]]


def recipe_of(folder: Path) -> Recipe | None:
    """How fewbit quantized it; None of a float checkpoint."""
    config = checkpoint.read_json(folder / "config.json", "a language model's folder holds one")
    entry = config.get("quantization_config")
    return packed.from_config(entry, str(folder)) if entry else None


def check(folder: Path, kind: str, kinds: tuple[str, ...]) -> Recipe | None:
    """recipe_of, once the kind is one of kinds, and of an artifact its own."""
    recipe = recipe_of(folder)
    if recipe is None and kind not in kinds:
        raise FewbitError(f"--type {kind or 'is not given'}: of a float checkpoint choose {', '.join(kinds)}")
    if recipe is not None:
        own = recipe.default.weights
        if own not in WEIGHTS or own not in kinds:
            raise FewbitError(
                f"{folder}: {own} has no place there, only {', '.join(k for k in kinds if k in WEIGHTS)}; quantize to one"
            )
        if kind not in ("", own):
            raise FewbitError(f"--type {kind}: {folder} was quantized to {own}; give the float checkpoint to quantize it anew")
    return recipe


def options(kind: str, given: Options) -> Options:
    """How a float checkpoint is quantized first."""
    return replace(given, weights=kind, embedding="", head="")


def source_of(folder: Path) -> Source:
    return source.open_source(folder)


def matrices(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name in the files -> shape [out, in] of the weights of the Linears in the blocks of a float checkpoint, which is whole."""
    model = blocks.build(folder)
    contents.check(model, folder)
    inside, tensors = contents.linears(model, folder), Tensors(folder)
    stored = contents.names(model, tensors)
    return {s: tensors.shape(s) for n, s in stored.items() if n in inside and not ROUTER.search(n)}


def left_out(folder: Path, rounded: Iterable[str] = ()) -> tuple[str, ...]:
    """Modules whose matrix stays as it is: those outside the blocks, and layers that the model of config.json does not have."""
    tensors, kept = Tensors(folder), set(rounded)
    plain = {n.removesuffix(".weight") for n in tensors if n.endswith(".weight") and len(tensors.shape(n)) == 2 and n not in kept}
    outside = {n for n in (k.removesuffix(".codes") for k in tensors if k.endswith(".codes")) if ".layers." not in n}
    return tuple(sorted(plain | outside))


def write(
    folder: Path, out: Path, layout: Layout, config_of: Callable[[Recipe, tuple[str, ...]], dict[str, Any]], read: Read
) -> dict[str, Any]:
    """An artifact's layers by `layout`; what else is packed (an embedding) becomes float16, or float32 beyond its range.

    config_of: of the recipe and the modules that are left in float, the quantization_config. read: the layout's inverse.
    """
    recipe = recipe_of(folder)
    assert recipe is not None
    tensors, config = Tensors(folder), checkpoint.read_json(folder / "config.json", "")
    owners = {key.removesuffix(".codes") for key in tensors if key.endswith(".codes")}
    parts = {f"{name}.{leaf}" for name in owners for leaf in ("codes", "scale", "zero_point")}

    compared = readback.some(sorted(n for n in owners if ".layers." in n))

    def made(key: str) -> dict[str, torch.Tensor]:
        name = key.removesuffix(".codes")
        if key.endswith(".codes") and name in owners:
            weight = packed.read(name, tensors, recipe.of(name), str(folder))
            if ".layers." in name:
                return layout(name, weight, recipe.of(name))
            table = torch.from_numpy(packed.dequantize(weight))
            return {f"{name}.weight": table.to(torch.float16) if table.to(torch.float16).isfinite().all() else table}
        return {} if key in parts else {key: plain[key]}

    def check(written: Tensors) -> None:
        for name in compared:
            wanted = packed.dequantize(packed.read(name, tensors, recipe.of(name), str(folder)))
            readback.compare(name, read(name, written, recipe.of(name)), wanted, 0.0, out)

    with _written(folder, out, config | {"quantization_config": config_of(recipe, left_out(folder))}, check) as save:
        for path in checkpoint.shards(folder):
            keys = checkpoint.entries(path)[0]
            plain = _load(path, [k for k in keys if k not in parts])
            save(path.name, {n: t for key in keys for n, t in made(key).items()})
    return _record(out, recipe.default.weights, compared)


def write_rounded(
    found: Source,
    out: Path,
    matrices: set[str],
    made: Callable[[str, torch.Tensor], dict[str, torch.Tensor]],
    config: dict[str, Any],
    kind: str,
    layer: Layer | None = None,
) -> dict[str, Any]:
    """A float checkpoint, its Linears by `made`, a shard in memory at a time; layer: of the kinds that have one (int8 …)."""
    names = readback.some(sorted(matrices))

    def check(written: Tensors) -> None:
        for name in names:
            numbers, step = readback.rounded(name.removesuffix(".weight"), written, layer, kind)
            readback.compare(name, numbers, found.load([name])[name].numpy(), step, out)

    with _written(found.folder, out, found.config | {"quantization_config": config}, check) as save:
        for path in sorted(set(found.shards.values())):
            tensors = _load(path, [n for n, p in found.shards.items() if p == path])
            save(
                path.name,
                {n: t for key, w in tensors.items() for n, t in (made(key, w) if key in matrices else {key: w}).items()},
            )
    return _record(out, kind, names)


def _load(path: Path, names: list[str]) -> dict[str, torch.Tensor]:
    from safetensors import safe_open

    checkpoint.entries(path)
    with safe_open(path, framework="pt") as f:
        found = {n: f.get_tensor(n) for n in names}
    bad = next((n for n, t in found.items() if t.is_floating_point() and not torch.isfinite(t.float()).all()), "")
    if bad:
        raise FewbitError(f"{path}: {bad} holds numbers that are not finite; download it again")
    return found


class _written:
    """A folder that appears whole: save(file name, tensors) inside; the index, config.json and all other files at the end."""

    def __init__(self, source: Path, out: Path, config: dict[str, Any], check: Callable[[Tensors], None]):
        self.source, self.out, self.config, self.check = source, out, config, check
        self.part = out.with_name(f".{out.name}.part")
        self.where: dict[str, str] = {}

    def __enter__(self) -> Callable[[str, dict[str, torch.Tensor]], None]:
        shutil.rmtree(self.part, ignore_errors=True)
        with files.said_in_one_line(self.out):
            self.part.mkdir()

        def save(name: str, tensors: dict[str, torch.Tensor]) -> None:
            artifact.save(self.part / name, tensors)
            self.where |= dict.fromkeys(tensors, name)

        return save

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        try:
            if kind is None:
                with files.said_in_one_line(self.out):
                    self._finish()
        finally:
            shutil.rmtree(self.part, ignore_errors=True)

    def _finish(self) -> None:
        size = sum(p.stat().st_size for p in self.part.glob("*.safetensors"))
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(self.where.items()))}
        if set(self.where.values()) != {"model.safetensors"}:
            (self.part / artifact.INDEX).write_text(json.dumps(index, indent=1) + "\n")
        artifact.copy_others(self.source, self.part)
        (self.part / "config.json").write_text(json.dumps(self.config, indent=1) + "\n")
        self.check(Tensors(self.part))
        self.part.rename(self.out)


def _record(out: Path, kind: str, compared: list[str]) -> dict[str, Any]:
    return {"folder": str(out), "type": kind, "bytes": artifact.size(out), "read_back": len(compared)}
