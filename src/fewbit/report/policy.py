"""A policy's artifact as a page: the sections that its record and what lies at hand can fill, and what the others would need."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from fewbit import pipeline, sources
from fewbit.diff import actions
from fewbit.engine.description import describe
from fewbit.engine.load import load, quickest
from fewbit.errors import FewbitError
from fewbit.graph import metadata
from fewbit.graph.qdq import Scheme
from fewbit.graph.quantize import quantize as build
from fewbit.graph.read import read
from fewbit.graph.record import known
from fewbit.observations import calibration
from fewbit.report.answer import answer
from fewbit.report.episodes import Trace, episodes, trace
from fewbit.report.layers import layers
from fewbit.report.page import page
from fewbit.report.peers import peers, timings
from fewbit.report.search import search
from fewbit.report.sensitivity import sensitivity

Section = dict[str, Any]
Missing = dict[str, str]
OTHER_SEEDS = 50  # between the seeds of calibration and those of the states that this page compares on
STEPS = 1000  # of the traced episode, at most
TITLES = {
    "answer": "The answer", "search": "The search", "episodes": "The episodes", "play": "Play it",
    "layers": "Where the error comes in",
}  # fmt: skip
AGAINST = "fewbit report ARTIFACT -o REPORT.html --against SOURCE"


@dataclass(frozen=True)
class Options:
    """What a page may use besides the artifact. source: the float one (normalizer, trust_torchscript: as sources.load has
    them); env: to run in, the recipe's if None; observations: a file to compare on instead of an environment's; peers: a file of
    benchmarks/policies.py, agent: the policy in it; bench: what fewbit bench --json printed; sensitivity: measure each layer
    alone; film: so many `seconds` of both; beside: another artifact of the same source, in the film and to play."""

    source: Any = None
    normalizer: Path | None = None
    trust_torchscript: bool = False
    env: str | None = None
    observations: Path | None = None
    peers: Path | None = None
    agent: str | None = None
    bench: Path | None = None
    sensitivity: bool = False
    film: bool = False
    beside: Path | None = None
    seconds: float = 8.0


@dataclass(frozen=True)
class Bench:
    """An artifact on the table: its graph, its record as far as it can be relied on, its float source, if given, and the
    environment to run both in, or why there is none."""

    model: ir.Model
    record: dict[str, Any]
    options: Options
    original: sources.Source | None
    env: str | None
    no_env: str
    env_args: dict[str, Any]
    progress: Callable[[str, int, int], None]

    @property
    def seed(self) -> int:
        seed = self.record["recipe"].get("seed")
        return seed if isinstance(seed, int) and 0 <= seed < 1 << 31 else 0

    @cached_property
    def feeds(self) -> dict[str, np.ndarray]:
        """Observations by input name, of episodes that it was not calibrated on."""
        assert self.original is not None
        env = None if self.options.observations else self.env
        return calibration(self.original, env, self.options.observations, self.env_args, self.seed + OTHER_SEEDS)


def policy(artifact: Path, options: Options, progress: Callable[[str, int, int], None] = lambda what, done, of: None) -> str:
    """The page's text."""
    model = read(artifact)
    record = metadata.read(model)
    bench = _measured(_bench(model, known(record), options, progress), artifact)
    found = {"answer": _answer(bench, artifact.name), "search": _search(bench), "episodes": _episodes(bench),
             "play": _play(bench), "layers": _layers(bench)}  # fmt: skip
    sections = [{"id": k, "title": TITLES[k]} | v for k, v in found.items() if "why" not in v]
    missing = [{"what": TITLES[k]} | v for k, v in found.items() if "why" in v]
    return page(artifact.name, sections, missing, record)


def _bench(model: ir.Model, record: dict[str, Any], options: Options, progress: Callable[[str, int, int], None]) -> Bench:
    if options.source is None and (options.film or options.sensitivity or options.observations):
        raise FewbitError("--film, --sensitivity and --observations compare with the float source; add --against SOURCE")
    original, args = _original(model, record["recipe"], options), record["recipe"].get("env_args")
    args = args if isinstance(args, dict) else {}
    env, why = _environment(record, options, args) if original is not None else (_named(record, options), "")
    if why and (options.film or options.sensitivity):
        raise FewbitError(why)
    return Bench(model, record, options, original, env, why, args, progress)


def _measured(bench: Bench, artifact: Path) -> Bench:
    """What can be had at once where the record lacks it: sizes, and how far the actions are off on what is compared on."""
    sizes = {"size_bytes": artifact.stat().st_size, "packed_bytes": describe(bench.model).packed_bytes}
    if bench.original is not None:
        sizes["size_float_bytes"] = len(ir.to_proto(bench.original.model).SerializeToString())
    record = bench.record | {"evidence": sizes | bench.record["evidence"]}
    given = bench.options.observations is not None
    if bench.original is not None and (given or (bench.env and not record["fidelity"])):
        record["fidelity"] = actions(bench.original.model, bench.model, bench.feeds)
    return replace(bench, record=record)


def _original(model: ir.Model, recipe: dict[str, Any], options: Options) -> sources.Source | None:
    """The float source; refused if the artifact was made from another."""
    if options.source is None:
        return None
    declared = pipeline.declared(options.source, model)
    original = sources.load(options.source, options.normalizer, None, options.trust_torchscript, declared)
    pipeline.check_source({"recipe": recipe}, original)
    return original


def _named(record: dict[str, Any], options: Options) -> str | None:
    env = options.env or record["evidence"].get("env") or record["recipe"].get("env")
    return env if isinstance(env, str) else None


