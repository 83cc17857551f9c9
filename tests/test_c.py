"""Exported C gives the reference's bits: corpus, policies, three compilers' flags, cortex-m and big-endian in emulators."""

import ctypes
import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import corpus
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from c_policy import CPolicy
from conftest import ROOT
from onnx import helper, numpy_helper

import fewbit
from fewbit.engine import reference
from fewbit.engine.load import load
from fewbit.engine.lower import lower
from fewbit.errors import FewbitError
from fewbit.graph import metadata
from fewbit.graph.raw import take_integers
from fewbit.graph.read import prepare, read
from fewbit.targets import c

FEWBIT = [sys.executable, "-c", "from fewbit.cli.main import main; main()"]
STRICT = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic"]
SANITIZED = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
TRAPPED = ["-fsanitize=undefined", "-fsanitize-trap=all"]  # for clang, whose sanitizers' library is one more package
BOARDS = {  # cpu: (machine of qemu-system-arm, bytes of flash, bytes of RAM, one corpus case in how many)
    "cortex-m0": ("microbit", 256 << 10, 16 << 10, 16),
    "cortex-m4": ("mps2-an386", 4 << 20, 2 << 20, 3),
    "cortex-m7": ("mps2-an500", 4 << 20, 2 << 20, 3),
}


def needs(*programs: str):
    missing = [p for p in programs if not shutil.which(p)]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")


def run(*command: str, cwd: Path | None = None) -> subprocess.CompletedProcess:
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    """NAME.c, NAME.h of every corpus case, whose self-test runs the case's own hard inputs."""
    folder = tmp_path_factory.mktemp("c")
    for k, case in enumerate(corpus.cases()):
        made = c.generate(lower(prepare(case.model)), f"case{k}", case.name, tests=case.feeds)
        for file, text in made["files"].items():
            (folder / file).write_text(text)
    return folder


def program(folder: Path, name: str, numbers: list[int], compile_: list[str], link: list[str], entry: str) -> Path:
    """Compile these cases and an entry that returns how many of them are wrong; link them."""
    names = [f"case{k}" for k in numbers]
    text = "".join(f'#include "{n}.h"\n' for n in names) + f"int {entry} {{\n  int wrong = 0;\n"
    text += "".join(f"  wrong += {n}_self_test() != 0;\n" for n in names) + "  return wrong;\n}\n"
    (folder / f"{name}.c").write_text(f"int {entry};\n{text}" if entry.startswith("run") else text)

    def one(n: str) -> str:
        out = f"{n}.{name}.o"
        done = run(*compile_, "-c", f"{n}.c", "-o", out, cwd=folder)
        assert done.returncode == 0, done.stderr[:3000]
        return out

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(one, [*names, name]))
    done = run(*(f for f in compile_ if f not in STRICT), *objects, *link, "-o", f"{name}.elf", cwd=folder)
    assert done.returncode == 0, done.stderr[:3000]
    return folder / f"{name}.elf"


def count(folder: Path) -> int:
    return len(list(folder.glob("case*.h")))


@pytest.mark.parametrize("compiler,level", [("gcc", "-O2"), ("gcc", "-Os"), ("clang", "-O2")])
def test_the_corpus_on_the_desktop(sources, compiler, level):
    if not shutil.which(compiler):
        pytest.skip(f"needs {compiler}")
    numbers = list(range(count(sources))) if level == "-O2" else list(range(0, count(sources), 4))
    checked = SANITIZED if compiler == "gcc" else TRAPPED
    elf = program(sources, f"{compiler}{level[1:]}".lower(), numbers, [compiler, *STRICT, level, *checked], [], "main(void)")
    done = run(str(elf))
    assert done.returncode == 0, (done.returncode, done.stderr[:2000])


