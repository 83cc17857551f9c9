"""`fewbit quantize SOURCE -o OUT.onnx`."""

from pathlib import Path
from typing import Annotated

import typer

from fewbit.cli import common
from fewbit.errors import FewbitError
from fewbit.graph.qdq import Scheme


def quantize(
    source: Annotated[str, typer.Argument(help="a Stable-Baselines3 .zip or an .onnx file")],
    out: Annotated[Path, typer.Option("-o", "--out", help="the artifact to write")],
    env: Annotated[str | None, typer.Option(help="Gymnasium id (module:Id too): calibrate and measure there")] = None,
    env_arg: Annotated[list[str] | None, typer.Option(help="NAME=VALUE for gymnasium.make, repeatable")] = None,
    observations: Annotated[Path | None, typer.Option(help="calibrate on this .npy array [n, ...]")] = None,
    normalizer: Annotated[Path | None, typer.Option(help="vecnormalize.pkl, if it does not lie beside the zip")] = None,
    weights: Annotated[str, typer.Option(help="int8, int6, int4, int3 or int2")] = "int8",
    activations: Annotated[str, typer.Option(help="uint8 (behind a ReLU; int8 elsewhere) or int8")] = "uint8",
    inputs: Annotated[str, typer.Option(help="observations: int16 or int8")] = "int16",
    method: Annotated[str, typer.Option(help="rtn: round to nearest; dynamic: activation ranges at run time")] = "rtn",
    keep: Annotated[float | None, typer.Option(help="exit 1 unless this share of the return is kept (reported at 0.95)")] = None,
    episodes: Annotated[int, typer.Option(help="at most so many; fewer where the verdict is clear")] = 100,
    seed: int = 0,
    json: Annotated[bool, typer.Option("--json", help="one JSON object on standard output")] = False,
) -> int:
    """Quantize a trained network, measure it in its environment, and write the artifact."""
    from fewbit import pipeline

    if out.suffix != ".onnx":
        raise FewbitError(f"{out}: the artifact's name must end in .onnx")
    if not out.parent.is_dir():
        raise FewbitError(f"{out}: the folder {out.parent} does not exist")
    with common.Bar() as bar:
        artifact = pipeline.quantize(
            source,
            env,
            observations,
            Scheme(weights, activations, inputs),
            normalizer,
            common.environment_arguments(env_arg),
            keep or 0.95,
            episodes,
            seed,
            method=method,
            progress=bar,
        )
        artifact.save(out)
    record = artifact.record.get("evidence") or {"size_bytes": out.stat().st_size}
    common.show(record, json, {"artifact": str(out)})
    return common.status(record, keep is not None)