def _environment(record: dict[str, Any], options: Options, args: dict[str, Any]) -> tuple[str | None, str]:
    """(the environment that can be run, or None; why not). A file may not say which modules are imported: the user does."""
    env = _named(record, options)
    if env is None:
        return None, "It names no environment; add --env ID."
    if ":" in env and options.env is None:
        return None, f"The artifact names {env}, a module that would be imported; if you trust it, add --env {env}"
    if options.film:
        from fewbit.report.film import off_screen

        off_screen()
    try:
        from fewbit.rl import returns

        returns.make(env, args).close()
    except FewbitError as e:
        return None, str(e)
    return env, ""


def _lack(why: str, how: str = "") -> Missing:
    return {"why": why, "how": how}


def _answer(bench: Bench, name: str) -> Section:
    options = bench.options
    beside = peers(options.peers, options.agent, bench.record["evidence"]) if options.peers else []
    return answer(bench.record, name, beside, timings(options.bench) if options.bench else [])


def _search(bench: Bench) -> Section | Missing:
    found = search(bench.record)
    if found is None:
        how = "fewbit quantize SOURCE -o OUT.onnx --env ID --method auto"
        return _lack("No search took place: one scheme was asked for, or nothing was measured.", how)
    return found


def _layers(bench: Bench) -> Section | Missing:
    if bench.original is None:
        return _lack("It takes the float source, which the artifact does not hold.", AGAINST)
    if bench.env is None and bench.options.observations is None:
        return _lack(f"It takes states to compare on. {bench.no_env}", f"{AGAINST} --observations FILE")
    found = layers(bench.original.model, bench.model, bench.record["recipe"], bench.feeds)
    rows = _sensitivity(bench) if bench.options.sensitivity and bench.env else []
    return found | {"sensitivity": sensitivity(rows) if rows else None}


def _episodes(bench: Bench) -> Section | Missing:
    evidence = bench.record["evidence"]
    floats, quantized = (evidence.get(f"returns_{k}", []) for k in ("float", "quantized"))
    floats, quantized = (floats, quantized) if len(floats) == len(quantized) else ([], [])
    seeds = evidence.get("seeds")
    seed = int(seeds[0]) if seeds and 0 <= seeds[0] < 1 << 31 else bench.seed
    section: Section = {"film": None, "seed": seed, "env": bench.env}
    if bench.original is None or bench.env is None:
        if not floats:
            return _lack(
                f"The artifact does not hold its episodes, and nothing to run them with is at hand. {bench.no_env}", AGAINST
            )
        return episodes(floats, quantized, seed, None) | section
    policies = {"float": load(bench.original.model, "onnxruntime"), "quantized": quickest(bench.model)}
    traces = _traces(bench, policies, seed)
    if traces is None and not floats:
        return _lack("Observations are images, whose traces are not drawn.")
    if bench.options.film:
        section |= {"film": _film(bench, policies, seed), "script": "film"}
    return episodes(floats, quantized, seed, traces) | section


def _traces(bench: Bench, policies: dict[str, Any], seed: int) -> tuple[Trace, Trace] | None:
    """One episode of each; None where observations are images."""
    from fewbit.rl import returns

    if any(len(shape) > 1 for shape in policies["float"].inputs.values()):
        return None
    room = returns.make(str(bench.env), bench.env_args)
    try:
        returns.check(str(bench.env), room, policies["float"].inputs)
        return trace(policies["float"], room, seed, STEPS), trace(policies["quantized"], room, seed, STEPS)
    finally:
        room.close()


def _film(bench: Bench, policies: dict[str, Any], seed: int) -> dict[str, Any]:
    from fewbit.report.film import film

    beside = {_title(read(bench.options.beside)): quickest(read(bench.options.beside))} if bench.options.beside else {}
    cast = {"float32": policies["float"]} | beside | {_title(bench.model): policies["quantized"]}
    return film(cast, str(bench.env), bench.env_args, seed, bench.options.seconds)


def _play(bench: Bench) -> Section | Missing:
    """Float, this artifact and one of fewer bits: `beside`, or int2 of the same source, made here without training."""
    from fewbit.report import play

    if bench.env not in play.WORLDS:
        return _lack(f"The page knows the equations of {' and '.join(play.WORLDS)} only.")
    if (why := play.compiler()) is not None:
        return _lack(why, "apt-get install clang lld")
    players = []
    try:
        if bench.original is not None:
            players.append(play.float_player("float32", bench.original.model))
        players.append(play.player(_title(bench.model), bench.model))
        if bench.options.beside:
            few = read(bench.options.beside)
            players.append(play.player(_title(few), few))
        elif bench.original is not None:  # seconds: training takes minutes
            few = build(bench.original.model, bench.feeds, Scheme("int2", method="smooth+gptq"))[0]
            players.append(play.player("int2, not trained", few))
    except FewbitError as e:
        return _lack(f"It cannot be played: {e}.")
    return {"world": bench.env, "players": players, "script": "play"}


def _title(model: ir.Model) -> str:
    recipe = known(metadata.read(model))["recipe"]
    spelled = {"rtn": "rounded to nearest", "qat": "trained", "smooth+gptq": "columns scaled, GPTQ"}
    method = str(recipe.get("method", ""))
    method = spelled.get(method, method)
    return f"{recipe.get('weights', 'quantized')}, {method}"


def _sensitivity(bench: Bench) -> list[dict[str, Any]]:
    weights, options = bench.record["recipe"].get("weights"), bench.options
    return pipeline.sensitivity(
        options.source, str(bench.env), str(weights or "int4"), seed=bench.seed, normalizer=options.normalizer,
        env_args=bench.env_args, progress=bench.progress, trust_torchscript=options.trust_torchscript,
    )  # fmt: skip