@pytest.mark.parametrize("cpu,level", [(cpu, "-Os") for cpu in BOARDS] + [("cortex-m4", "-O2")])
@needs("arm-none-eabi-gcc", "qemu-system-arm")
def test_the_corpus_on_boards(sources, cpu, level):
    machine, flash, ram, every = BOARDS[cpu]
    compiler = ["arm-none-eabi-gcc", *STRICT, level, f"-mcpu={cpu}", "-mthumb", "-ffunction-sections", "-fdata-sections"]
    board = ROOT / "tests" / "board"
    own_memcpy = "-fno-tree-loop-distribute-patterns"  # or the loop of the board's memcpy becomes a call of memcpy
    link = [str(board / "board.c"), own_memcpy, "-nostdlib", "-T", str(board / "board.ld"), "-Wl,--gc-sections", "-lgcc"]
    link += [f"-Wl,--defsym=FLASH={flash},--defsym=RAM={ram}"]
    name, numbers = cpu.replace("-", "") + level[1:].lower(), list(range(0, count(sources), every))
    elf = program(sources, name, numbers, compiler, link, "run_all(void)")
    done = run("timeout", "120", "qemu-system-arm", "-M", machine, "-nographic", "-semihosting", "-kernel", str(elf))
    assert done.returncode == 0, (done.returncode, done.stdout[:500], done.stderr[:500])


@needs("s390x-linux-gnu-gcc", "qemu-s390x")
def test_the_corpus_on_a_big_endian_machine(sources):
    compiler = ["s390x-linux-gnu-gcc", *STRICT, "-O2"]
    elf = program(sources, "s390x", list(range(0, count(sources), 2)), compiler, ["-static"], "main(void)")
    done = run("qemu-s390x", str(elf))
    assert done.returncode == 0, (done.returncode, done.stderr[:500])


