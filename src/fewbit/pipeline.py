"""From source to artifact, and from artifact to evidence: what the command line and `import fewbit` both call."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from fewbit import ladder, recorded, sources, targets, verification
from fewbit.artifact import Artifact
from fewbit.checks import check, check_layers, check_run
from fewbit.diff import Comparison, Row, comparison
from fewbit.engine.description import describe
from fewbit.engine.load import load as load_policy
from fewbit.engine.load import quickest
from fewbit.engine.policy import Policy
from fewbit.engine.state import states
from fewbit.errors import FewbitError, FewbitWarning
from fewbit.graph import half, metadata, qdq
from fewbit.graph.edit import const
from fewbit.graph.layers import head, layers
from fewbit.graph.quantize import quantize as build
from fewbit.graph.read import read
from fewbit.numerics.affine import check_finite
from fewbit.numerics.formats import INTEGERS
from fewbit.observations import calibration
from fewbit.rl.evidence import Kept, exactly, judge
from fewbit.training import Training, train

MIXED = ("int4", "int6", "int8", "int16")
DEFAULT = qdq.Scheme(method="auto")
SEARCH_SEED = 300_000  # away from the evaluation's own seeds

Progress = Callable[[str, int, int], None]  # (what, done, of)


def _silent(what: str, done: int, of: int) -> None:
    pass


def quantize(
    source: Any,
    env: str | None = None,
    observations: recorded.Observations | None = None,
    scheme: qdq.Scheme | None = None,
    normalizer: str | Path | None = None,
    env_args: dict[str, Any] | None = None,
    keep: float = 0.95,
    episodes: int = 100,
    seed: int = 0,
    observation_shape: tuple[int, ...] | None = None,
    budget: int | None = None,
    progress: Progress = _silent,
    trust_torchscript: bool = False,
    state: sources.Declared | None = None,
    training: Training | None = None,
) -> Artifact:
    """Quantize a trained network, calibrated in an environment or on observations, and measure it where there is an environment.

    Args:
        source: path of a Stable-Baselines3 .zip, an .onnx or (trusted) TorchScript .pt file; a live Stable-Baselines3 model; a
            torch.nn.Module.
        env: Gymnasium id, "module:Id" too; what calibrates and measures.
        observations: what calibrates instead: [n, ...], of a network that remembers [episodes, steps, ...]; {input: such an
            array}; a .npy, .npz or .csv file of them; or a data loader.
        scheme: formats and method. None: DEFAULT, as the command line has it. A Scheme pins what it says, its method "rtn"
            unless it says another. Method "auto" tries schemes from the cheapest on until `keep` is shown to be kept; without
            env nothing can be shown, and it is the strongest method that trains nothing.
        normalizer: vecnormalize.pkl, where it does not lie beside the zip.
        env_args: for gymnasium.make; what JSON can hold.
        keep: share of the float policy's return to keep.
        episodes: at most so many; fewer where the verdict is clear.
        seed: of episodes, calibration and training.
        observation_shape: of a torch.nn.Module, without the batch, where it cannot be told.
        budget: bytes of weights; int4 to int16 by layer, where they are needed.
        progress: called with (what, done, of).
        trust_torchscript: load a .pt file, which can execute code.
        state: what an ONNX file or a torch.nn.Module remembers, {input: (output, first or None)}.
        training: how long method "qat" learns, and where it is kept meanwhile.

    Returns:
        The artifact: .save(path), .record (recipe, contract, and evidence or, without env, fidelity), .model.

    Raises:
        FewbitError: bad input, or something that cannot be done; what, where, and what to do, in one line.
    """
    scheme = DEFAULT if scheme is None else scheme
    check(scheme, budget)
    check_run(episodes, seed)
    if scheme.weights in half.DTYPES:
        scheme = replace(scheme, method="rtn")  # a cast: there is nothing to choose
    if scheme.method != "dynamic" and env is None and observations is None:
        raise FewbitError("nothing to calibrate on; give --env ID or --observations FILE")
    if scheme.weights == "auto" and env is None:
        raise FewbitError("--weights auto is a search, and a search measures; give --env ID")
    if env is None and env_args:
        raise FewbitError("env_args belong to an environment to measure in; give env too")
    if env is not None:
        from fewbit.rl.measure import check as check_measured
        from fewbit.rl.returns import check_arguments

        check_measured(episodes, keep, seed)
        check_arguments(env, env_args)
    original = sources.load(source, normalizer, observation_shape, trust_torchscript, state, recorded.shapes(observations))
    check_layers([layer.node.name or "" for layer in layers(original.model)], scheme)
    feeds = calibration(original, env, observations, env_args, seed)
    original = verification.verify_source(original, feeds or verification.noise(original.model))
    how = replace(training or Training(), env=env, env_args=env_args, seed=seed, progress=progress)
    if budget is not None:
        widest = "int8" if scheme.weights == "auto" else scheme.weights
        scheme = replace(scheme, weights=widest, method=ladder.BEST if scheme.method == "auto" else scheme.method)
        untrained = replace(scheme, method=ladder.BEST) if scheme.method == "qat" else scheme
        scheme = replace(scheme, layers=fit_budget(original, feeds, untrained, budget))
    if env is None:
        return _artifact(original, feeds, replace(scheme, method=ladder.BEST) if scheme.method == "auto" else scheme, None, how)
    from fewbit.rl.measure import Baseline, measure

    baseline = Baseline(original.model, env, env_args, seed)
    load = quickest if scheme.target == "any" else targets.loader(scheme.target)
    recipe = {"env": env, "env_args": env_args or {}, "seed": seed}
    if scheme.method != "auto":
        artifact = _artifact(original, feeds, scheme, recipe, how)
        return artifact.with_evidence(measure(artifact.model, baseline, keep, episodes, True, progress, load=load))
    elsewhere = Baseline(original.model, env, env_args, seed + SEARCH_SEED)

    def cost(model: ir.Model, reported: bool) -> dict[str, Any]:
        return measure(model, baseline if reported else elsewhere, keep, episodes, True, progress, not reported, load)

    return _climb(original, feeds, scheme, recipe, cost, how)


def _climb(
    original: sources.Source,
    feeds: dict[str, np.ndarray],
    scheme: qdq.Scheme,
    recipe: dict[str, Any] | None,
    cost: Callable[[ir.Model, bool], dict[str, Any]],
    how: Training | None,
) -> Artifact:
    """The artifact of the rung that the search ships; cost(model, reported) measures where one is chosen, or reported."""
    made: dict[qdq.Scheme, Artifact] = {}

    def measured(chosen: qdq.Scheme, reported: bool) -> dict[str, Any]:
        if chosen not in made:
            made[chosen] = _artifact(original, feeds, chosen, recipe, how)
        return cost(made[chosen].model, reported)

    trains = how is not None and find_spec("torch") is not None  # a rung that cannot be tried is none
    rungs = ladder.rungs(scheme, head(original.model).node.name or "", trains)
    best, tried = ladder.climb(rungs, lambda s: measured(s, False), lambda s: measured(s, True))
    made[best.scheme].record["search"] = [_rung(t, made[t.scheme]) for t in tried]
    return made[best.scheme].with_evidence(best.reported or best.chosen)


def diff(
    source: Any,
    artifact: str | Path | Artifact,
    observations: recorded.Observations,
    normalizer: str | Path | None = None,
    trust_torchscript: bool = False,
) -> list[Row]:
    """Where the artifact's error comes in, tensor by tensor, the worst first; observations as in quantize."""
    return compare(source, artifact, observations, normalizer, trust_torchscript).tensors


