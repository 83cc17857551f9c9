"""A policy's artifact as a page: the sections that its record and what lies at hand can fill, and what the others would need."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from fewbit import pipeline, sources
from fewbit.engine.load import load, quickest
from fewbit.errors import FewbitError
from fewbit.graph import metadata
from fewbit.graph.qdq import Scheme
from fewbit.graph.quantize import quantize as build
from fewbit.graph.read import read
from fewbit.observations import calibration
from fewbit.report.answer import answer
from fewbit.report.episodes import episodes, trace
from fewbit.report.layers import layers
from fewbit.report.page import page
from fewbit.report.peers import peers
from fewbit.report.record import known
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
    them); env: to run in, the recipe's if None; observations: .npy to compare on instead of an environment's; peers: a file of
    benchmarks/policies.py, agent: the policy in it; sensitivity: measure each layer alone; film: so many `seconds` of both;
    beside: another artifact of the same source, in the film and to play."""

    source: Any = None
    normalizer: Path | None = None
    trust_torchscript: bool = False
    env: str | None = None
    observations: Path | None = None
    peers: Path | None = None
    agent: str | None = None
    sensitivity: bool = False
    film: bool = False
    beside: Path | None = None
    seconds: float = 8.0


@dataclass(frozen=True)
class Bench:
    """An artifact on the table: its graph, its record as far as it can be relied on, and its float source, if given."""

    model: ir.Model
    record: dict[str, Any]
    options: Options
    original: sources.Source | None
    env: str | None
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
    bench = _bench(model, known(record), options, progress)
    found = {"answer": _answer(bench, artifact.name), "search": _search(bench), "episodes": _episodes(bench),
             "play": _play(bench), "layers": _layers(bench)}  # fmt: skip
    sections = [{"id": k, "title": TITLES[k]} | v for k, v in found.items() if "why" not in v]
    missing = [{"what": TITLES[k]} | v for k, v in found.items() if "why" in v]
    return page(artifact.name, sections, missing, record)


def _bench(model: ir.Model, record: dict[str, Any], options: Options, progress: Callable[[str, int, int], None]) -> Bench:
    if options.film:
        from fewbit.report.film import off_screen

        off_screen()
    original = None
    if options.source is not None:
        declared = pipeline.declared(options.source, model)
        original = sources.load(options.source, options.normalizer, None, options.trust_torchscript, declared)
    recipe, evidence = record["recipe"], record["evidence"]
    env = options.env or evidence.get("env") or recipe.get("env")
    args = recipe.get("env_args")
    return Bench(
        model, record, options, original, env if isinstance(env, str) else None, args if isinstance(args, dict) else {}, progress
    )


def _lack(why: str, how: str = "") -> Missing:
    return {"why": why, "how": how}


def _answer(bench: Bench, name: str) -> Section:
    options = bench.options
    return answer(bench.record, name, peers(options.peers, options.agent, bench.record["evidence"]) if options.peers else [])


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
        return _lack("It takes states to compare on.", f"{AGAINST} --observations FILE.npy")
    found = layers(bench.original.model, bench.model, bench.record["recipe"], bench.feeds)
    rows = _sensitivity(bench) if bench.options.sensitivity and bench.env else []
    return found | {"sensitivity": sensitivity(rows) if rows else None}


def _episodes(bench: Bench) -> Section | Missing:
    evidence = bench.record["evidence"]
    floats, quantized = (evidence.get(f"returns_{k}", []) for k in ("float", "quantized"))
    floats, quantized = (floats, quantized) if len(floats) == len(quantized) else ([], [])
    seeds = evidence.get("seeds")
    if bench.original is None or bench.env is None:
        if not floats:
            return _lack("The artifact does not hold its episodes, and there is no source to run beside it.", AGAINST)
        return episodes(floats, quantized, seeds, None) | {"film": None, "seed": None, "env": bench.env}
    from fewbit.rl import returns

    policies = {"float": load(bench.original.model, "onnxruntime"), "quantized": quickest(bench.model)}
    seed, room = int(seeds[0]) if seeds else bench.seed, returns.make(bench.env, bench.env_args)
    try:
        returns.check(bench.env, room, policies["float"].inputs)
        traces = (trace(policies["float"], room, seed, STEPS), trace(policies["quantized"], room, seed, STEPS))
    finally:
        room.close()
    shown = _film(bench, policies, seed) if bench.options.film else None
    found = episodes(floats, quantized, seeds, traces) | {"film": shown, "seed": seed, "env": bench.env}
    return found | ({"script": "film"} if shown else {})


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
