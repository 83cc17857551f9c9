"""`fewbit llm export OUT-OR-MODEL_DIR --to gguf -o FILE` and `fewbit llm imatrix MODEL_DIR -o FILE`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from fewbit.cli import common
from fewbit.errors import FewbitError


def export(
    source: Annotated[Path, typer.Argument(help="what `fewbit llm quantize` wrote, or a float checkpoint")],
    to: Annotated[str, typer.Option(help="gguf, compressed-tensors, gptq or awq")],
    out: Annotated[Path, typer.Option("-o", "--out", help="the file or folder to write")],
    kind: Annotated[
        str, typer.Option("--type", help="q4_0, iq4_nl, q4_k, …; int4, int8, w8a8, fp8, nvfp4, …; an artifact's own without")
    ] = "",
    group_size: Annotated[
        int | None, typer.Option(help="of int8 and int4 from a float checkpoint: columns that share a scale (default 128)")
    ] = None,
    symmetric: Annotated[bool, typer.Option("--symmetric", help="of int8 and int4: no zero points")] = False,
    consumer: Annotated[str, typer.Option("--for", help="vllm, llama.cpp or transformers: refuse what it does not run")] = "",
    calibration: Annotated[Path | None, typer.Option(help="of a float checkpoint: a text like what the model will read")] = None,
    method: Annotated[str | None, typer.Option(help="of a float checkpoint: auto (default), rtn, gptq, …")] = None,
    imatrix: Annotated[Path | None, typer.Option(help="with --method rtn: llama.cpp's importance matrix, for the scales")] = None,
    samples: Annotated[int | None, typer.Option(help="pieces of the calibration text, spread evenly (default 64)")] = None,
    length: Annotated[int | None, typer.Option(help="tokens of a piece (default 512)")] = None,
    json: Annotated[bool, typer.Option("--json", help="one JSON object on standard output")] = False,
) -> int:
    """Write a language model for llama.cpp, vLLM or transformers; a float checkpoint is first quantized."""
    common.needs("llm", "torch", "safetensors", "transformers")
    from fewbit.llm import artifact, methods
    from fewbit.llm import export as e
    from fewbit.llm.options import Options

    texts = {"--calibration": calibration, "--samples": samples, "--length": length}
    grid = {"--group-size": group_size, "--symmetric": symmetric}
    numbers: dict[str, Any] = {"samples": samples, "length": length, "group_size": group_size or 128}
    given = Options(symmetric=symmetric, method=method or "auto", **{k: v for k, v in numbers.items() if v is not None})
    if not source.is_dir():
        raise FewbitError(f"{source}: no such folder; give what `fewbit llm quantize` wrote, or the folder of a checkpoint")
    if artifact.is_artifact(source):
        common.belongs("a float checkpoint; this one is quantized", texts | grid | {"--method": method})
    else:
        if not methods.find(given.method).calibrated or e.find(to).plain_kind(kind, given):
            common.belongs("a type and --method that calibrate", texts)
        if kind and not kind.startswith("int"):
            common.belongs("--type int8 and int4", grid)
    with common.Bar() as bar:
        record = e.export(source, out, to, kind, given, calibration, bar, common.say, imatrix, consumer)
    common.show_pairs(record, json)
    return 0


def imatrix(
    model: Annotated[Path, typer.Argument(help="the folder of a float checkpoint")],
    out: Annotated[Path, typer.Option("-o", "--out", help="the file to write")],
    calibration: Annotated[Path, typer.Option(help="a text like what the model will read")],
    samples: Annotated[int, typer.Option(help="pieces of the text, spread evenly")] = 64,
    length: Annotated[int, typer.Option(help="tokens of a piece")] = 512,
    json: Annotated[bool, typer.Option("--json", help="one JSON object on standard output")] = False,
) -> int:
    """Write an importance matrix that llama.cpp's quantizer takes."""
    common.needs("llm", "torch", "safetensors", "transformers")
    from fewbit import files
    from fewbit.llm import imatrix as i

    files.check_new(out)
    with common.Bar() as bar:
        squares, tokens = i.measure(model, calibration, samples, length, bar)
    with files.alone(out):
        size = i.write(out, squares, tokens, calibration.name, length)
    common.show_pairs({"file": str(out), "weights": len(squares), "tokens": tokens, "bytes": size}, json)
    return 0
