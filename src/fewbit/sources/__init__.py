"""A trained network, however it was kept, as one float ONNX graph. `load` tells the kinds apart; one file a kind."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from fewbit.errors import FewbitError, extras
from fewbit.graph import metadata

Declared = dict[str, tuple[str, Any]]  # a state's input -> (its output, what an episode starts with; None: zeros)


@dataclass(frozen=True)
class Source:
    """model: float graph from raw observation to the action that env.step takes; contract: what is known about both.

    state: what it remembers, as engine/state reads it; written into the model's record, so that whoever runs it knows.
    run: the source as it came, before anything was folded: {input: [n, ...]} -> {output: array}; None where it cannot be run.
    half: it computes in 16-bit floats. checks: what verification found of the two, once there were observations.
    """

    model: ir.Model
    name: str
    digest: str
    contract: dict[str, Any] = field(default_factory=dict)
    state: tuple[dict[str, Any], ...] = ()
    run: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]] | None = None
    half: bool = False
    checks: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.state:
            metadata.write(self.model, {"state": list(self.state)})


@extras()
def load(
    source: Any,
    normalizer: str | Path | None = None,
    observation_shape: tuple[int, ...] | None = None,
    trust_torchscript: bool = False,
    state: Declared | None = None,
    likely: Sequence[tuple[int, ...]] = (),
) -> Source:
    """source: path of an SB3 zip, an ONNX or a TorchScript file, a live SB3 model, or a torch.nn.Module.

    state: what an ONNX file or a module remembers, where the file does not say it itself; the other kinds know their own.
    observation_shape: of a TorchScript file or a module, without the batch; likely: what it may be where that is not given.
    """
    if isinstance(source, str | Path):
        return _load_path(Path(source), normalizer, observation_shape, trust_torchscript, state, likely)
    if hasattr(source, "policy") and hasattr(source, "predict"):
        from fewbit.sources import sb3

        _knows_its_own(type(source).__name__, state)
        return sb3.from_live(source, Path(normalizer) if normalizer else None)
    if any(t.__module__.startswith("stable_baselines3.") and t.__name__ == "BasePolicy" for t in type(source).__mro__):
        raise FewbitError(f"a {type(source).__name__} is a part of a Stable-Baselines3 model; give the model itself, or its .zip")
    from fewbit.sources import torch_module

    return torch_module.load(source, observation_shape, state, likely)


def _knows_its_own(name: str, state: Declared | None) -> None:
    if state:
        raise FewbitError(
            f"{name}: --state belongs to an ONNX file or a torch.nn.Module; this source says itself what it remembers"
        )


def _load_path(
    path: Path,
    normalizer: str | Path | None,
    shape: tuple[int, ...] | None,
    trust_torchscript: bool,
    state: Declared | None,
    likely: Sequence[tuple[int, ...]],
) -> Source:
    if not path.exists():
        raise FewbitError(f"{path}: no such file")
    if path.is_dir():
        raise FewbitError(f"{path}: is a folder; give the policy's .zip or .onnx file")
    if path.suffix != ".onnx":
        _knows_its_own(str(path), state)
    if path.suffix == ".zip":
        from fewbit.sources import sb3

        return sb3.load(path, Path(normalizer) if normalizer else None)
    if normalizer and path.suffix != ".zip":
        raise FewbitError(f"{path}: --normalizer belongs to a Stable-Baselines3 zip; another source holds its own")
    if path.suffix == ".onnx":
        from fewbit.sources import onnx_file

        return onnx_file.load(path, state)
    if path.suffix in (".pt", ".pth", ".ts", ".jit"):
        if not trust_torchscript:
            raise FewbitError(
                f"{path}: a TorchScript file can execute code when loaded; if you trust it, add --trust-torchscript"
            )
        from fewbit.sources import torchscript

        return torchscript.load(path, shape, likely)
    raise FewbitError(
        f"{path}: {path.suffix or 'no suffix'} is not a kind of network that fewbit reads; it reads .zip, .onnx and .pt"
    )


def digest(*parts: bytes) -> str:
    """sha256 of the parts, hexadecimal."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part)
    return sha.hexdigest()
