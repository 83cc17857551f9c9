"""Bad input: one line that says what is wrong, exit 2 (130 for Ctrl-C), nothing half written, nothing executed."""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from conftest import ROOT

import fewbit
from fewbit import sources
from fewbit.rl import returns

DEMO = ROOT / "demo" / "halfcheetah.zip"
FEWBIT = [sys.executable, "-c", "from fewbit.cli.main import main; main()"]


def refused(*arguments: object, folder: Path, says: str) -> None:
    before = set(folder.iterdir())
    done = subprocess.run([*FEWBIT, *map(str, arguments)], capture_output=True, text=True, cwd=folder)
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert done.returncode == 2, done.stderr
    assert len(lines) == 1 and says in lines[0], done.stderr
    assert set(folder.iterdir()) == before


def test_files_that_are_no_policy(tmp_path):
    (tmp_path / "text.zip").write_text("hello")
    (tmp_path / "cut.zip").write_bytes(DEMO.read_bytes()[:100_000])
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as z:
        z.writestr("readme", "hello")
    (tmp_path / "cut.onnx").write_bytes(b"\x08\x08\x12")
    for name, says in [
        ("none.zip", "no such file"),
        ("text.zip", "not a zip file"),
        ("cut.zip", "not a zip file"),
        ("other.zip", "no Stable-Baselines3 model"),
        ("cut.onnx", "not"),
        (".", "is a folder"),
        ("a.pt", "no such file"),
    ]:
        refused("quantize", tmp_path / name, "-o", tmp_path / "out.onnx", "--env", "HalfCheetah-v5", folder=tmp_path, says=says)


def test_environments_and_options(tmp_path):
    go = ["quantize", DEMO, "-o", tmp_path / "out.onnx"]
    refused(*go, "--env", "CartPole-v1", folder=tmp_path, says="gives observations of shape [4], the policy takes [17]")
    refused(*go, "--env", "nosuch:Thing-v0", folder=tmp_path, says="not installed")
    refused(*go, "--env", "Nosuch-v0", folder=tmp_path, says="cannot be made")
    refused(*go, "--env", "HalfCheetah-v3", folder=tmp_path, says="not in this Gymnasium any more; give --env HalfCheetah-v5")
    refused(*go, folder=tmp_path, says="--env ID or --observations")
    refused(*go, "--env", "HalfCheetah-v5", "--weights", "int99", folder=tmp_path, says="choose one of")
    refused(
        "quantize", DEMO, "-o", tmp_path / "no" / "out.onnx", "--env", "HalfCheetah-v5", folder=tmp_path, says="does not exist"
    )
    np.save(tmp_path / "x.npy", np.zeros((3, 17), np.float32))
    refused(*go, "--observations", tmp_path / "x.npy", "--weights", "auto", folder=tmp_path, says="a search measures")
    refused(*go, "--observations", tmp_path / "x.npy", "--method", "magic", folder=tmp_path, says="method magic is unknown")
    refused(*go, "--env", "HalfCheetah-v5", "--keep", "0", folder=tmp_path, says="give a share above 0")
    refused("evaluate", DEMO, "--env", "HalfCheetah-v5", "--keep", "0.9", folder=tmp_path, says="--against SOURCE")
    (tmp_path / "a.pt").touch()
    torchscript = ("quantize", tmp_path / "a.pt", "--trust-torchscript", "-o", tmp_path / "out.onnx", "--env", "HalfCheetah-v5")
    refused(*torchscript, "--normalizer", tmp_path / "x.npy", folder=tmp_path, says="belongs to a Stable-Baselines3 zip")
    steps = ("--method", "rtn", "--train-steps", "100")
    refused(*go, "--observations", tmp_path / "x.npy", *steps, folder=tmp_path, says="--train-steps belongs to --method qat")
    refused("report", DEMO, "-o", tmp_path / "a.html", "--film-seconds", "3", folder=tmp_path, says="it belongs to --film")
    refused("frobnicate", folder=tmp_path, says="frobnicate")


