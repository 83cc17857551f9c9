"""Other tools' C for the networks of benchmarks/boards.py, as programs with a policy_act; and TensorFlow Lite Micro on the host.

    python -m venv peers
    peers/bin/pip install tflite-micro==0.dev20261023182759 emlearn==0.23.2 scikit-learn==1.9.1 emx-onnx-cgen==1.4.0
    peers/bin/pip install --no-deps xmos-ai-tools==1.4.2
    apt-get install --no-install-recommends libstdc++-arm-none-eabi-newlib libgemmlowp-dev valgrind

tflite-micro's package is an x86-64 interpreter without its sources. xmos-ai-tools has TensorFlow Lite Micro's headers, and in
these the reference kernels whole: boards_tflite.cc calls them. onnx2c is in no registry that we reach; emx-onnx-cgen is its like.
"""

import json
import math
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
INVOKE = "tflite::micro::MicroInterpreter::Invoke()"
CORE = "Micro(Interpreter|Allocator|Context|Graph)|Greedy|SingleArena|Allocation|Internal"
INTERPRETER = rf"tflite::micro::(\(anonymous namespace\)::)?({CORE})"
EMLEARN = """
import os, sys, numpy, onnx, emlearn
from sklearn.neural_network import MLPRegressor
found = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(sys.argv[1]).graph.initializer}
n = len(found) // 2
net = MLPRegressor(activation="relu")
net.coefs_, net.intercepts_ = [found[f"w{k}"].T for k in range(n)], [found[f"b{k}"] for k in range(n)]
os.chdir(os.path.dirname(sys.argv[1]))  # it leaves tmp/ where it runs
net.n_layers_, net.out_activation_, net.n_outputs_ = n + 1, "identity", len(net.intercepts_[-1])
print(emlearn.convert(net, method="loadable", return_type="regressor").save(name="net"))
"""


@dataclass
class Program:
    """Files that define policy_act, what the compiler needs besides, and the first action, where known better, within a step."""

    files: dict[str, str]
    options: list[str] = field(default_factory=list)
    known: list[float] | None = None
    step: float = 0.5


def run(*command: object, error: bool = False) -> str:
    done = subprocess.run([str(c) for c in command], check=True, capture_output=True, text=True)
    return done.stderr if error else done.stdout


def header(text: str = "") -> dict[str, str]:
    return {"policy.h": text + "void policy_act(const float *, float *);\n"}


def packages(venv: Path) -> Path:
    return next((venv / "lib").glob("python3*/site-packages"))


def emlearn(venv: Path, source: Path, sizes: list[int]) -> Program:
    act = f"void policy_act(const float *o, float *a) {{ net_regress(o, {sizes[0]}, a, {sizes[-1]}); }}\n"
    text = run(venv / "bin" / "python", "-c", EMLEARN, source)
    return Program({"policy.c": '#include "policy.h"\n' + text + act} | header(), [f"-I{packages(venv) / 'emlearn'}"])


def emx(venv: Path, source: Path, dimension: str) -> Program:
    out = source.with_suffix(".emx.c")
    limits = ["--large-weight-threshold", "0", "--large-temp-threshold", "0"]
    run(venv / "bin" / "emx-onnx-cgen", "compile", "--input-dim", f"{dimension}=1", *limits, "--model-name", "net", source, out)
    act = "void policy_act(const float *o, float *a) { net((const void *)o, (void *)a); }\n"
    return Program({"policy.c": '#include "policy.h"\n' + out.read_text() + act} | header())


def written(venv: Path, source: Path, observations: Path, what: str) -> tuple[Path, dict]:
    """The .tflite, and what boards_tflite.py says of it."""
    model = source.with_name(f"{what}.tflite")
    command = [venv / "bin" / "python", HERE / "boards_tflite.py", "write", source, observations, what, model]
    done = subprocess.run([str(c) for c in command], check=True, capture_output=True, text=True)
    arena = re.search(r"Arena allocation total (\d+)", done.stderr)
    assert arena
    return model, json.loads(done.stdout) | {"bytes": model.stat().st_size, "arena": int(arena[1])}


