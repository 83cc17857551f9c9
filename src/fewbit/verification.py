"""Verification: nothing is saved that was not run. Three comparisons on calibration rows, before an artifact is written.

1. The folded float graph against the source as it came (FOLDED of the output's magnitude): a wrong fold.
2. The same graph written at 16 bits throughout against the source (WIDE of the output's range): a wrong graph shows
   whatever the bits.
3. The artifact in fewbit's engine and in ONNX Runtime against the reference; ONNX Runtime's optimiser, which is what a user
   gets, must take it too. What that computes in is its own choice.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from fewbit import solvers, sources, targets
from fewbit.engine import native, reference
from fewbit.engine.description import Description, describe
from fewbit.engine.load import load, quickest
from fewbit.errors import FewbitError
from fewbit.fidelity import action_error
from fewbit.graph import calibrate
from fewbit.graph.layers import origin
from fewbit.graph.qdq import Scheme
from fewbit.graph.quantize import quantize

ROWS, STATES = 64, 2000  # that executors are compared on, and that the action error is measured on
NUMBERS = 1 << 20  # of observations in all: of images fewer rows are taken
FOLDED, HALF = 1e-4, 1e-2  # of the largest output; HALF where the source computes in 16-bit floats
WIDE = 0.01  # of the range, in the worst column
REARRANGES = ("Cast", "Concat", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze")  # of choices
NARROW = 2.0**-3  # of the largest output: the least range that counts, since codes reach from zero and equal outputs span nothing
POOR = 0.05  # of the actions' range, or of the states: beyond it whoever has no environment is warned
AGREE = 0.98  # share of integer outputs that must be equal: float sums in another order decide ties otherwise
ALL_16_BITS = Scheme(weights="int16", activations="uint16", inputs="int16", method="rtn")
REPORT = "so nothing is written; please report it with the file"

Feeds = dict[str, np.ndarray]
Outputs = dict[str, np.ndarray]


def verify_source(original: sources.Source, feeds: Feeds) -> sources.Source:
    """Comparisons 1 and 2, kept in the source's checks.

    Args:
        original: the float source.
        feeds: observations [n, ...] by input name; what is remembered is among them.

    Returns:
        The source; its checks are {"folded": largest error as a share of the output's magnitude, None where the source cannot be
        run as it came, "at_16_bits": error as a share of the output's range}.

    Raises:
        FewbitError: the folded or the quantized graph is not the source's.
    """
    rows = sample(original.model, feeds, ROWS)
    want = _by_onnx_runtime(original.model, rows)
    found: dict[str, Any] = {"folded": None}
    source = _as_it_came(original, rows)
    if source is not None:
        found["folded"] = _check_folded(original, source, want)
    found |= _check_wide(original.model, rows)
    return replace(original, checks=found)


def _as_it_came(original: sources.Source, rows: Feeds) -> Outputs | None:
    if original.run is None:
        return None
    try:
        return original.run(rows)
    except FewbitError:  # neither ONNX Runtime nor ONNX's evaluator can; the graph that was read is run all the same
        return None


def verify_artifact(model: ir.Model, original: ir.Model, feeds: Feeds, target: str = "any") -> dict[str, Any]:
    """Comparison 3, and how far the actions are from the source's.

    Args:
        model: the artifact. original: the float graph. feeds: as in verify_source. target: the runtime that it is written for.

    Returns:
        {"rows", "native": "equal" or why the engine does not run it, "onnxruntime": error against the reference as a share of
        the range (None without a reference), target: what its runtime made of it, "fidelity": action_error's
        record of the float source, on "states" calibration states}.

    Raises:
        FewbitError: an executor gives something else than the reference, or none of the engine and ONNX Runtime runs it.
    """
    rows, described = sample(model, feeds, ROWS), describe(model)
    found: dict[str, Any] = {"rows": len(next(iter(rows.values()))), "native": described.reason or "equal"}
    got = _run_here(model, described, rows)
    _run_optimised(model, rows, got)
    want = _by_reference(described, rows) if described.program is not None else None
    if want is not None:
        if not described.reason:
            _check_engine(described, rows, want)
        found["onnxruntime"] = _check_onnx_runtime(model, rows, got, want)
    else:
        found["onnxruntime"] = None
    if target != "any":
        found[target] = _by_target(model, rows, target)
    return found | {"fidelity": fidelity(model, original, feeds)}


def fidelity(model: ir.Model, original: ir.Model, feeds: Feeds) -> dict[str, Any]:
    """How far the artifact's actions lie from the source's on up to STATES calibration states: fidelity.action_error's record."""
    rows = sample(original, feeds, STATES)
    want, got = load(original, "onnxruntime")(rows), quickest(model)(rows)
    return action_error(want, got) | {"states": len(want)}


def noise(model: ir.Model) -> Feeds:
    """Rows to run a graph on where there are no observations: normal, of pixels every code."""
    rng, found = np.random.default_rng(0), {}
    for value in model.graph.inputs:
        shape = (ROWS, *(d if isinstance(d, int) else 1 for d in (value.shape or [])[1:]))
        kind = np.dtype(np.float32) if value.dtype is None else value.dtype.numpy()
        found[value.name or ""] = (rng.integers(0, 2 if kind.kind == "b" else 100, shape) if kind.kind in "iub" else
                                   rng.normal(size=shape)).astype(kind)  # fmt: skip
    return found


def sample(model: ir.Model, feeds: Feeds, count: int) -> Feeds:
    """Up to count rows of what the graph takes, spread evenly: fewer where a row is large."""
    taken = {v.name or "": feeds[v.name or ""] for v in model.graph.inputs if v.name in feeds}
    have = len(next(iter(taken.values())))
    each = sum(v[0].size for v in taken.values())
    count = max(1, min(count, have, NUMBERS // max(each, 1)))
    which = np.linspace(0, have - 1, count).astype(np.int64)
    return {k: v[which] for k, v in taken.items()}


def _by_onnx_runtime(model: ir.Model, rows: Feeds) -> Outputs:
    """Every output, without ONNX Runtime's fusions: those saturate on x86 without VNNI (docs/semantics.md)."""
    runner = calibrate.session(ir.to_proto(model), optimise=False)
    names = [o.name for o in runner.get_outputs()]
    return dict(zip(names, calibrate.run(runner, names, rows), strict=True))


def _run_here(model: ir.Model, described: Description, rows: Feeds) -> Outputs:
    try:
        return _by_onnx_runtime(model, rows)
    except FewbitError as e:
        reason = f"; fewbit's engine: {described.reason}" if described.reason else ""
        raise FewbitError(f"the artifact is no graph that ONNX Runtime runs ({e}{reason}), {REPORT}") from None


def _run_optimised(model: ir.Model, rows: Feeds, plain: Outputs) -> None:
    try:
        made = calibrate.run(calibrate.session(ir.to_proto(model)), list(plain), rows)
    except FewbitError as e:
        raise FewbitError(f"ONNX Runtime's optimiser does not take the artifact ({e}), {REPORT}") from None
    for (name, want), got in zip(plain.items(), made, strict=True):
        if want.dtype.kind == "f" and not np.isfinite(got[np.isfinite(want)]).all():
            raise FewbitError(f"output {name}: what ONNX Runtime's optimiser makes of it is not finite, {REPORT}")


def _by_reference(described: Description, rows: Feeds) -> Outputs:
    assert described.program is not None
    registers = reference.run(described.program, rows)
    return {o: registers[o] for o in described.program.outputs}


def _check_engine(described: Description, rows: Feeds, want: Outputs) -> None:
    assert described.program is not None
    program = described.program
    engine = native.load(program)
    given = {k: np.ascontiguousarray(rows[k], kind) for k, kind in program.input_dtypes.items()}
    made = engine(given if len(given) > 1 else next(iter(given.values())))
    made = made if isinstance(made, tuple) else (made,)
    for name, array in zip(program.outputs, made, strict=True):
        equal = np.array_equal(array, want[name]) if program.exact else _error(want[name], array) <= FOLDED
        if not equal:
            raise FewbitError(f"output {name}: fewbit's engine gives something else than the reference, {REPORT}")


def _check_folded(original: sources.Source, source: Outputs, folded: Outputs) -> float:
    limit, worst = HALF if original.half else FOLDED, 0.0
    for name in [n for n in folded if n in source]:
        want, got = source[name], folded[name]
        if want.size != got.size:
            shapes = f"{list(got.shape)} instead of {list(want.shape)}"
            raise FewbitError(f"output {name}: the graph read from the source gives {shapes}, {REPORT}")
        error = _largest(want, got.reshape(want.shape))
        if error > limit:
            raise FewbitError(f"output {name}: the graph read from the source is {error:.2%} off, {REPORT}")
        worst = max(worst, error)
    return worst


def _check_wide(model: ir.Model, rows: Feeds) -> dict[str, float]:
    want = _by_onnx_runtime(_before_choice(model), rows)
    error = _error_at_16_bits(model, rows, want, "rtn")
    if error > WIDE:  # wrong, or only coarse? With its columns scaled the graph must be right.
        scaled = _error_at_16_bits(model, rows, want, "smooth+rtn")
        if scaled > WIDE:
            raise FewbitError(f"written at 16 bits the graph is {scaled:.1%} of its outputs' range off the source, {REPORT}")
    return {"at_16_bits": error}


def _error_at_16_bits(model: ir.Model, rows: Feeds, want: Outputs, method: str) -> float:
    written = _before_choice(quantize(model, rows, replace(ALL_16_BITS, method=method))[0])
    described = describe(written)
    made = _by_onnx_runtime(written, rows) if described.program is None else _by_reference(described, rows)
    return max(_error(w, g) for w, g in zip(want.values(), made.values(), strict=True))


def warning(measured: dict[str, Any], method: str) -> str:
    """What to say of a fidelity that was not measured in an environment; "" where the actions are near the source's."""
    rmse, agreement = measured.get("action_rmse", 0.0), measured.get("action_agreement", 1.0)
    if rmse <= POOR and agreement >= 1 - POOR:
        return ""
    differ = f"other than the source's in {1 - agreement:.1%} of the states"
    error = differ if "action_agreement" in measured else f"{rmse:.1%} of their range off"
    scales = method in ("dynamic", "qat") or bool(solvers.method(method).scaling)
    advice = "" if scales else f" --method {method} gives all columns of a layer one scale, --method auto scales them;"
    return f"the actions are {error}, on calibration states;{advice} measure with --env what that costs"


def _before_choice(model: ir.Model) -> ir.Model:
    """A copy that gives what ArgMaxes choose by, not the choices: two actions of almost equal value are no error."""
    model = model.clone()
    outputs = list(dict.fromkeys(v for out in model.graph.outputs for v in _scores(out) or [out]))
    for value in outputs:
        value.dtype = value.dtype or ir.DataType.FLOAT
    model.graph.outputs[:] = outputs
    return model


def _scores(choice: ir.Value) -> list[ir.Value]:
    """What the ArgMaxes choose by that a choice is put together from; [] where it is anything else."""
    node = origin(choice).producer()
    if node is None or node.op_type not in ("ArgMax", *REARRANGES):
        return []
    if node.op_type == "ArgMax":
        scores = node.inputs[0]
        return [] if scores is None or scores.is_graph_input() else [scores]
    parts = [v for v in (node.inputs if node.op_type == "Concat" else node.inputs[:1]) if v is not None]
    found = [_scores(part) for part in parts]
    return [v for scores in found for v in scores] if all(found) else []


def _check_onnx_runtime(model: ir.Model, rows: Feeds, got: Outputs, want: Outputs) -> float:
    """The largest error; where many choices differ, of the values that they are chosen by: those may all be nearly equal."""
    errors = {name: _error(array, other) for (name, array), other in zip(want.items(), got.values(), strict=True)}
    if any(errors[name] > WIDE for name, array in want.items() if array.dtype.kind in "iu"):
        scored = _before_choice(model)
        described = describe(scored)
        assert described.program is not None
        scores = _by_reference(described, rows).values()
        made = _by_onnx_runtime(scored, rows).values()
        names = [v.name or "" for v in scored.graph.outputs]
        errors = {name: _error(a, b) for name, a, b in zip(names, scores, made, strict=True)}
    worst = max(errors, key=errors.__getitem__)
    if errors[worst] > WIDE:
        raise FewbitError(f"output {worst}: ONNX Runtime and the reference differ by {errors[worst]:.1%} of its range, {REPORT}")
    return errors[worst]


def _by_target(model: ir.Model, rows: Feeds, target: str) -> dict[str, Any]:
    """Whether the runtime ran it, and how far from fewbit's executor: reported, since what it computes in is its own choice."""
    try:
        policy = targets.runtime(target).load(model)
        got = policy(rows)
    except FewbitError as e:
        return {"executed": False, "reason": str(e)}
    return {"executed": True, "error": _error(quickest(model)(rows), got)}


def _largest(want: np.ndarray, got: np.ndarray) -> float:
    """The largest error as a share of the largest magnitude; of integers the share that differs, beyond what ties explain."""
    if want.dtype.kind in "iub" and got.dtype.kind in "iub":
        differ = float((want != got).mean())
        return 0.0 if differ <= 1 - AGREE else differ
    want, got = want.astype(np.float64), got.astype(np.float64)
    return _share(np.abs(want - got).max(initial=0), np.abs(want[np.isfinite(want)]).max(initial=0), want, got)


def _error(want: np.ndarray, got: np.ndarray) -> float:
    """Root mean square error of the worst column as a share of the output's range; of integers the share beyond AGREE."""
    if want.size != got.size:
        return np.inf
    if want.dtype.kind in "iub":
        differ = float((want.reshape(-1) != got.reshape(-1)).mean())
        return 0.0 if differ <= 1 - AGREE else differ
    rows = len(want) if want.ndim else 1
    want, got = (v.reshape(rows, -1).astype(np.float64) for v in (want, got))
    finite = want[np.isfinite(want)]
    width = max(np.ptp(finite), NARROW * np.abs(finite).max()) if finite.size else 0.0
    return _share(np.sqrt(((want - got) ** 2).mean(axis=0)).max(initial=0), width, want, got)


def _share(error: float, of: float, want: np.ndarray, got: np.ndarray) -> float:
    if not np.array_equal(np.isfinite(want), np.isfinite(got)):
        return np.inf
    return float(error / of) if of > 0 else float(error > 0)
