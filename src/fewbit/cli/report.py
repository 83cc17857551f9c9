"""`fewbit report ARTIFACT -o REPORT.html`."""

import json as jsonlib
from pathlib import Path
from typing import Annotated

import typer

from fewbit.cli import common
from fewbit.errors import FewbitError


def report(
    artifact: Annotated[Path, typer.Argument(help="what `fewbit quantize` or `fewbit llm quantize` wrote")],
    out: Annotated[Path, typer.Option("-o", "--out", help="the page to write, .html")],
    against: Annotated[str | None, typer.Option(help="the float source (of a language model its folder) to compare with")] = None,
    normalizer: Annotated[Path | None, typer.Option(help="vecnormalize.pkl of the source")] = None,
    trust_torchscript: Annotated[bool, typer.Option(help="load a .pt file, which can execute code")] = False,
    env: Annotated[str | None, typer.Option(help="Gymnasium id, if not the one that the artifact names")] = None,
    observations: Annotated[Path | None, typer.Option(help=f"compare layers on: {common.OBSERVATIONS}")] = None,
    sensitivity: Annotated[bool, typer.Option("--sensitivity", help="measure each layer alone (minutes)")] = False,
    film: Annotated[bool, typer.Option("--film", help="a film of both policies, where the environment can be rendered")] = False,
    film_seconds: Annotated[float | None, typer.Option(help="with --film: its length (default 8)")] = None,
    beside: Annotated[Path | None, typer.Option(help="another artifact of the source, in the film and to play")] = None,
    text: Annotated[Path | None, typer.Option(help="of a language model: measure on the second half of this text")] = None,
    windows: Annotated[int, typer.Option(help="with --text: so many windows of 512 tokens")] = 4,
    peers: Annotated[Path | None, typer.Option(help="common tools beside it: a .jsonl file of benchmarks/policies.py")] = None,
    agent: Annotated[str | None, typer.Option(help="with --peers: which of its policies this is")] = None,
    bench: Annotated[Path | None, typer.Option(help="other runtimes' times: a file of `fewbit bench ARTIFACT --json`")] = None,
    json: Annotated[bool, typer.Option("--json", help="one JSON object on standard output")] = False,
) -> int:
    """Write one page, a single file, that shows what quantization did to a network."""
    from fewbit.files import check_writable, write_whole
    from fewbit.report.language import Options as LanguageOptions
    from fewbit.report.language import language
    from fewbit.report.policy import Options, policy

    if out.suffix != ".html":
        raise FewbitError(f"{out}: the page's name must end in .html")
    if text is not None and artifact.is_file():
        raise FewbitError("--text is of a language model; a policy's page takes --observations")
    if film_seconds is not None and not (film and film_seconds > 0):
        raise FewbitError(f"--film-seconds {film_seconds:g}: the length of a film, above 0; it belongs to --film")
    check_writable(out)
    with common.Bar() as bar:
        if artifact.is_dir():
            made = language(artifact, LanguageOptions(Path(against) if against else None, text, windows), bar)
        else:
            options = Options(
                against,
                normalizer,
                trust_torchscript,
                env,
                observations,
                peers,
                agent,
                bench,
                sensitivity,
                film,
                beside,
                film_seconds or 8.0,
            )
            made = policy(artifact, options, bar)
    size = write_whole(out, made)
    print(jsonlib.dumps({"report": str(out), "size_bytes": size}) if json else f"{out}: {size:,} bytes")
    return 0
