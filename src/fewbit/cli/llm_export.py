"""`fewbit llm export OUT-OR-MODEL_DIR --to gguf -o FILE`."""

from pathlib import Path
from typing import Annotated

import typer

from fewbit.cli import common


def export(
    source: Annotated[Path, typer.Argument(help="what `fewbit llm quantize` wrote, or a float checkpoint")],
    to: Annotated[str, typer.Option(help="gguf")],
    out: Annotated[Path, typer.Option("-o", "--out", help="the file or folder to write")],
    kind: Annotated[str, typer.Option("--type", help="gguf: q4_0, q4_1, q8_0, iq4_nl, q4_k, q5_k, q6_k, f16, f32")] = "",
    calibration: Annotated[Path | None, typer.Option(help="of a float checkpoint: a text like what the model will read")] = None,
    method: Annotated[str, typer.Option(help="of a float checkpoint: auto, rtn, gptq, …")] = "auto",
    samples: Annotated[int, typer.Option(help="pieces of the calibration text, spread evenly")] = 64,
    length: Annotated[int, typer.Option(help="tokens of a piece")] = 512,
    json: Annotated[bool, typer.Option("--json", help="one JSON object on standard output")] = False,
) -> int:
    """Write a language model for llama.cpp; a float checkpoint is first quantized, on the grid of the type."""
    common.needs("llm", "torch", "safetensors", "transformers")
    from fewbit.llm import export as e
    from fewbit.llm.options import Options

    given = Options(method=method, samples=samples, length=length)
    with common.Bar() as bar:
        record = e.export(source, out, to, kind, given, calibration, bar, common.say)
    common.show_pairs(record, json)
    return 0
