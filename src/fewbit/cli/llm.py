"""`fewbit llm quantize MODEL_DIR -o OUT`, `fewbit llm perplexity OUT --text TEXT --against MODEL_DIR`, `fewbit llm generate`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from fewbit.cli import common, llm_eval, llm_export, llm_generate
from fewbit.errors import FewbitError

app = typer.Typer(help="Language models: weights of few bits, and what they cost.", **common.HELP)


@app.callback(invoke_without_command=True)
def _alone(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def quantize(
    model: Annotated[Path, typer.Argument(help="the folder of a Hugging Face checkpoint")],
    out: Annotated[Path, typer.Option("-o", "--out", help="the folder to write; another artifact there is not replaced")],
    weights: Annotated[
        str | None, typer.Option(help="int4 (default), int8, int3, int2; or a type of llama.cpp: q4_0, iq4_nl, q4_k, …")
    ] = None,
    group_size: Annotated[
        int | None, typer.Option(help="columns that share a scale (default 64); llama.cpp's types have their own")
    ] = None,
    symmetric: Annotated[bool, typer.Option("--symmetric", help="no zero points")] = False,
    method: Annotated[str, typer.Option(help="auto, rtn, gptq, awq, awq+gptq")] = "auto",
    calibration: Annotated[Path | None, typer.Option(help="a text file like what the model will read")] = None,
    imatrix: Annotated[Path | None, typer.Option(help="with --method rtn: llama.cpp's importance matrix, for the scales")] = None,
    consumer: Annotated[str, typer.Option("--for", help="vllm, llama.cpp or transformers: refuse what it does not run")] = "",
    bits_per_weight: Annotated[float | None, typer.Option(help="int2 to int8 by layer, within so many, scales counted")] = None,
    head: Annotated[str, typer.Option(help="int8, int4, …: the head too, if it is not the embedding; float")] = "",
    embedding: Annotated[str, typer.Option(help="int8, …: the embedding, and the head that is tied to it; float")] = "",
    samples: Annotated[int | None, typer.Option(help="pieces of the calibration text, spread evenly (default 64)")] = None,
    length: Annotated[int | None, typer.Option(help="tokens of a piece (default 512)")] = None,
    json: Annotated[bool, typer.Option("--json", help="one JSON object on standard output")] = False,
) -> int:
    """Quantize a language model's weights block by block; the same command goes on after a kill."""
    common.needs("llm", "torch", "safetensors", "transformers")
    from fewbit.llm import methods
    from fewbit.llm import quantize as q
    from fewbit.llm.options import Options
    from fewbit.llm.work import part_of
    from fewbit.numerics import ggml

    if not methods.find(method).calibrated:
        texts = {"--calibration": calibration, "--samples": samples, "--length": length}
        common.belongs("a --method that calibrates", texts)
    if weights in ggml.TYPES:
        common.belongs("int8, int4, int3 and int2 weights", {"--group-size": group_size, "--symmetric": symmetric})
    elif weights is not None and bits_per_weight is not None:
        raise FewbitError(f"--bits-per-weight chooses int2 to int8 layer by layer; leave out --weights {weights}")
    given: dict[str, Any] = {"weights": weights, "group_size": group_size, "samples": samples, "length": length}
    options = Options(
        symmetric=symmetric, method=method, bits_per_weight=bits_per_weight, head=head, embedding=embedding,
        **{k: v for k, v in given.items() if v is not None},
    )  # fmt: skip
    try:
        with common.Bar() as bar:
            record = q.quantize(model, out, options, calibration, bar, common.say, imatrix, consumer)
    except KeyboardInterrupt:
        if part_of(out).exists():
            common.say(f"fewbit: what is finished is in {part_of(out)}; the same command goes on from there")
        raise
    common.show_pairs(record if json else {k: v for k, v in record.items() if "forecast" not in k}, json)  # it was said already
    return 0


@app.command()
def perplexity(
    model: Annotated[Path, typer.Argument(help="an artifact, or any checkpoint")],
    text: Annotated[Path, typer.Option(help="a text file")],
    against: Annotated[Path | None, typer.Option(help="the float checkpoint: KL divergence and top-1 agreement too")] = None,
    window: Annotated[int, typer.Option(help="tokens of a window, with what the tokenizer begins a text (BOS)")] = 1024,
    stride: Annotated[int | None, typer.Option(help="tokens of text from one window's begin to the next's")] = None,
    windows: Annotated[int | None, typer.Option(help="at most so many; all")] = None,
    start: Annotated[float, typer.Option(help="share of the text to leave out before the first")] = 0.0,
    activations: Annotated[str, typer.Option(help="int8: what 8-bit activations cost beside, simulated")] = "",
    kv: Annotated[str, typer.Option(help="int8: an 8-bit KV cache")] = "",
    json: Annotated[bool, typer.Option("--json", help="one JSON object on standard output")] = False,
) -> int:
    """Measure a language model on a text, beside its float original."""
    common.needs("llm", "torch", "safetensors", "transformers")
    from fewbit.llm import artifact, calibration, kv_cache, simulate, source
    from fewbit.llm import perplexity as p

    if window < 2 or (stride is not None and stride < 1) or (windows is not None and windows < 1) or not 0 <= start < 1:
        raise FewbitError("--window must be at least 2, --stride and --windows at least 1, --start from 0 to below 1")
    if activations not in simulate.KINDS or kv not in kv_cache.KINDS:
        raise FewbitError(f"--activations {activations or 'float'} --kv {kv or 'float'}: int8, or leave it out")
    for folder in (model, against):
        if folder is not None and not folder.is_dir():
            raise FewbitError(f"{folder}: no such folder; give the folder of a checkpoint or of an artifact")
    if not artifact.is_artifact(model):
        source.open_source(model)
    first = calibration.beginning(model)
    ids = calibration.windows(calibration.tokens(model, text), window, stride, start, windows, str(text), first)
    with common.Bar() as bar:
        loaded = p.load(model)
        if activations:
            simulate.activations(loaded)
        record = p.perplexity(loaded, ids, p.load(against) if against else None, bar, kv)
    begun = {"windows_begin_with": first.names} if first.ids else {}
    common.show_pairs({"model": str(model), "bytes": artifact.size(model)} | begun | record, json)
    return 0


app.command()(llm_generate.generate)
app.command()(llm_export.export)
app.command()(llm_export.imatrix)
app.command("eval")(llm_eval.evaluate)
