"""A Hugging Face folder read tensor by tensor: what it must hold, checked before hours of work, and a digest of it."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fewbit import checkpoint
from fewbit.errors import FewbitError

SAMPLE, EVERY = 1 << 16, 1 << 24  # bytes of a shard that the digest reads: so many, every so many


@dataclass(frozen=True)
class Source:
    """shards: tensor name -> the file that holds it; config: config.json; stored: names in the files where they are others
    (llm/contents)."""

    folder: Path
    config: dict[str, Any]
    shards: dict[str, Path]
    stored: dict[str, str] = field(default_factory=dict)

    def load(self, names: list[str], dtype: torch.dtype | None = torch.float32) -> dict[str, torch.Tensor]:
        """Copies of these tensors, all finite; floating ones as dtype, where one is given."""
        from safetensors import safe_open

        found: dict[str, torch.Tensor] = {}
        for path in sorted({self.shards[n] for n in names}):
            with safe_open(path, framework="pt") as f:
                for name in (n for n in names if self.shards[n] == path):
                    tensor = f.get_tensor(self.stored.get(name, name))
                    if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                        raise FewbitError(f"{self.folder}: {name} holds numbers that are not finite; download it again")
                    found[name] = tensor.to(dtype if dtype and tensor.is_floating_point() else tensor.dtype, copy=True)
        return found

    def digest(self) -> str:
        """Of config.json, every shard's size and header, and samples of its weights."""
        h = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode())
        for path in sorted(set(self.shards.values())):
            size = path.stat().st_size
            h.update(f"{path.name} {size}".encode())
            with path.open("rb") as f:
                h.update(f.read(8 + int.from_bytes(f.read(8), "little")))
                for at in range(0, size, EVERY):
                    f.seek(at)
                    h.update(f.read(SAMPLE))
        return h.hexdigest()


def open_source(folder: str | Path) -> Source:
    """Check the folder of a float causal language model: config.json, and every safetensors file whole."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FewbitError(f"{folder}: no such folder; give the folder of a Hugging Face checkpoint")
    config = checkpoint.read_json(folder / "config.json", "a language model's folder holds one")
    files = checkpoint.shards(folder)
    if not files:
        raise FewbitError(f"{folder}: no .safetensors file in it; give a checkpoint that was saved as safetensors")
    missing = [p for p in files if not p.exists()]
    if missing:
        raise FewbitError(f"{missing[0]}: named by model.safetensors.index.json, but missing; download it again")
    if "quantization_config" in config:
        raise FewbitError(f"{folder}: already quantized (config.json has a quantization_config); give the float checkpoint")
    held = checkpoint.merged((path, checkpoint.read_header(path)) for path in files)
    return Source(folder, config, {name: path for name, (path, _) in held.items()})