def test_an_environment_whose_package_is_missing_names_the_extra(tmp_path):
    code = "import sys; sys.modules['mujoco'] = None; from fewbit.cli.main import main; main()"
    go = [sys.executable, "-c", code, "quantize", str(DEMO), "-o", "out.onnx", "--env", "HalfCheetah-v5"]
    done = subprocess.run(go, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and 'pip install "fewbit[mujoco]"' in done.stderr and len(done.stderr.splitlines()) == 1


def test_python_callers_are_told_what_a_scheme_is():
    with pytest.raises(fewbit.FewbitError, match="give fewbit.Scheme"):
        fewbit.quantize(DEMO, env="HalfCheetah-v5", scheme="int4")  # type: ignore[arg-type]
    assert {"quantize", "load", "__version__"} <= set(dir(fewbit)) and fewbit.__version__


def test_an_environment_that_fails_without_a_word():

    def silent():
        raise AssertionError

    gymnasium.register("Silent-v0", silent)
    with pytest.raises(fewbit.FewbitError, match="Silent-v0 cannot be made: AssertionError"):
        returns.make("Silent-v0")


def test_an_environment_that_returns_nan(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"))
    go = ["quantize", DEMO, "-o", tmp_path / "out.onnx", "--env", "broken_env:Diverges-v0"]
    refused(*go, folder=tmp_path, says="NaN in element (4,)")


def test_observations(tmp_path):
    x = np.zeros((5, 17), np.float32)
    np.save(tmp_path / "wrong.npy", x[:, :3])
    x[3, 2] = np.nan
    np.save(tmp_path / "nan.npy", x)
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    for name, says in [
        ("wrong.npy", "[5, 3], the policy takes [n, 17]"),
        ("nan.npy", "element (3, 2) is nan"),
        ("objects.npy", "not a .npy array"),
    ]:
        refused("quantize", DEMO, "-o", tmp_path / "out.onnx", "--observations", tmp_path / name, folder=tmp_path, says=says)


class Evil:
    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def test_a_pickle_that_would_execute_code_does_not(tmp_path):
    ran = tmp_path / "ran"
    (tmp_path / "policy.zip").write_bytes(DEMO.read_bytes())
    (tmp_path / "vecnormalize.pkl").write_bytes(pickle.dumps(Evil(ran)))
    refused(
        "quantize",
        tmp_path / "policy.zip",
        "-o",
        tmp_path / "o.onnx",
        "--env",
        "HalfCheetah-v5",
        folder=tmp_path,
        says="could execute code",
    )
    with zipfile.ZipFile(DEMO) as z, zipfile.ZipFile(tmp_path / "evil.zip", "w") as out:
        out.writestr("data", z.read("data"))
        out.writestr("policy.pth", pickle.dumps(Evil(ran)))
    with pytest.raises(fewbit.FewbitError):
        sources.load(tmp_path / "evil.zip", None)
    assert not ran.exists()


def test_a_truncated_normalizer_and_a_truncated_onnx_never_crash(tmp_path, zoo):
    from fewbit.sources.normalizer import read

    whole = (zoo / "ppo/Ant-v3/vecnormalize.pkl").read_bytes()
    for cut in range(0, len(whole), 97):
        (tmp_path / "v.pkl").write_bytes(whole[:cut])
        with pytest.raises(fewbit.FewbitError):
            read(tmp_path / "v.pkl")
    artifact = fewbit.quantize(
        zoo / "ppo/CartPole-v1/CartPole-v1.zip", env="CartPole-v1", scheme=fewbit.Scheme(), episodes=2
    ).to_bytes()
    rng = np.random.default_rng(0)
    for trial in range(200):
        data = bytearray(artifact[: rng.integers(len(artifact))] if trial % 2 else artifact)
        if data:
            data[int(rng.integers(len(data)))] ^= int(rng.integers(1, 256))
        (tmp_path / "a.onnx").write_bytes(bytes(data))
        with contextlib.suppress(fewbit.FewbitError):
            fewbit.load(tmp_path / "a.onnx")(np.zeros((1, 4), np.float32))


def test_ctrl_c_leaves_nothing(tmp_path):
    run = subprocess.Popen(
        [
            *FEWBIT,
            "quantize",
            str(DEMO),
            "-o",
            str(tmp_path / "out.onnx"),
            "--env",
            "HalfCheetah-v5",
            "--episodes",
            "100000",
            "--keep",
            "0.9999",
        ],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    time.sleep(6)  # loading, calibrating or measuring, also beside other tests; the whole takes hours
    run.send_signal(signal.SIGINT)
    try:
        _, err = run.communicate(timeout=60)
    finally:
        run.kill()
    assert run.returncode == 130 and "interrupted" in err and list(tmp_path.iterdir()) == []


def test_outputs_that_cannot_be_written_are_refused_before_the_work(tmp_path):
    x, policy = tmp_path / "x.npy", tmp_path / "policy.onnx"
    np.save(x, np.random.default_rng(0).normal(size=(50, 17)).astype(np.float32))
    fewbit.quantize(DEMO, observations=x, scheme=fewbit.Scheme(method="rtn")).save(policy)
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "file").write_text("")
    kept = policy.read_bytes()
    go = ["quantize", DEMO, "--env", "Nosuch-v0", "-o"]  # the environment would be refused next
    refused(*go, "/proc/out.onnx", folder=tmp_path, says="/proc/out.onnx: cannot be written")
    refused(*go, tmp_path / "folder.onnx", folder=tmp_path, says="is a folder")
    refused("report", policy, "-o", "/proc/out.html", folder=tmp_path, says="/proc/out.html: cannot be written")
    refused("export", policy, "--to", "c", "-o", tmp_path / "file", folder=tmp_path, says="is a file; give the folder")
    refused("quantize", policy, "-o", policy, "--observations", x, folder=tmp_path, says="would be lost")
    refused("export", policy, "--to", "onnx", "--target", "tensorrt", "-o", "policy.onnx", folder=tmp_path, says="would be lost")
    assert policy.read_bytes() == kept


def test_options_that_would_do_nothing(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((3, 17), np.float32))
    go = ["quantize", DEMO, "-o", tmp_path / "out.onnx"]
    without = [*go, "--observations", tmp_path / "x.npy"]
    refused(*without, "--keep", "0.99", folder=tmp_path, says="--keep belongs to an environment")
    refused(*without, "--env-arg", "a=1", folder=tmp_path, says="--env-arg belongs to an environment")
    refused(*go, "--env", "HalfCheetah-v5", "--keep", "0", folder=tmp_path, says="--keep 0.0: give a share above 0")
    refused(*go, "--env", "HalfCheetah-v5", "--seed", "-3", folder=tmp_path, says="--seed -3: give a whole number")
    auto = [*go, "--env", "HalfCheetah-v5", "--weights", "auto"]
    refused(*auto, "--method", "gptq", folder=tmp_path, says="leave out --method gptq")
    measured = ["evaluate", tmp_path / "out.onnx", "--env", "HalfCheetah-v5"]
    refused(*measured, "--keep", "0.9", folder=tmp_path, says="add --against SOURCE")
    refused(*measured, "--executor", "tpu", folder=tmp_path, says="choose one of native, onnxruntime")
    refused("inspect", tmp_path / "out.onnx", "--env", "HalfCheetah-v5", folder=tmp_path, says="--env belongs to --sensitivity")


def onnx_file(path: Path, middle: str, domain: str = "", shape: tuple[int, ...] = (1, 17), **body) -> Path:
    """obs -> Gemm -> one node -> act."""
    from onnx import TensorProto, checker, helper, numpy_helper, save

    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("obs", shape), ("act", (1, 6)))]
    nodes = [helper.make_node("Gemm", ["obs", "w"], ["x"]), helper.make_node(middle, ["x"], ["act"], domain=domain, **body)]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(np.ones((17, 6), np.float32), "w")])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.me", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    checker.check_model(model)
    save(model, path)
    return path


