"""Instructions, flash and RAM of an action on microcontroller cores: python benchmarks/boards.py > benchmarks/results/boards.md

qemu counts: -icount shift=0 makes an instruction one virtual nanosecond; the board's 25 MHz timer reads them over 100 actions.
Beside it, the same network as plain float loops (no FPU on cortex-m0), its weights as they were; and, given the environment that
boards_peers.py describes, what other tools make of it: python benchmarks/boards.py peers > benchmarks/results/boards.md
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from boards_peers import Program, acted, emlearn, emx, header, interpreter_code, invoked, tflite_kernels, written
from engine import network
from onnx import numpy_helper

import fewbit
from fewbit.engine.lower import lower
from fewbit.graph.read import read
from fewbit.targets import c

BOARD = Path(__file__).parents[1] / "tests" / "board"
MAIN = Path(__file__).with_name("boards_main.c")
CPUS = {"cortex-m0": ["-mcpu=cortex-m0"], "cortex-m4": ["-mcpu=cortex-m4", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16"]}
SIZES = {"17-64-64-6": [17, 64, 64, 6], "17-256-256-6": [17, 256, 256, 6]}
HARNESS = {"observation", "action", "text", "run_all", "say", "stack_used", "policy_prepare", "prepared_values"}
HARNESS |= {"reset", "memcpy", "memset", "vectors", "fault", "leave"}
CAPTION = """All at -O2. Flash: code and constants that are reached, libraries included, without start-up and measuring.
Stack: the most that one action used. "TFLite Micro's kernels alone": its reference kernels, called one after the other on the
.tflite, without the interpreter, allocator, parser and resolver that every program with it has: so flash and RAM are less than it
needs. The instructions are those of its portable kernels; CMSIS-NN's, which we could not get, take fewer on cortex-m4.
"""
HEAD = "| network | core | what | flash | static RAM | stack | instructions an action |\n|---|---|---|---|---|---|---|"
HOST = "| network | what | .tflite, bytes | arena, bytes | instructions an action | RMSE |\n|---|---|---|---|---|---|"
HOSTED = """
On the host, x86-64: TFLite Micro whole, from its package, where interpreter and allocator alone are {:,} bytes of code; its
pointers are twice as wide as on the cores, and so is part of the arena. RMSE: of 100 actions, in percent of the actions' range.
"""
FLOAT = """static void layer(const float *x, const float *w, const float *b, int in, int out, int relu, float *y) {
  for (int o = 0; o < out; o++, w += in) {
    float s = b[o];
    for (int i = 0; i < in; i++) s += x[i] * w[i];
    y[o] = relu && s < 0 ? 0 : s;
  }
}
"""


def float_c(path: Path, sizes: list[int]) -> dict[str, str]:
    constants = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    text = "".join(
        f"static const float {n}[] = {{{', '.join(f'{v:.9e}f' for v in a.reshape(-1))}}};\n" for n, a in constants.items()
    )
    calls, x = "", "observation"
    for k, (i, o) in enumerate(zip(sizes, sizes[1:], strict=False)):
        y = "action" if k == len(sizes) - 2 else f"h{k}"
        calls += f"  static float {y}[{o}];\n" if y != "action" else ""
        calls += f"  layer({x}, w{k}, b{k}, {i}, {o}, {int(y != 'action')}, {y});\n"
        x = y
    act = f"void policy_act(const float *observation, float *action) {{\n{calls}}}\n"
    return {"policy.c": '#include "policy.h"\n' + text + FLOAT + act} | header()


def linked(folder: Path, program: Program, cpu: str, observation: np.ndarray, outputs: int) -> Path:
    for file, text in program.files.items():
        (folder / file).write_text(text)
    values = ",".join(f"{v:.9g}" for v in observation)
    machine = ["-O2", "-fno-tree-loop-distribute-patterns", *CPUS[cpu], "-mthumb", "-ffunction-sections", "-fdata-sections"]
    tell = [f"-I{folder}", f"-DPOLICY_OUT={outputs}", f"-DPOLICY_OBSERVATION={{{values}}}"]
    link = ["-nostdlib", "-T", BOARD / "board.ld", "-Wl,--gc-sections", "-Wl,--defsym=FLASH=4194304,--defsym=RAM=2097152"]
    source = "policy.cc" if "policy.cc" in program.files else "policy.c"

    def gcc(*command: object) -> None:
        compiler = "arm-none-eabi-g++" if source == "policy.cc" and "-c" in command else "arm-none-eabi-gcc"
        subprocess.run([compiler, *machine, *map(str, command)], cwd=folder, check=True, capture_output=True, text=True)

    gcc("-c", *program.options, source, "-o", "policy.o")
    libraries = ["-Wl,--start-group", "-lm", "-lc_nano", "-lgcc", "-Wl,--end-group"]
    gcc(*tell, MAIN, BOARD / "board.c", "policy.o", *link, *libraries, "-o", "all.elf")
    return folder / "all.elf"


def sized(elf: Path) -> tuple[int, int]:
    """Flash and static RAM of the sections, less the harness's part. A sum of symbols would not do: libgcc has aliases."""
    text, data, bss = [int(n) for n in tool("size", elf).splitlines()[1].split()[:3]]
    symbols = [line.split() for line in tool("nm", "-S", elf).splitlines()]
    ours = [(int(s[1], 16), s[2].lower()) for s in symbols if len(s) == 4 and s[3].split(".")[0] in HARNESS]
    return text + data - sum(n for n, k in ours if k in "trwd"), data + bss - sum(n for n, k in ours if k in "bd")