def prepared(real: float) -> str:
    """A positive number as TFLM's Prepare has it: 31 bits, and a power of two."""
    fraction, shift = math.frexp(real)
    return f"{{{round(fraction * 2**31)}, {shift}}}"


def tflite_kernels(venv: Path, model: Path, found: dict, what: str) -> Program:
    net, content = found["layers"], model.read_bytes()
    each = zip(net, net[1:], strict=False)
    rows = [f"{{{a['in']}, {a['out']}, {a['zero']}, {b['zero']}, {int(a['relu'])}, {a['weight']}, {a['bias']}}}" for a, b in each]
    reals = [prepared(r) for a in net[:-1] for r in a["real"]]
    wide = max(max(a["in"], a["out"]) for a in net[:-1])
    text = f"""typedef {"int8_t" if what != "16x8" else "int16_t"} codes;
typedef {"int32_t" if what != "16x8" else "int64_t"} sums;
enum {{ LAYERS = {len(rows)}, IN = {net[0]["in"]}, OUT = {net[-2]["out"]}, WIDEST = {wide}, CHANNELS = {len(reals)} }};
#define ONE_SCALE {int(what == "layer")}
struct Layer {{ int in, out, zero_in, zero_out, relu, weight, bias; }};
static const Layer layer[] = {{{", ".join(rows)}}};
struct End {{ float scale; int zero; }};
static const End ends[] = {{{", ".join(f"{{{e['scale']!r}f, {e['zero']}}}" for e in (net[0], net[-1]))}}};
static const int prepared_values[][2] = {{{", ".join(reals)}}};
alignas(16) static const unsigned char model[] = {{{", ".join(map(str, content))}}};
"""
    include = packages(venv) / "xmos_ai_tools" / "runtime" / "include"
    options = [
        f"-I{include}",
        "-I/usr/include/gemmlowp",
        "-std=c++17",
        "-fno-exceptions",
        "-fno-rtti",
        "-fpermissive",
        "-w",
        "-DNDEBUG",
    ]
    return Program(
        {"policy.cc": (HERE / "boards_tflite.cc").read_text(), "layers.h": text} | header(),
        options,
        found["first"],
        net[-1]["scale"] * 1.01,
    )


def counted(symbol: str, *command: object) -> int:
    """Instructions inside a function, its callees included, on the host."""
    valgrind = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", f"--toggle-collect={symbol}"]
    text = run(*valgrind, *command, error=True)
    found = re.search(r"Collected : (\d+)", text)
    assert found and int(found[1]), text
    return int(found[1])


def invoked(venv: Path, model: Path, observations: Path, times: int = 10) -> int:
    """Instructions of one Invoke of the interpreter in the package."""
    command = [venv / "bin" / "python", HERE / "boards_tflite.py", "invoke", model, observations, times]
    return counted(INVOKE, *command) // times


def acted(folder: Path, files: dict[str, str], inputs: int, times: int = 10) -> int:
    """Instructions of one policy_act of C compiled for the host."""
    loop = f"for (int k = 0; k < {times}; k++) policy_act(o, a);"
    main = f'#include "policy.h"\nint main(void) {{ static float o[{inputs}], a[16]; {loop} return 0; }}'
    for file, text in (files | {"main.c": main}).items():
        (folder / file).write_text(text)
    run("gcc", "-O2", folder / "main.c", folder / "policy.c", "-o", folder / "host")
    return counted("policy_act", folder / "host") // times


def interpreter_code(venv: Path) -> int:
    """Bytes of x86-64 code of the interpreter and its allocator in the package, without kernels, parsers and what records."""
    library = packages(venv) / "tflite_micro" / "python" / "tflite_micro" / "_runtime.so"
    lines = [line.split(" ", 3) for line in run("nm", "-CS", library).splitlines() if line[:1] != " "]
    return sum(int(p[1], 16) for p in lines if len(p) == 4 and p[2] in "tTwW" and re.match(INTERPRETER, p[3]))
