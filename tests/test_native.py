"""The native engine gives the reference's bits: the corpus, random networks, every instruction set of this machine, threads."""

import os
import subprocess
import sys
import threading
from dataclasses import replace

import corpus
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fewbit
from fewbit import FewbitError, _native
from fewbit.engine import native, reference
from fewbit.engine.flatten import UNARY, flatten
from fewbit.engine.lower import lower
from fewbit.graph.calibrate import session
from fewbit.graph.read import prepare

SETS = _native.available()
WIDTHS = sorted({max(n + d, 1) for n in (1, 2, 4, 8, 16, 32, 48, 64, 128) for d in (-1, 0, 1)})


def differing(program, feeds: dict[str, np.ndarray], instruction_set: str) -> list[str]:
    """Registers, the inner ones too, that differ from the reference's."""
    wanted, bad = reference.run(program, feeds), []
    names = [s.out for s in program.steps]
    for some in [names[k : k + 16] for k in range(0, len(names), 16)] + [list(program.outputs)]:
        engine = native.load(replace(program, outputs=tuple(some)), instruction_set)
        got = engine({k: np.ascontiguousarray(v, program.input_dtypes[k]) for k, v in feeds.items()})
        got = got if isinstance(got, tuple) else (got,)
        bad += [n for n, g in zip(some, got, strict=True) if g.dtype != wanted[n].dtype or not np.array_equal(g, wanted[n])]
    return bad


def network(seed: int, widths: list[int], kinds: list[str], weights: str, batch: int, extreme: bool):
    """(program, feeds) of random layers, each behind its own quantization; sometimes a tanh between two."""
    g = corpus.Graph(seed)
    scale = 0.02
    x = g.entry(kinds[0], widths[0], scale, 0 if kinds[0].startswith("i") else 7, max(batch, 2), extreme)
    low, high = {"int8": (-128, 127), "int6": (-32, 31), "int4": (-8, 7), "int2": (-2, 1)}[weights]
    for k, (fan_in, out) in enumerate(zip(widths, widths[1:], strict=False)):
        w = g.rng.integers(low, high + 1, (out, fan_in)).astype(np.int8)
        if extreme:
            w = g.rng.choice([low, high], (out, fan_in)).astype(np.int8)
        scales = g.rng.uniform(0.5, 2, out) / (abs(low) * np.sqrt(fan_in))
        x = g.gemm(x, scale, w, scales, g.rng.integers(-(2**12), 2**12, out))
        if k == len(widths) - 2:
            break
        if g.rng.random() < 0.3:
            x = g.op("Tanh", g.qdq(x, "int16", 2.0**-12))
            scale = 2.0**-7
            x = g.qdq(x, "int8", scale)
        else:
            kind = kinds[(k + 1) % len(kinds)]
            scale = {"int8": 0.02, "uint8": 0.01, "int16": 0.0001, "uint16": 0.00005}[kind]
            x = g.qdq(x, kind, scale, 0 if kind.startswith("i") or k % 2 else 9)
    case = g.case("random", x)
    return lower(prepare(case.model)), {k: v[:batch] for k, v in case.feeds.items()}


@pytest.mark.parametrize("instruction_set", SETS)
def test_the_corpus(instruction_set):
    wrong = {}
    for case in corpus.cases():
        if bad := differing(lower(prepare(case.model)), case.feeds, instruction_set):
            wrong[case.name] = bad
    assert wrong == {}