@pytest.fixture(scope="module")
def artifact(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("export") / "policy.onnx"
    observations = np.random.default_rng(0).normal(0, 1, (500, 17)).astype(np.float32)
    scheme = fewbit.Scheme(method="rtn")
    fewbit.quantize(ROOT / "demo" / "halfcheetah.zip", observations=observations, scheme=scheme).save(path)
    return path


def test_ten_thousand_observations(artifact, tmp_path):
    """The shipped policy, through the exported files as a program would link them, which ask for memcpy and memset at most."""
    done = run(*FEWBIT, "export", str(artifact), "--to", "c", "-o", str(tmp_path), "--json")
    made = json.loads(done.stdout)
    assert done.returncode == 0 and [Path(f).name for f in made["files"]] == ["policy.c", "policy.h"], done.stderr
    assert made["flash_bytes"] < 80_000 and made["ram_bytes"] < 1000
    assert run("gcc", *STRICT, "-O2", "-shared", "-fPIC", "policy.c", "-o", "policy.so", cwd=tmp_path).returncode == 0
    wanted = {line.split()[-1] for line in run("nm", "-u", "policy.so", cwd=tmp_path).stdout.splitlines()}
    assert {w for w in wanted if not w.startswith(("_", "w")) and w.split("@")[0] not in ("memcpy", "memset")} == set()
    program_ = lower(read(artifact))
    policy = CPolicy(program_, tmp_path)
    assert policy.library.policy_self_test() == 0
    observations = np.random.default_rng(1).normal(0, 3, (10_000, 17)).astype(np.float32)
    actions = reference.run(program_, {next(iter(program_.inputs)): observations})[program_.outputs[0]]
    assert np.array_equal(policy(observations), actions)


def test_raw_sensor_integers(artifact, tmp_path):
    """The same actions as of float observations: a count times its factor, plus its offset, is one."""
    rng = np.random.default_rng(2)
    factors, offsets = rng.uniform(1e-3, 2e-3, 17).astype(np.float32), rng.normal(0, 0.1, 17).astype(np.float32)
    for name, array in (("factors", factors), ("offsets", offsets), ("short", factors[:5])):
        np.save(tmp_path / f"{name}.npy", array)
    given = [*FEWBIT, "export", str(artifact), "--to", "c", "-o", str(tmp_path)]
    more = ["--raw", "int16", "--raw-factors", str(tmp_path / "factors.npy"), "--raw-offsets", str(tmp_path / "offsets.npy")]
    assert run(*given, *more).returncode == 0
    program_ = lower(take_integers(read(artifact), "int16", factors, offsets))
    policy = CPolicy(program_, tmp_path)
    counts = rng.integers(-3000, 3000, (1000, 17)).astype(np.int16)
    floats = counts.astype(np.float32) * factors + offsets
    same = lower(read(artifact))
    want = reference.run(same, {next(iter(same.inputs)): floats})[same.outputs[0]]
    assert np.array_equal(policy(counts), want) and policy.library.policy_self_test() == 0
    assert "const int16_t *observation" in (tmp_path / "policy.h").read_text()
    for wrong, message in [
        (["--raw", "float"], "no type of a sensor"),
        (["--raw-factors", str(tmp_path / "factors.npy")], "belong to --raw"),
        (["--raw", "int16", "--raw-factors", str(tmp_path / "short.npy")], "has shape [5], the observation [17]"),
    ]:
        done = run(*given, *wrong)
        assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr


@pytest.mark.parametrize("layout", ["plain", "arduino", "zephyr"])
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_what_is_remembered_lies_in_the_callers_struct(tmp_path, kind, layout):
    """Two robots, one network, their episodes interleaved: every action the reference's, the state held as codes."""
    case = next(x for x in corpus.cases() if x.name.startswith(f"{kind} step"))
    rng, model = np.random.default_rng(0), prepare(case.model)
    names = [v.name for v in model.graph.inputs]
    outputs = [v.name for v in model.graph.outputs]
    state = [{"input": names[1], "output": outputs[0]}]
    if kind == "LSTM":
        state += [{"input": names[2], "output": outputs[1], "initial": [0.5] * model.graph.inputs[2].shape[1]}]
    model.graph.outputs.insert(0, action_of(model))
    metadata.write(model, {"state": state})
    program_ = lower(model)
    policy = load(model, "reference")
    made = c.generate(program_, "policy", layout=layout)
    for file, text in made["files"].items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
    source = next(tmp_path.rglob("policy.c"))
    assert run("gcc", *STRICT, "-O2", "-shared", "-fPIC", str(source), "-o", "policy.so", cwd=tmp_path).returncode == 0
    library = ctypes.CDLL(str(tmp_path / "policy.so"))
    assert library.policy_self_test() == 0
    bytes_ = made["sizes"]["state_bytes"]
    assert bytes_ == 2 * sum(int(np.prod(program_.inputs[s.input])) for s in program_.state)  # int16 each
    robots = [ctypes.create_string_buffer(bytes_) for _ in range(2)]
    for episode in range(2):
        policy.reset()
        for robot in robots:
            library.policy_reset(robot)
        for _ in range(20):
            seen = rng.normal(0, 3, (2, *program_.inputs[names[0]])).astype(np.float32)
            want, got = policy(seen), np.empty((2, *program_.inputs[names[1]]), np.float32)
            for k, robot in enumerate(robots):
                given, taken = (a[k].ctypes.data_as(ctypes.c_void_p) for a in (seen, got))
                library.policy_act(robot, given, taken)
            assert np.array_equal(got, want), episode


def action_of(model: ir.Model) -> ir.Value:
    """An output beside the state: what is remembered, negated by a graph's own means."""
    left = model.graph.outputs[0]
    node = ir.node("Neg", [left], name="action")
    node.outputs[0].name, node.outputs[0].shape, node.outputs[0].dtype = "action", left.shape, left.dtype
    model.graph.append(node)
    return node.outputs[0]


@pytest.mark.parametrize("layout", c.LAYOUTS)
def test_layouts_and_their_examples(artifact, tmp_path, layout):
    """Each folder has its build files, and its smallest example compiles and passes the self-test (an .ino against a stub)."""
    done = run(*FEWBIT, "export", str(artifact), "--to", "c", "-o", str(tmp_path), "--layout", layout, "--name", "walker")
    assert done.returncode == 0 and "RAM" in done.stdout, done.stderr
    files = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    assert files == {f.replace("NAME", "walker") for f in c.LAYOUTS[layout]}
    source = next(tmp_path.rglob("walker.c"))
    example = next((p for p in tmp_path.rglob("*") if p.name in ("main.c", "Act.ino")), None)
    assert run("gcc", *STRICT, "-O2", "-c", str(source), "-o", "walker.o", cwd=tmp_path).returncode == 0
    if example is None:
        return
    methods = "void begin(int) {} void println(const char *s) { puts(s); } void println(float) {}"
    (tmp_path / "stub.h").write_text(f"#include <cstdio>\nstatic struct {{ {methods} }} Serial;\ninline void delay(int) {{}}\n")
    (tmp_path / "run.cpp").write_text("void setup(); void loop(); int main() { setup(); loop(); }\n")
    (tmp_path / "run.c").write_text("int app_main(void); int main(void) { return app_main(); }\n")
    include = f"-I{source.parent}"
    if example.suffix == ".ino":
        cpp = ["-include", "stub.h", include, "-x", "c++", str(example), "run.cpp"]
        done = run("g++", *cpp, "-x", "none", "walker.o", cwd=tmp_path)
    else:
        entry = ["run.c"] if layout == "esp-idf" else []
        done = run("gcc", *STRICT, include, str(example), *entry, "walker.o", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "self-test: passed" in run(str(tmp_path / "a.out")).stdout


def test_narrow_weights_are_packed(tmp_path):
    """Two, four and eight bits: each code once, none in more bits than it needs."""
    sizes = {}
    for bits, limit in ((2, 2), (4, 8), (8, 128)):
        g = corpus.Graph(bits)
        x = g.entry("uint8", 64, 0.1)
        weight = g.rng.integers(-limit, limit, (64, 64)).astype(np.int8)
        weight[0, 0] = -limit
        case = g.case("net", g.qdq(g.gemm(x, 0.1, weight, np.full(64, 0.01), None), "int8", 0.1))
        made = c.generate(lower(prepare(case.model)), "net", tests=case.feeds)
        sizes[bits] = made["sizes"]["flash_bytes"]
    assert sizes[8] - sizes[4] == 2048 and sizes[4] - sizes[2] == 1024


def test_what_runs_in_float_between_integers_is_refused_by_its_operators_and_nodes(tmp_path):
    """An operator that no clause covers, twice; and one that is exact in float, but between codes."""
    for operators, says in (
        (["Softmax", "LogSoftmax"], r"runs in float here: Softmax \(node f0\), LogSoftmax \(node f1\); export"),
        (["Softmax"] * 6, r"Softmax \(node f0\), .*Softmax \(node f3\) and 2 more; export"),
    ):
        nodes = [helper.make_node("Gemm", ["x", "w"], ["v0"], "first")]
        nodes += [helper.make_node(o, [f"v{k}"], [f"v{k + 1}"], f"f{k}") for k, o in enumerate(operators)]
        nodes.append(helper.make_node("MatMul", [f"v{len(operators)}", "w"], ["y"], "last"))
        ends = [[helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["batch", 3])] for n in "xy"]
        graph = helper.make_graph(nodes, "g", *ends, [numpy_helper.from_array(np.eye(3, dtype=np.float32) / 8, "w")])
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
        rows = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
        artifact = fewbit.quantize(tmp_path / "m.onnx", observations=rows, scheme=fewbit.Scheme("int8", "int16", method="rtn"))
        program = lower(artifact.model)
        assert not program.exact
        with pytest.raises(FewbitError, match=says):
            c.generate(program, "net")


def test_what_cannot_be_c_is_refused(tmp_path):
    g = corpus.Graph(1)
    model = g.case("float", g.op("Exp", g.input(np.ones((2, 3))))).model
    with pytest.raises(FewbitError, match="this network runs in float .* quantize it first"):
        c.generate(lower(prepare(model)), "net")
    (tmp_path / "float.onnx").write_bytes(model.SerializeToString())
    for arguments, message in [
        ([str(tmp_path / "float.onnx"), "--to", "c"], "exact: no"),
        ([str(tmp_path / "none.onnx"), "--to", "c"], "no such file"),
        ([str(tmp_path / "float.onnx"), "--to", "ros2"], "call the artifact by fewbit.load(FILE)"),
        ([str(tmp_path / "float.onnx"), "--to", "pascal"], "--to pascal is unknown; choose one of c"),
        ([str(tmp_path / "float.onnx"), "--to", "c", "--layout", "x"], "--layout x is unknown; choose one of plain, arduino"),
    ]:
        done = run(*FEWBIT, "export", *arguments, "-o", str(tmp_path / "out"))
        assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr
        assert not (tmp_path / "out").exists()