def compare(
    source: Any,
    artifact: str | Path | Artifact,
    observations: recorded.Observations,
    normalizer: str | Path | None = None,
    trust_torchscript: bool = False,
) -> Comparison:
    """How far the artifact's actions lie from its source's, and where that comes in; observations as in quantize."""
    model = artifact.model if isinstance(artifact, Artifact) else read(artifact)
    original = sources.load(source, normalizer, None, trust_torchscript, declared(source, model))
    takes = [sorted(v.name or "" for v in m.graph.inputs) for m in (original.model, model)]
    if takes[0] != takes[1]:
        raise FewbitError(
            f"{original.name} takes {', '.join(takes[0])}, the artifact {', '.join(takes[1])}: it was not made from it"
        )
    check_source(metadata.read(model), original)
    feeds = calibration(original, None, observations, None, 0)
    return comparison(original.model, model, feeds)


def check_source(record: dict[str, Any], original: sources.Source) -> bool | None:
    """Is the source the one that the artifact was made from?

    Args:
        record: the artifact's; it holds the source's name and hash.
        original: the source beside it.

    Returns:
        True where the hashes agree; None where nothing can be said: the artifact names no source, or one of the two was a file
        and the other a live object, whose hashes are of different things.

    Raises:
        FewbitError: it was made from another one.
    """
    recipe = record.get("recipe")
    name, digest = (recipe.get(k) for k in ("source", "source_sha256")) if isinstance(recipe, dict) else (None, None)
    if not (isinstance(name, str) and isinstance(digest, str)):
        return None
    if digest == original.digest:
        return True
    if bool(Path(name).suffix) != bool(Path(original.name).suffix):
        return None
    raise FewbitError(
        f"the artifact was made from another source: from {name} (hash {digest[:12]}), this is {original.name} (hash "
        f"{original.digest[:12]}); give that one, with the --normalizer it had, or quantize this one"
    )