def test_onnx_files_that_cannot_be_run_or_quantized(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(50, 17)).astype(np.float32))
    go = ["--observations", tmp_path / "x.npy", "-o", tmp_path / "out.onnx"]
    (tmp_path / "empty.onnx").write_bytes(b"")
    own = onnx_file(tmp_path / "own.onnx", "MyOp", "com.me")
    alone = onnx_file(tmp_path / "alone.onnx", "Relu", shape=(17,))
    once = tmp_path / "once.onnx"
    fewbit.quantize(onnx_file(tmp_path / "float.onnx", "Relu"), observations=tmp_path / "x.npy").save(once)
    for source, says in [
        (tmp_path / "empty.onnx", "is empty"),
        (own, "com.me:MyOp"),
        (alone, "[17], without a batch; export it with [1, 17]"),
        (once, "is quantized already; give the float network"),
    ]:
        refused("quantize", source, *go, folder=tmp_path, says=says)
    for verb in (["inspect"], ["bench"], ["report", "-o", "r.html"], ["export", "--to", "c", "-o", "c"]):
        refused(verb[0], DEMO, *verb[1:], folder=tmp_path, says="is a zip")
    refused("inspect", own, folder=tmp_path, says="node act: operator MyOp is not run by the engine")
    refused("diff", DEMO, once, "--observations", "x.npy", folder=tmp_path, says="it was not made from it")


def test_piped_output_is_not_folded(tmp_path):
    """One figure, one line: what a program reads does not depend on a terminal that is not there."""
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(50, 17)).astype(np.float32))
    fewbit.quantize(DEMO, observations=tmp_path / "x.npy", scheme=fewbit.Scheme(method="rtn")).save(tmp_path / "out.onnx")
    environment = {k: v for k, v in os.environ.items() if k != "COLUMNS"}
    go = [*FEWBIT, "inspect", "out.onnx"]
    lines = subprocess.run(go, capture_output=True, text=True, cwd=tmp_path, env=environment).stdout.splitlines()
    (engine,) = [line for line in lines if "integer products" in line]
    assert engine.rstrip().endswith("rounded to the next codes")
    narrow = subprocess.run(go, capture_output=True, text=True, cwd=tmp_path, env=environment | {"COLUMNS": "60"}).stdout
    assert max(map(len, narrow.splitlines())) <= 64 + 2


def test_ctrl_c_says_where_the_training_is(tmp_path, monkeypatch, capsys):
    from fewbit import pipeline
    from fewbit.cli.quantize import quantize

    def stopped(*arguments, training, **options):
        training.checkpoint.write_bytes(b"so far")
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "quantize", stopped)
    with pytest.raises(KeyboardInterrupt):
        quantize(str(DEMO), tmp_path / "out.onnx", "HalfCheetah-v5")
    assert f"{tmp_path / '.out.onnx.training.part'}; the same command goes on" in capsys.readouterr().err


def test_a_file_that_only_other_runtimes_run_is_said_to_be_one(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(50, 17)).astype(np.float32))
    policy = onnx_file(tmp_path / "policy.onnx", "LpNormalization")
    go = [*FEWBIT, "quantize", policy, "-o", "out.onnx", "--observations", "x.npy", "--json"]
    done = subprocess.run(go, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and "LpNormalization" in done.stderr
    assert "out.onnx runs in ONNX Runtime, not in fewbit's engine" in done.stderr
