"""`fewbit bench ARTIFACT`."""

import json as jsonlib
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from fewbit.cli import common, streams
from fewbit.errors import FewbitError
from fewbit.graph import metadata

CHECK = (
    "RMS difference, of the actions' range, from the network that the runner was given (float32: with the artifact's weights) "
    "as NumPy runs it; it shows that the runner is right, not what quantization cost"
)


def bench(
    artifact: Annotated[Path, typer.Argument(help="an artifact, or any ONNX policy")],
    batch: Annotated[str, typer.Option(help="batch sizes, with commas")] = "1,16,256",
    against: Annotated[str | None, typer.Option(help="peers, with commas: onnxruntime,openvino,numpy,torch,sb3")] = None,
    source: Annotated[str | None, typer.Option(help="the policy's own .zip, to time sb3 too")] = None,
    json: Annotated[bool, typer.Option("--json", help="one JSON object on standard output")] = False,
) -> int:
    """Time a policy in fewbit's engine and in other runtimes: one process, in turns, medians, one thread each."""
    from fewbit import bench as b
    from fewbit.graph.read import read
    from fewbit.peers import SESSION_OPTIONS

    names = against.split(",") if against else None
    if source is not None and names is not None and "sb3" not in names:
        raise FewbitError("--source is for the peer sb3, which is not among --against; add sb3, or leave --source out")
    sizes = [int(n) for n in batch.split(",") if n.isdigit() and int(n) > 0]
    if len(sizes) != len(batch.split(",")):
        raise FewbitError(f"--batch {batch}: give sizes with commas, such as 1,16,256")
    model = read(artifact)
    found = b.bench(model, sizes, names, source)
    if json:
        print(jsonlib.dumps(found | {"timings": [asdict(t) for t in found["timings"]], "session_options": SESSION_OPTIONS}))
        return 0
    _show(found, sizes)
    streams.out(_cost(metadata.read(model)))
    streams.out(f"onnxruntime: {SESSION_OPTIONS}")
    for name, why in found["skipped"].items():
        streams.out(f"{name}: not timed: {why}")
    return 0


def _show(found: dict[str, Any], sizes: list[int]) -> None:
    """A line a runner: microseconds, and how many times fewbit's own."""
    ours, width = found["timings"][0], 24
    heads = "".join(f"{f'batch {n}':>18}" for n in sizes)
    streams.out(f"{f'us a call, (times {ours.name})':{width}}{heads}  beside its own reference")
    for t in found["timings"]:
        cells = "".join(f"{f'{t.us[n]:.2f} ({t.us[n] / ours.us[n]:.1f}x)':>18}" for n in sizes)
        streams.out(f"{t.name:{width}}{cells}  {t.error:.2%}" + ("" if t.right else " WRONG"))
    if "bare_us" not in found:
        return
    bare = "".join(f"{found['bare_us'][n]:>11.2f}       " for n in sizes)
    streams.out(f"{'C++ alone':{width}}{bare}  {found['instruction_set']}")
    streams.out(f"{'an empty call':{width}}{found['empty_call_us']:>11.3f}")
    streams.out("C++ alone: fewbit without Python around it, timed apart from the rest: of close ones either may be below")
    streams.out(f"beside its own reference: {CHECK}")


def _cost(record: dict[str, Any]) -> str:
    """What quantization did to the actions, as far as the artifact knows."""
    measured = record.get("evidence") or record.get("fidelity")
    if isinstance(measured, dict) and ("action_rmse" in measured or "action_agreement" in measured):
        return f"recorded when it was quantized: {' '.join(common.fidelity(measured))}"
    return "what quantization did to the actions: fewbit diff SOURCE ARTIFACT --observations FILE"