def declared(source: Any, made: ir.Model) -> sources.Declared | None:
    """What an ONNX file or a module remembers, as what was made from it says: it was declared when it was quantized."""
    onnx = isinstance(source, str | Path) and Path(source).suffix == ".onnx"
    if not (onnx or (not isinstance(source, str | Path) and not hasattr(source, "predict"))):
        return None
    shapes = {v.name or "": tuple(d for d in (v.shape or [])[1:] if isinstance(d, int)) for v in made.graph.inputs}
    return {s.input: (s.output, s.initial) for s in states(made, shapes)} or None


def sensitivity(
    source: Any,
    env: str,
    weights: str = "int4",
    method: str = "rtn",
    episodes: int = 20,
    seed: int = 0,
    normalizer: str | Path | None = None,
    env_args: dict[str, Any] | None = None,
    progress: Progress = _silent,
    trust_torchscript: bool = False,
) -> list[dict[str, Any]]:
    """One layer at a time with weights of that format, all else at 16 bits: what it costs in its own output, in the action
    and in the return; the costliest return first."""
    from fewbit.diff import diff as tensors
    from fewbit.rl.measure import Baseline, measure

    original = sources.load(source, normalizer, trust_torchscript=trust_torchscript)
    feeds = calibration(original, env, None, env_args, seed)
    baseline, rows = Baseline(original.model, env, env_args, seed), []
    for layer in layers(original.model):
        name = layer.node.name or ""
        scheme = qdq.Scheme("int16", "uint16", method=method, layers=((name, weights),))
        artifact = _artifact(original, feeds, scheme, None)
        artifact.to_bytes()
        tensor = layer.node.outputs[0].name
        local = [r.sqnr_local for r in tensors(original.model, artifact.model, feeds) if r.tensor == tensor]
        found = measure(artifact.model, baseline, 0.95, episodes, False, progress, True)
        row = {"layer": name, "weights": weights, "sqnr_local": local[0] if local else None}
        figures = ("kept", "kept_ci95", "action_rmse", "action_p999", "action_worst", "action_agreement")
        rows.append(row | {k: found[k] for k in figures if k in found})
    return sorted(rows, key=lambda r: (r["kept"] is None, r["kept"]))