@pytest.mark.parametrize("instruction_set", SETS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_random_networks(instruction_set, data):
    draw = data.draw
    widths = draw(st.lists(st.sampled_from(WIDTHS), min_size=2, max_size=4))
    kinds = draw(st.lists(st.sampled_from(["int8", "uint8", "int16", "uint16"]), min_size=1, max_size=3))
    weights = draw(st.sampled_from(["int8", "int6", "int4", "int2"]))
    batch = draw(st.one_of(st.integers(1, 20), st.integers(1, 300)))
    program, feeds = network(draw(st.integers(0, 2**32 - 1)), widths, kinds, weights, batch, draw(st.booleans()))
    assert differing(program, feeds, instruction_set) == []


def test_the_forced_instruction_set_is_the_one_that_runs(policy_path):
    for name in SETS:
        assert fewbit.load(policy_path, instruction_set=name).instruction_set == name
        code = f"import fewbit; print(fewbit.load({str(policy_path)!r}).instruction_set)"
        forced = {**os.environ, "FEWBIT_ISA": name}
        found = subprocess.run([sys.executable, "-c", code], env=forced, capture_output=True, text=True)
        assert found.stdout.strip() == name, found.stderr
    with pytest.raises(FewbitError, match="instruction set none of these is not available here; this CPU runs .*portable"):
        fewbit.load(policy_path, instruction_set="none of these")


@pytest.fixture(scope="module")
def policy_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("native") / "policy.onnx"
    g = corpus.Graph(3)
    x = g.entry("int16", 5, 2.0**-8)
    h = g.qdq(g.gemm(x, 2.0**-8, g.rng.integers(-128, 128, (33, 5)).astype(np.int8), np.full(33, 0.01), None), "uint8", 0.02)
    y = g.gemm(h, 0.02, g.rng.integers(-128, 128, (3, 33)).astype(np.int8), np.full(3, 0.01), None)
    path.write_bytes(g.case("policy", y).model.SerializeToString())
    return path


def observations(n: int) -> np.ndarray:
    return np.random.default_rng(n).normal(0, 3, (n, 5)).astype(np.float32)


def test_one_observation_a_batch_float64_and_out_agree(policy_path):
    act, wanted = fewbit.load(policy_path), fewbit.load(policy_path, "reference")
    batch = observations(300)
    actions = act(batch)
    assert np.array_equal(actions, wanted(batch)) and actions.dtype == np.float32
    assert np.array_equal(act(batch.astype(np.float64)), actions)
    assert all(np.array_equal(act(o), a) for o, a in zip(batch[:50], actions, strict=False))
    out = np.empty_like(actions)
    assert act(batch, out=out, threads=3) is out and np.array_equal(out, actions)
    assert act({"x0": batch[0]}).shape == (3,) and act(batch[:0]).shape == (0, 3)


def test_what_does_not_fit_is_said(policy_path):
    act, o = fewbit.load(policy_path), observations(4)
    for given_, message in [
        (o[:, :4].copy(), r"input x0: expected \[5\] or \[batch, 5\], found \[4, 4\]"),
        (o.astype(np.int32), "input x0: dtype int32; convert it to float32"),
        (o[:, ::-1], "input x0: it is not C-contiguous; use numpy.ascontiguousarray"),
        ([1.0] * 5, "input x0: a NumPy array is expected, not list"),
        ({"y": o}, "input x0 is missing"),
    ]:
        with pytest.raises(FewbitError, match=message):
            act(given_)
    for out in (np.empty((4, 3)), np.empty((3, 3), np.float32), np.empty((4, 6), np.float32)[:, ::2], 3):
        with pytest.raises(FewbitError, match=r"out: expected a writeable, C-contiguous float32 array \[4, 3\]"):
            act(o, out=out)
    o[2, 3] = np.nan
    for each in (o, o.astype(np.float64)):
        with pytest.raises(FewbitError, match=r"input x0: element \(2, 3\) is NaN"):
            act(each)
    for bad in (lambda: act(), lambda: act(o, o), lambda: act(o, else_=1), lambda: act(o, threads=0)):
        with pytest.raises(FewbitError):
            bad()


def test_threads_may_call_one_engine_at_once(policy_path):
    act = fewbit.load(policy_path)
    batches = [observations(n) for n in (1, 3, 257, 1000)]
    wanted = [fewbit.load(policy_path, "reference")(b) for b in batches]
    wrong = []

    def work(k: int) -> None:
        for _ in range(200):
            if not np.array_equal(act(batches[k % 4], threads=1 + k % 2), wanted[k % 4]):
                wrong.append(k)

    workers = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert wrong == []


FEW = """
import resource, sys
import numpy as np
import fewbit
act, size = fewbit.load(sys.argv[1]), 240 * 400
x = np.random.default_rng(0).standard_normal((size, *next(iter(act.inputs.values())))).astype(np.float32)
wanted, got = act(x), np.zeros_like(act(x))
held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + (200 << 20),) * 2)
act(x, out=got, threads=400)
assert (got == wanted).all()
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="reads /proc")
def test_where_the_system_gives_no_more_threads_those_that_there_are_do_the_work(policy_path):
    done = subprocess.run([sys.executable, "-c", FEW, str(policy_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_float_policy_runs_within_float32(tmp_path):
    """S10: every float function, against float64."""
    from fewbit.engine.float_ops import OPS

    x = np.concatenate([np.linspace(-100, 100, 4001), np.geomspace(1e-8, 1, 100)]).astype(np.float32)[:, None]
    for op in UNARY:
        g = corpus.Graph(1)
        model = g.case(op, g.op(op, g.input(x))).model
        alpha = {"alpha": UNARY[op]}
        with np.errstate(over="ignore"):
            wanted = OPS[op](alpha, x.astype(np.float64))
            clipped = wanted.astype(np.float32)
        for name in SETS:
            got = native.load(lower(prepare(model)), name)(x)
            finite = np.isfinite(clipped)
            error = np.abs(got[finite] - wanted[finite]) / np.maximum(np.abs(wanted[finite]), 1e-30)
            assert np.all((error < 4e-7) | (np.abs(wanted[finite]) < 1e-37)), (op, name, error.max())
            assert np.array_equal(np.isfinite(got), finite)


ACTIVATIONS = [
    ("Gelu", {}),
    ("Gelu", {"approximate": "tanh"}),
    ("Mish", {}),
    ("Erf", {}),
    ("Selu", {"alpha": 1.5}),
    ("Celu", {"alpha": 2.0}),
    ("HardSigmoid", {"alpha": 0.3}),
    ("HardSwish", {}),
]


def test_every_function_that_is_quantized_can_be_run():
    """What graph/elementwise takes for one function of a layer's output, engine/float_ops must know, as ONNX Runtime does."""
    from fewbit.engine.float_ops import OPS
    from fewbit.graph.elementwise import ELEMENTWISE

    assert set(OPS) >= ELEMENTWISE
    x = np.concatenate([np.linspace(-30, 30, 2001), np.geomspace(1e-6, 1, 50)]).astype(np.float32)[:, None]
    for op, attributes in ACTIVATIONS:
        g = corpus.Graph(1)
        proto = g.case(op, g.op(op, g.input(x), **attributes)).model
        wanted = session(proto).run(None, {proto.graph.input[0].name: x})[0]
        assert np.allclose(OPS[op](attributes, x.astype(np.float64)), wanted, rtol=1e-5, atol=1e-6), (op, attributes)


def test_what_it_cannot_run_is_refused_by_name():
    g = corpus.Graph(2)
    x = g.input(np.zeros((2, 4)))
    model = g.case("transposed", g.op("Transpose", x, perm=[1, 0])).model
    with pytest.raises(FewbitError, match="its first dimension is not the batch"):
        native.load(lower(prepare(model)))


def test_damaged_bytes_are_refused(policy_path):
    made = flatten(lower(prepare(onnx.load(policy_path))), native.BLOCK)
    flat, shapes = native.to_bytes(made), [o.shape for o in made.outputs]
    for cut in range(0, len(flat) - 1, 7):
        with pytest.raises(FewbitError):
            _native.Engine(flat[:cut], {"x0": (5,)}, shapes, "")
    with pytest.raises(FewbitError, match="inputs and outputs are not the ones named"):
        _native.Engine(flat, {"x0": (6,)}, shapes, "")


@pytest.mark.parametrize("kind", ["Gemm", "MatMul"])
def test_a_file_by_onnx_runtimes_quantizer_runs(tmp_path, kind):
    """Asymmetric uint8 activations, weights [in, out], Relu nodes kept, a bias as its own Add."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    g, rng = corpus.Graph(5), np.random.default_rng(5)
    observations = rng.normal(0, 1, (64, 12)).astype(np.float32)
    x = g.input(observations)
    for k, (fan_in, out) in enumerate([(12, 40), (40, 24), (24, 3)]):
        w, b = rng.normal(size=(fan_in, out)) / np.sqrt(fan_in), rng.normal(size=out)
        constants = [g.constant(a.astype(np.float32)) for a in (w, b)]
        x = g.op("Gemm", x, *constants) if kind == "Gemm" else g.op("Add", g.op("MatMul", x, constants[0]), constants[1])
        x = g.op("Relu", x) if k < 2 else x
    onnx.save(g.case(kind, x).model, tmp_path / "float.onnx")

    class Reader(CalibrationDataReader):
        left = [observations]

        def get_next(self):
            return {"x0": self.left.pop()} if self.left else None

    made = tmp_path / "theirs.onnx"
    quantize_static(str(tmp_path / "float.onnx"), str(made), Reader(), per_channel=True, weight_type=QuantType.QInt8)
    wanted = fewbit.load(made, "reference")(observations)
    for name in SETS:
        assert np.array_equal(fewbit.load(made, instruction_set=name)(observations), wanted)
    # Not fused into their integer kernels, whose 16-bit sums saturate on x86 without VNNI (docs/semantics.md).
    theirs = session(onnx.load(made), optimise=False).run(None, {"x0": observations})[0]
    assert np.abs(theirs - wanted).max() < 0.03 * np.ptp(wanted)


def test_a_damaged_artifact_never_crashes(policy_path, tmp_path):
    """Cut anywhere, or with bytes changed: it runs, or one FewbitError says why not."""
    whole, rng = policy_path.read_bytes(), np.random.default_rng(0)
    ran = 0
    for k in range(300):
        content = bytearray(whole)
        if k % 3 == 0:
            content = content[: rng.integers(len(content))]
        for _ in range(rng.integers(1, 4)):
            if content:
                content[rng.integers(len(content))] = rng.integers(256)
        (tmp_path / "damaged.onnx").write_bytes(content)
        try:
            act = fewbit.load(tmp_path / "damaged.onnx")
            act({n: np.zeros((2, *s), np.float32) for n, s in act.inputs.items()})
            ran += 1
        except FewbitError:
            pass
    assert 0 < ran < 290
