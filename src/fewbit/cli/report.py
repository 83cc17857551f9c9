"""`fewbit report ARTIFACT -o REPORT.html`."""

import json as jsonlib
from pathlib import Path
from typing import Annotated

import typer

from fewbit.cli import common
from fewbit.errors import FewbitError


def report(
    artifact: Annotated[Path, typer.Argument(help="what `fewbit quantize` or `fewbit llm quantize` wrote")],
    out: Annotated[Path, typer.Option("-o", "--out", help="the page to write, .html; a file of that name is replaced")],
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
    windows: Annotated[int | None, typer.Option(help="with --text: so many windows of 512 tokens (default 4)")] = None,
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
    if film_seconds is not None and not (film and film_seconds > 0):
        raise FewbitError(f"--film-seconds {film_seconds:g}: the length of a film, above 0; it belongs to --film")
    policys = {"--normalizer": normalizer, "--trust-torchscript": trust_torchscript, "--env": env, "--observations": observations,
               "--sensitivity": sensitivity, "--film": film, "--beside": beside, "--peers": peers, "--agent": agent,
               "--bench": bench}  # fmt: skip
    if windows is not None and windows < 1:
        raise FewbitError(f"--windows {windows}: give at least 1")
    if artifact.is_dir():
        common.belongs("a policy's page", policys)
        if text is None:
            common.belongs("--text", {"--windows": windows})
        elif against is None:
            raise FewbitError("--text measures the model beside its float one; add --against MODEL_DIR")
    else:
        common.belongs("a language model's page", {"--text": text, "--windows": windows})
        if against is None:
            common.belongs("--against SOURCE", {k: policys[k] for k in ("--normalizer", "--trust-torchscript")})
        if peers is None:
            common.belongs("--peers", {"--agent": agent})
    check_writable(out)
    with common.Bar() as bar:
        if artifact.is_dir():
            made = language(
                artifact, LanguageOptions(Path(against) if against else None, text, 4 if windows is None else windows), bar
            )
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