def fit_budget(
    original: sources.Source, feeds: dict[str, np.ndarray], scheme: qdq.Scheme, budget: int
) -> tuple[tuple[str, str], ...]:
    """Formats by layer within budget bytes of weights, by what each alone does to the actions on the calibration states."""
    policy = load_policy(original.model, "onnxruntime")
    cut = {k: v[:: max(1, len(v) // 2000)] for k, v in feeds.items()}
    want = policy(cut).astype(np.float64)
    errors: dict[str, dict[str, float]] = {}
    sizes: dict[str, dict[str, int]] = {}
    for layer in layers(original.model):
        name, weight = layer.node.name or "", const(layer.node.inputs[1])
        assert weight is not None
        sizes[name] = {f: -(-weight.size * INTEGERS[f].bits // 8) for f in MIXED}
        errors[name] = {}
        for fmt in MIXED:
            alone = replace(scheme, weights="int16", activations="uint16", layers=((name, fmt),))
            got = quickest(build(original.model, feeds, alone)[0])(cut)
            errors[name][fmt] = float((got != want).mean() if want.dtype.kind == "i" else ((got - want) ** 2).mean())
    least = sum(min(s.values()) for s in sizes.values())
    if budget < least:
        raise FewbitError(f"--budget {budget}: even {MIXED[0]} weights take {least} bytes")
    return ladder.allocate(errors, sizes, budget)


def search(
    source: Any,
    measure: Callable[[Policy, int], Any],
    observations: recorded.Observations,
    keep: float = 0.95,
    floor: float = 0.0,
    scheme: qdq.Scheme | None = None,
    normalizer: str | Path | None = None,
    observation_shape: tuple[int, ...] | None = None,
    training: Training | None = None,
) -> Artifact:
    """The smallest artifact that keeps a score of the user's own: climbs as quantize does, without an environment.

    measure(policy, seed) -> scores, one or [n] of as many trials, larger is better; seed 1 is where a rung is chosen, 0 where
    it is reported. kept = (score - floor) / (float score - floor); one score alone has no interval; n trials that are all
    alike leave room for 3 / n that fall to the floor, so that 0.95 takes more than 60. observations: as in quantize.
    training: how long a rung may train; None: no rung does.
    """
    scheme = replace(scheme or qdq.Scheme(), method="auto")
    check(scheme)
    if scheme.weights in half.DTYPES:
        raise FewbitError(f"weights {scheme.weights} are a cast: there is nothing to search for; use fewbit.quantize")
    original = sources.load(source, normalizer, observation_shape, likely=recorded.shapes(observations))
    feeds = calibration(original, None, observations, None, 0)
    original = verification.verify_source(original, feeds)
    floats = {seed: _scores(measure, load_policy(original.model, "onnxruntime"), seed) for seed in (0, 1)}

    def cost(model: ir.Model, reported: bool) -> dict[str, Any]:
        seed = 0 if reported else 1
        found = _judge_scores(floats[seed], _scores(measure, quickest(model), seed), float(floor), keep)
        record = {"kept": found.kept, "kept_ci95": [found.low, found.high], "verdict": found.verdict, "fidelity_met": False}
        return record | {"seeds": [seed, seed], "packed_bytes": describe(model).packed_bytes}

    return _climb(original, feeds, scheme, None, cost, training)


def _scores(measure: Callable[[Policy, int], Any], policy: Policy, seed: int) -> np.ndarray:
    scores = np.atleast_1d(np.asarray(measure(policy, seed), np.float64))
    check_finite(scores, "scores of measure")
    return scores


def _judge_scores(original: np.ndarray, quantized: np.ndarray, floor: float, keep: float) -> Kept:
    """One score alone is taken as exact; several are trials, each of which may fail down to floor."""
    if len(original) == len(quantized) == 1:
        return exactly(float(original[0]), float(quantized[0]), floor, keep)
    return judge(original, quantized, np.full(1, floor), keep)


def _artifact(
    original: sources.Source,
    feeds: dict[str, np.ndarray],
    scheme: qdq.Scheme,
    extra: dict[str, Any] | None,
    how: Training | None = None,
) -> Artifact:
    recipe = {"source": original.name, "source_sha256": original.digest} | vars(scheme) | (extra or {})
    recipe["calibration_sha256"] = sources.digest(*(v.tobytes() for v in feeds.values()))
    record = {"format": 1, "recipe": recipe, "contract": original.contract}
    record |= {"state": list(original.state)} if original.state else {}
    if scheme.method == "qat":
        model, record["equalized"], record["training"] = train(original, feeds, scheme, how or Training())
        recipe["training_steps"] = (how or Training()).steps
    else:
        model, record["equalized"] = build(original.model, feeds, scheme)
    metadata.write(model, record)
    if scheme.target != "any":
        model = targets.rewrite(model, scheme.target)
        record = metadata.read(model)
    verified = verification.verify_artifact(model, original.model, feeds or verification.noise(model), scheme.target)
    fidelity = verified.pop("fidelity")
    record |= {"fidelity": fidelity, "verified": {"source": original.checks} | verified}
    text = verification.warning(fidelity, scheme.method) if extra is None else ""  # elsewhere the return is measured
    if text:
        record["warning"] = text
        warnings.warn(text, FewbitWarning, stacklevel=3)
    return Artifact(model, record)


def _rung(tried: ladder.Tried, artifact: Artifact) -> dict[str, Any]:
    """One line of the search for the record."""

    def figures(record: dict[str, Any] | None) -> dict[str, Any] | None:
        names = ("kept", "kept_ci95", "verdict", "fidelity_met", "seeds", "packed_bytes")
        return None if record is None else {k: record[k] for k in names}

    seconds = artifact.record.get("training", {}).get("seconds")
    return {
        "tried": tried.what,
        "chosen_on": figures(tried.chosen),
        "reported": figures(tried.reported),
        "training_seconds": seconds,
        "scheme": vars(tried.scheme),
    }


def evaluate(
    artifact: str | Path | Artifact,
    env: str,
    against: Any = None,
    env_args: dict[str, Any] | None = None,
    keep: float = 0.95,
    episodes: int = 100,
    seed: int = 0,
    normalizer: str | Path | None = None,
    progress: Progress = _silent,
    trust_torchscript: bool = False,
    executor: str = "native",
) -> dict[str, Any]:
    """Run exactly `episodes` episodes of an artifact and, where given, of its float source.

    Args:
        artifact: a file, or what quantize returned; any ONNX policy too.
        env, env_args, keep, episodes, seed, normalizer, progress, trust_torchscript: as in quantize.
        against: the float source, as quantize takes it.
        executor: "native" (fewbit's engine, or ONNX Runtime where that cannot), or a runtime of targets.RUNTIMES.

    Returns:
        The record of docs/design.md ("Evidence").

    Raises:
        FewbitError: bad input, in one line.
    """
    from fewbit.rl.measure import Baseline, measure, without_original
    from fewbit.rl.measure import check as check_measured

    check_run(episodes, seed)
    check_measured(episodes, keep, seed)
    if against is None and normalizer is not None:
        raise FewbitError("--normalizer belongs to the float source; add --against SOURCE")
    if executor not in ("native", *targets.RUNTIMES):
        raise FewbitError(f"--executor {executor} is unknown; choose one of native, {', '.join(targets.RUNTIMES)}")
    model = artifact.model if isinstance(artifact, Artifact) else read(artifact)
    load = quickest if executor == "native" else targets.runtime(executor, "--executor").load
    size = len(artifact.to_bytes()) if isinstance(artifact, Artifact) else Path(artifact).stat().st_size
    if against is None:
        return without_original(model, env, env_args, episodes, seed, progress, load) | {"size_bytes": size}
    original = sources.load(against, normalizer, None, trust_torchscript, declared(against, model))
    matches = check_source(metadata.read(model), original)
    baseline = Baseline(original.model, env, env_args, seed)
    found = measure(model, baseline, keep, episodes, False, progress, load=load)
    return found | {"size_bytes": size, "source": original.name, "source_matches": matches}
