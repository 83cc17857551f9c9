"""`fewbit evaluate ARTIFACT --env ID`."""

from pathlib import Path
from typing import Annotated

import typer

from fewbit.cli import common
from fewbit.errors import FewbitError


def evaluate(
    artifact: Annotated[Path, typer.Argument(help="an artifact, or any ONNX policy")],
    env: Annotated[str, typer.Option(help="Gymnasium id (module:Id too)")],
    env_arg: Annotated[list[str] | None, typer.Option(help="NAME=VALUE for gymnasium.make, repeatable")] = None,
    against: Annotated[str | None, typer.Option(help="the float source to compare with")] = None,
    normalizer: Annotated[Path | None, typer.Option(help="vecnormalize.pkl of the source")] = None,
    keep: Annotated[float | None, typer.Option(help="exit 1 unless this share of the return is kept (reported at 0.95)")] = None,
    episodes: Annotated[int, typer.Option(help="episodes of each policy")] = 100,
    executor: Annotated[str, typer.Option(help="run it in native, onnxruntime, openvino or tensorrt")] = "native",
    trust_torchscript: Annotated[bool, typer.Option(help="load a .pt file, which can execute code")] = False,
    seed: Annotated[int, typer.Option(help="of the first episode; the next ones count on")] = 0,
    json: Annotated[bool, typer.Option("--json", help="one JSON object on standard output")] = False,
) -> int:
    """Run a policy in its environment and say what share of the float return it kept."""
    from fewbit import pipeline

    if keep is not None and against is None:
        raise FewbitError("--keep is a share of the float policy's return; add --against SOURCE")
    with common.Bar() as bar:
        record = pipeline.evaluate(
            artifact,
            env,
            against,
            common.environment_arguments(env_arg),
            0.95 if keep is None else keep,
            episodes,
            seed,
            normalizer,
            bar,
            trust_torchscript,
            executor,
        )
    common.show(record, json)
    return common.status(record, keep is not None)
