"""What fewbit makes of one network: right in every executor, refused by a line that names its cause, or at fault and how."""

import ctypes
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import onnx
from c_policy import CPolicy
from onnx import helper

import fewbit
from fewbit.engine import reference
from fewbit.engine.lower import lower
from fewbit.engine.policy import Policy
from fewbit.errors import Unsupported
from fewbit.graph import calibrate
from fewbit.graph.read import read
from random_graphs.oracle import Oracle, Sample
from random_graphs.words import kind_of, names_of, unclear, where

SCHEMES = {
    "int16": fewbit.Scheme(weights="int16", activations="uint16", method="rtn"),
    "int8": fewbit.Scheme(weights="int8", activations="uint8", method="rtn"),
}
CHECKED = 24  # rows
LIMIT = {"int16": 0.01, "int8": 0.35}  # of an output's range
FLIPPED = {"int16": 0.01, "int8": 0.05}  # of two executors that round a float step each its own way
OTHER_RUNTIME = {"int16": 0.01, "int8": 0.35}


@dataclass(frozen=True)
class Verdict:
    """status: "right", "refused" or "fault"; why: the refusal; faults: what is wrong, each line's kind before its first colon."""

    status: str
    why: str = ""
    faults: tuple[str, ...] = ()
    names: tuple[str, ...] = ()

    @property
    def kinds(self) -> dict[str, str]:
        """The first fault of each kind."""
        return {kind_of(f, self.names): f for f in reversed(self.faults)}


class Fault(Exception):
    """Something is wrong; the message begins with its kind and a colon."""


def judge(made: Sample, folder: Path, schemes: tuple[str, ...] = ("int16", "int8")) -> Verdict:
    path = folder / "network.onnx"
    onnx.save(made.model, path)
    refusals, faults, names = [], [], names_of(made)
    for scheme in schemes:
        try:
            with mock.patch.object(calibrate, "observe", wraps=calibrate.observe) as observe:
                artifact = _quantized(made, path, scheme)
        except fewbit.FewbitError as e:
            if (lacks := unclear(str(e), made)) is not None:
                faults.append(f"unclear refusal ({lacks}): {e}")
            elif observe.called:
                faults.append(f"late refusal, after calibration: {e}")
            refusals.append(str(e))
            continue
        except Exception as e:
            faults.append(f"crash in quantize {where(e)}: {type(e).__name__}: {e}")
            continue
        faults += [f"{scheme} {f}" for f in _faults(made, artifact, folder / f"{scheme}.onnx", scheme)]
    if faults:
        return Verdict("fault", faults[0], tuple(dict.fromkeys(faults)), names)
    return Verdict("refused", refusals[0], (), names) if refusals else Verdict("right")


def _faults(made: Sample, artifact, path: Path, scheme: str) -> Iterator[str]:
    """What is wrong with an artifact: its file, and each executor's outputs."""
    artifact.save(path)
    file = onnx.load(path)
    checks = [_check_ends, _check_onnxruntime, _check_own] if not made.states else [_compare_steps]
    checks += [_check_c] if made.seed % 24 == 0 and scheme == "int8" and not made.states else []
    for check in checks:
        try:
            check(made, file, path, scheme)
        except Fault as e:
            yield str(e)
        except Exception as e:
            yield f"crash in {check.__name__} {where(e)}: {type(e).__name__}: {e}"


def _quantized(made: Sample, path: Path, scheme: str):
    rows = {k: v for k, v in made.feeds.items()}
    given = next(iter(rows.values())) if len(rows) == 1 else rows
    return fewbit.quantize(path, observations=given, scheme=SCHEMES[scheme])


def _check_ends(made: Sample, file: onnx.ModelProto, path: Path, scheme: str) -> None:
    """Names and order of outputs, and names of inputs, are the network's."""
    names = [o.name for o in made.model.graph.output]
    if [o.name for o in file.graph.output] != names:
        raise Fault(f"outputs renamed: {[o.name for o in file.graph.output]}, must be {names}")
    constants = {t.name for t in file.graph.initializer}
    takes = {v.name for v in file.graph.input} - constants
    if takes != set(made.feeds):
        raise Fault(f"inputs renamed: {sorted(takes)}, must be {sorted(made.feeds)}")


