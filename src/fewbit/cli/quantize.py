"""`fewbit quantize SOURCE -o OUT.onnx`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from fewbit.artifact import Artifact
from fewbit.cli import common
from fewbit.engine.description import describe
from fewbit.errors import FewbitError
from fewbit.files import check_writable
from fewbit.graph.qdq import Scheme
from fewbit.ladder import TRAINED
from fewbit.training import Training

FEW = 30  # observations below which neither ranges nor an error say much


def quantize(
    source: Annotated[str, typer.Argument(help="a Stable-Baselines3 .zip, an .onnx file or a TorchScript .pt")],
    out: Annotated[Path, typer.Option("-o", "--out", help="the artifact to write, .onnx; replaces a file of that name")],
    env: Annotated[str | None, typer.Option(help="Gymnasium id (module:Id too): calibrate and measure there")] = None,
    env_arg: Annotated[list[str] | None, typer.Option(help="NAME=VALUE for gymnasium.make, repeatable")] = None,
    observations: Annotated[Path | None, typer.Option(help=f"calibrate on recorded ones: {common.OBSERVATIONS}")] = None,
    normalizer: Annotated[
        Path | None, typer.Option(help="vecnormalize.pkl, if it does not lie beside the zip; none: without")
    ] = None,
    weights: Annotated[
        str, typer.Option(help="int8, int6, int4, int3, int2, ternary, int16, float16, bfloat16; auto: search")
    ] = "int8",
    activations: Annotated[str, typer.Option(help="uint8 (behind a ReLU; int8 elsewhere), int8 or uint16")] = "uint8",
    inputs: Annotated[str, typer.Option(help="observations: int16 or int8")] = "int16",
    ranges: Annotated[str, typer.Option(help="activations: minmax, moving_average, percentile, mse, entropy")] = "minmax",
    method: Annotated[
        str,
        typer.Option(help="auto: climb until enough is kept; rtn, gptq, adaround, smooth+gptq, awq, clip+gptq, dynamic, qat"),
    ] = "auto",
    target: Annotated[str, typer.Option(help="any, or by one runtime's rules: onnxruntime, openvino, tensorrt")] = "any",
    train_steps: Annotated[
        int | None, typer.Option(help="of qat (default 30000); it goes on where it was killed, if given the same again")
    ] = None,
    keep: Annotated[float | None, typer.Option(help="share of the return to keep (default 0.95); exit 1 if it is not")] = None,
    episodes: Annotated[int | None, typer.Option(help="at most so many (default 100); fewer where the verdict is clear")] = None,
    layer: Annotated[list[str] | None, typer.Option(help="NAME=FORMAT: weights of one layer, repeatable")] = None,
    budget: Annotated[int | None, typer.Option(help="bytes of weights: int4 to int16 by layer, where they are needed")] = None,
    trust_torchscript: Annotated[bool, typer.Option(help="load a .pt file, which can execute code")] = False,
    state: Annotated[list[str] | None, typer.Option(help="INPUT=OUTPUT of an .onnx file that remembers, repeatable")] = None,
    seed: Annotated[int, typer.Option(help="of episodes, calibration and training")] = 0,
    json: Annotated[bool, typer.Option("--json", help="one JSON object on standard output")] = False,
) -> int:
    """Quantize a trained network, measure it in its environment, and write the artifact."""
    from fewbit import pipeline

    if out.suffix != ".onnx":
        raise FewbitError(f"{out}: the artifact's name must end in .onnx")
    check_writable(out, source)
    measured = {"--keep": keep is not None, "--env-arg": bool(env_arg), "--episodes": episodes is not None}
    if env is None and any(measured.values()):
        option = next(name for name, given in measured.items() if given)
        raise FewbitError(f"{option} belongs to an environment to measure in; add --env ID")
    search = method == "auto" and env is not None and budget is None
    if train_steps is not None and method != "qat" and not (search and weights in ("auto", *TRAINED)):
        raise FewbitError(
            f"--train-steps belongs to --method qat, or to a search in --env from {', '.join(TRAINED)} or auto weights; "
            "here nothing trains"
        )
    unfinished = out.with_name(f".{out.name}.training.part")
    try:
        with common.Bar() as bar:
            artifact = pipeline.quantize(
                source,
                env,
                observations,
                Scheme(weights, activations, inputs, method, ranges, common.layer_formats(layer), target),
                normalizer,
                common.environment_arguments(env_arg),
                0.95 if keep is None else keep,
                100 if episodes is None else episodes,
                seed,
                budget=budget,
                progress=bar,
                trust_torchscript=trust_torchscript,
                state=common.states(state),
                training=Training(steps=30_000 if train_steps is None else train_steps, checkpoint=unfinished),
            )
    except KeyboardInterrupt:
        if unfinished.exists():
            common.say(f"fewbit: training so far is in {unfinished}; the same command goes on from there")
        raise
    artifact.save(out)
    unfinished.unlink(missing_ok=True)
    record = artifact.record.get("evidence") or _unmeasured(artifact, out)
    tried = artifact.record.get("search", [])
    if json:
        common.show(record, True, {"artifact": str(out), "search": tried})
    else:
        common.show_search(tried)
        common.show(record, False, {"artifact": str(out)})
    return common.status(record, keep is not None or method == "auto")


def _unmeasured(artifact: Artifact, out: Path) -> dict[str, Any]:
    """What is known without an environment; that ONNX Runtime runs it, not fewbit's engine, is said here."""
    described = describe(artifact.model)
    if described.reason:
        common.say(f"fewbit: {out} runs in ONNX Runtime, not in fewbit's engine: {described.reason}")
    fidelity = {k: artifact.record[k] for k in ("fidelity",) if k in artifact.record}
    if (states := artifact.record.get("fidelity", {}).get("states", FEW)) < FEW:
        common.say(
            f"fewbit: warning: ranges and error are of {states} observations only; some hundreds make them worth something"
        )
    return {"size_bytes": out.stat().st_size, "exact": described.exact} | fidelity