def tool(name: str, *command: object) -> str:
    return subprocess.run([f"arm-none-eabi-{name}", *map(str, command)], check=True, capture_output=True, text=True).stdout


def measured(program: Program, cpu: str, observation: np.ndarray, right: np.ndarray) -> list[int]:
    """Flash, RAM in static buffers, RAM on the stack, instructions an action: of the policy alone. The action is checked."""
    with tempfile.TemporaryDirectory() as folder:
        elf = linked(Path(folder), program, cpu, observation, len(right))
        flash, ram = sized(elf)
        qemu = ["timeout", "60", "qemu-system-arm", "-M", "mps2-an386", "-nographic", "-semihosting", "-icount", "shift=0"]
        done = subprocess.run([*qemu, "-kernel", elf], capture_output=True, text=True)
        instructions, stack, *action = [int(v) for v in (done.stdout + done.stderr).split()]
    wanted = right if program.known is None else program.known
    assert np.abs(np.array(action) / 10000 - wanted).max() < program.step + 1e-4, (action, wanted)
    return [flash, ram, stack, instructions]


def programs(source: Path, sizes: list[int], observations: Path, venv: Path | None) -> tuple[dict[str, Program], list[str]]:
    """What to measure on the cores; and a line for each that ran on the host."""
    data, found = np.load(observations), {"float32, plain loops": Program(float_c(source, sizes))}
    host = []
    for bits in ("int8", "int4"):
        artifact = source.with_name(f"{bits}.onnx")
        fewbit.quantize(source, observations=data, scheme=fewbit.Scheme(weights=bits, method="rtn")).save(artifact)
        files = c.generate(lower(read(artifact)), "policy")["files"]
        found[f"{bits}, fewbit"] = Program(files)
        if venv:
            error = relative_error(source, fewbit.load(artifact), data)
            host += [f"{bits}, fewbit's C, gcc -O2 | - | - | {acted(source.parent, files, sizes[0]):,} | {error:.2%}"]
    if not venv:
        return found, host
    found["float32, emlearn"] = emlearn(venv, source, sizes)
    found["float32, emx-onnx-cgen"] = emx(venv, source, "n")
    found["int8 (fewbit's file), emx-onnx-cgen"] = emx(venv, source.with_name("int8.onnx"), "batch")
    for kind, what in (("int8", "int8"), ("layer", "int8, one scale a layer"), ("16x8", "16x8")):
        model, facts = written(venv, source, observations, kind)
        found[f"{what}, TFLite Micro's kernels alone"] = tflite_kernels(venv, model, facts, kind)
        invoke = invoked(venv, model, observations)
        host += [f"{what}, TFLite Micro | {facts['bytes']:,} | {facts['arena']:,} | {invoke:,} | {facts['rmse']:.2%}"]
    return found, host


def relative_error(source: Path, policy: object, observations: np.ndarray) -> float:
    """RMSE of 100 actions, of the float actions' range."""
    right = np.array([fewbit.load(source)(o) for o in observations])
    return float(np.sqrt(np.mean((np.array([policy(o) for o in observations[:100]]) - right[:100]) ** 2)) / np.ptp(right))


def main() -> None:
    venv, hosts = Path(sys.argv[1]).absolute() if len(sys.argv) > 1 else None, []
    print(CAPTION)
    print(HEAD)
    for name, sizes in SIZES.items():
        with tempfile.TemporaryDirectory() as folder:
            source, observations = Path(folder) / "float.onnx", Path(folder) / "observations.npy"
            network(sizes, "Relu", source)
            data = np.random.default_rng(1).normal(size=(512, sizes[0])).astype(np.float32)
            np.save(observations, data)
            found, host = programs(source, sizes, observations, venv)
            hosts += [f"| {name} | {line} |" for line in host]
            right = fewbit.load(source)(data[0])
            for cpu in CPUS:
                for what, program in found.items():
                    cells = [f"{n:,}" for n in measured(program, cpu, data[0], right)]
                    print(f"| {name} | {cpu} | {what} | {' | '.join(cells)} |", flush=True)
    if venv:
        print(HOSTED.format(interpreter_code(venv)))
        print(HOST)
        print("\n".join(hosts))


if __name__ == "__main__":
    main()