def _rows(made: Sample) -> dict[str, np.ndarray]:
    return {k: v[:CHECKED] for k, v in made.feeds.items()}


def _wanted(made: Sample) -> list[np.ndarray]:
    return Oracle(made.model, made.baked)(_rows(made))


def _check_onnxruntime(made: Sample, file: onnx.ModelProto, path: Path, scheme: str) -> None:
    got = _onnxruntime(file, _rows(made))
    for k, (expected, found) in enumerate(zip(_wanted(made), got, strict=True)):
        _near(f"onnxruntime output {k}", expected, found, OTHER_RUNTIME[scheme], made.baked)


def _check_own(made: Sample, file: onnx.ModelProto, path: Path, scheme: str) -> None:
    """The reference near the float network, the native engine equal to the reference; or load() gives what runs it elsewhere."""
    feeds, want = _rows(made), _wanted(made)
    try:
        program = lower(read(path))
    except Unsupported:
        got = fewbit.load(path)(next(iter(feeds.values())) if len(feeds) == 1 else feeds)
        return _near("loaded output 0", want[0], got[0] if isinstance(got, tuple) else got, LIMIT[scheme], made.baked)
    feeds = {k: v.astype(program.input_dtypes[k]) for k, v in feeds.items()}
    registers = reference.run(program, feeds)
    ours = [np.asarray(registers[o]) for o in program.outputs]
    for k, (expected, found) in enumerate(zip(want, ours, strict=True)):
        _near(f"reference output {k}", expected, found, LIMIT[scheme], made.baked)
    _compare_natively(path, scheme, program, feeds, ours)


def _compare_natively(path: Path, scheme: str, program, feeds: dict[str, np.ndarray], ours: list[np.ndarray]) -> None:
    policy = fewbit.load(path)
    elsewhere = isinstance(policy, Policy) and not policy.executor.startswith("native")
    given = next(iter(feeds.values())) if len(feeds) == 1 else feeds
    got = policy(given)
    got = got if isinstance(got, tuple) else (got,)
    for k, (expected, found) in enumerate(zip(ours, got, strict=False)):
        same = found.dtype == expected.dtype and found.shape == expected.shape
        if not same:
            raise Fault(
                f"native type: output {k} is {found.dtype}{found.shape}, the reference's {expected.dtype}{expected.shape}"
            )
        if program.exact and not elsewhere and not np.array_equal(found, expected):
            raise Fault(f"native bits: output {k} differs in {(found != expected).mean():.3f} of the values")
        if not program.exact or elsewhere:
            _near(f"native output {k}", expected, found, FLIPPED[scheme], False)


def _check_c(made: Sample, file: onnx.ModelProto, path: Path, scheme: str) -> None:
    """The exported C compiles without a warning and gives the reference's bits; what it cannot hold it refuses clearly."""
    try:
        program = lower(read(path))
        compiled = CPolicy(program, Path(tempfile.mkdtemp(dir=path.parent)))  # a library is known by its path
    except fewbit.FewbitError as e:
        if (lacks := unclear(str(e), made)) is not None:
            raise Fault(f"unclear refusal of C ({lacks}): {e}") from None
        return
    feeds = {k: v.astype(program.input_dtypes[k]) for k, v in _rows(made).items()}
    registers = reference.run(program, feeds)
    expected = [np.asarray(registers[o]) for o in program.outputs]
    for k, (want, got) in enumerate(zip(expected, _run_c(compiled, feeds, expected), strict=True)):
        if not np.array_equal(want, got):
            raise Fault(f"C bits: output {k} differs in {(want != got).mean():.3f} of the values")


def _run_c(compiled: CPolicy, feeds: dict[str, np.ndarray], like: list[np.ndarray]) -> list[np.ndarray]:
    """Every output of policy_act, row by row; int64 is int32 there."""
    narrow = {k: v.astype(np.int32) if v.dtype == np.int64 else v for k, v in feeds.items()}
    given = [np.ascontiguousarray(narrow[k]) for k in compiled.inputs]
    made = [np.zeros_like(v, np.int32 if v.dtype == np.int64 else v.dtype) for v in like]
    for row in range(len(given[0])):
        places = [a[row : row + 1].ctypes.data_as(ctypes.c_void_p) for a in [*given, *made]]
        compiled.library.policy_act(*places)
    return [m.astype(v.dtype) for m, v in zip(made, like, strict=True)]


def _onnxruntime(file: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    try:
        runner = ort.InferenceSession(file.SerializeToString(), options, providers=["CPUExecutionProvider"])
        kinds = {v.name: helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type) for v in file.graph.input}
        return runner.run(None, {k: v.astype(kinds[k]) for k, v in feeds.items()})
    except Exception as e:
        raise Fault(f"onnxruntime refuses the artifact: {' '.join(str(e).split())[:300]}") from None


def _near(what: str, want: np.ndarray, got: np.ndarray, limit: float, baked: bool) -> None:
    if baked and want.shape != got.shape and want.size == got.size:
        got = got.reshape(want.shape)  # the batch made free, or rows of their own
    if want.shape != got.shape:
        if baked and want.ndim and got.size * len(want) == want.size:
            got = np.broadcast_to(got.reshape(1, *want.shape[1:]), want.shape)  # a constant, once
        else:
            raise Fault(f"wrong shape of {what}: {got.shape}, must be {want.shape}")
    if want.dtype != got.dtype and not want.dtype.kind == got.dtype.kind == "f":  # other floats become float32
        raise Fault(f"wrong dtype of {what}: {got.dtype}, must be {want.dtype}")
    if want.dtype.kind != "f":
        share = float((want != got).mean()) if want.size else 0.0
        if share > (0.05 if limit < 0.1 else 0.5):
            raise Fault(f"wrong {what}: {share:.3f} of the integers differ")
        return
    a, b = want.astype(np.float64), got.astype(np.float64)
    error = float(np.abs(a - b).max() / max(np.ptp(a), 0.1 * np.abs(a).max(), 1e-3)) if a.size else 0.0
    if not error < limit:
        raise Fault(f"wrong {what}: {error:.4f} of its range")


def _compare_steps(made: Sample, file: onnx.ModelProto, path: Path, scheme: str) -> None:
    """A network that remembers: the calibrated episode near the float network's; several at once the same in each executor."""
    seen = {k: v[:CHECKED, None] for k, v in made.feeds.items()}
    want = np.stack(_float_steps(made, seen))
    several = seen if made.baked else {k: v[:CHECKED].reshape(8, 3, *v.shape[1:]) for k, v in made.feeds.items()}
    first, exact = None, None
    for executor in ("reference", "native", "onnxruntime"):
        try:
            policy = fewbit.load(path, executor=executor)
        except Unsupported:
            continue
        got = _steps(policy, seen)
        _near(f"{executor} steps", want, got, LIMIT[scheme], False)
        policy.reset()
        bits = _steps(policy, several)
        if executor == "reference":
            first, exact = bits, lower(read(path)).exact
        elif executor == "native" and exact and not np.array_equal(first, bits):
            raise Fault("native bits: steps differ from the reference's")
        elif first is not None:
            _near(f"{executor} steps of several", first, bits, LIMIT[scheme], False)


def _steps(policy, seen: dict[str, np.ndarray]) -> np.ndarray:
    """Actions [steps, ...] of observations [steps, batch, ...]."""
    actions = []
    for t in range(len(next(iter(seen.values())))):
        observation = {k: v[t] for k, v in seen.items()}
        actions.append(np.asarray(policy(next(iter(observation.values())) if len(observation) == 1 else observation)))
    return np.stack(actions)


def _float_steps(made: Sample, seen: dict[str, np.ndarray]) -> list[np.ndarray]:
    run, count = Oracle(made.model), next(iter(seen.values())).shape[1]
    shapes = {v.name: [d.dim_value or count for d in v.type.tensor_type.shape.dim] for v in made.model.graph.input}
    names = [o.name for o in made.model.graph.output]
    kinds = {v.name: helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type) for v in made.model.graph.input}
    state = {k: np.zeros(shapes[k], kinds[k]) for k in made.states}
    actions = []
    for t in range(len(next(iter(seen.values())))):
        outputs = dict(zip(names, run({k: v[t] for k, v in seen.items()} | state), strict=True))
        actions.append(outputs[names[0]])
        state = {k: outputs[v] for k, v in made.states.items()}
    return actions
