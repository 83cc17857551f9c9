"""Instructions, flash and RAM of an action on microcontroller cores: python benchmarks/boards.py > benchmarks/results/boards.md

qemu counts: -icount shift=0 makes an instruction one virtual nanosecond, and the board's 25 MHz timer reads them over 100 actions.
Beside it, the same network as plain float loops (-O2, -ffast-math; without an FPU on cortex-m0), its weights as they were.
"""

import subprocess
import tempfile
from pathlib import Path

import numpy as np
import onnx
from engine import network
from onnx import numpy_helper

import fewbit
from fewbit.engine.lower import lower
from fewbit.graph.read import read
from fewbit.targets import c

BOARD = Path(__file__).parents[1] / "tests" / "board"
CPUS = {"cortex-m0": ["-mcpu=cortex-m0"], "cortex-m4": ["-mcpu=cortex-m4", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16"]}
SIZES = {"17-64-64-6": [17, 64, 64, 6], "17-256-256-6": [17, 256, 256, 6]}
MAIN = """#include "policy.h"
#define TIMER ((volatile unsigned *)0x40000000)
static void say(unsigned v) {
  static char text[12];
  char *p = text + 11;
  *p = 0;
  do *--p = (char)('0' + v % 10); while (v /= 10);
  register unsigned operation __asm__("r0") = 4; /* SYS_WRITE0 */
  register char *argument __asm__("r1") = p;
  __asm__ volatile("bkpt 0xab" : "+r"(operation) : "r"(argument) : "memory");
}
int run_all(void) {
  static float observation[POLICY_IN], action[16];
  int k;
  TIMER[2] = TIMER[1] = 0xFFFFFFFFu;
  TIMER[0] = 1;
  unsigned start = TIMER[1];
  for (k = 0; k < 100; k++) policy_act(observation, action);
  say((start - TIMER[1]) * 40 / 100);
  return 0;
}
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
        f"static const float {n}[] = {{{', '.join(f'{v:.9g}f' if '.' in f'{v:.9g}' else f'{v:.9g}.0f' for v in a.reshape(-1))}}};\n"
        for n, a in constants.items()
    ).replace("e-05.0f", "e-05f")
    calls, x = "", "observation"
    for k, (i, o) in enumerate(zip(sizes, sizes[1:], strict=False)):
        y = "action" if k == len(sizes) - 2 else f"h{k}"
        calls += f"  static float {y}[{o}];\n" if y != "action" else ""
        calls += f"  layer({x}, w{k}, b{k}, {i}, {o}, {int(y != 'action')}, {y});\n"
        x = y
    act = f"void policy_act(const float *observation, float *action) {{\n{calls}}}\n"
    return {"policy.c": '#include "policy.h"\n' + text + FLOAT + act, "policy.h": "void policy_act(const float *, float *);\n"}


def measured(files: dict[str, str], cpu: str, inputs: int, level: str) -> tuple[int, int, int]:
    """(flash, RAM, instructions an action) of the policy alone."""
    with tempfile.TemporaryDirectory() as folder:
        for file, text in (files | {"main.c": MAIN}).items():
            (Path(folder) / file).write_text(text)
        compiler = ["arm-none-eabi-gcc", level, "-fno-tree-loop-distribute-patterns", *CPUS[cpu], "-mthumb", "-ffunction-sections", "-fdata-sections", f"-DPOLICY_IN={inputs}"]
        link = ["-nostdlib", "-T", str(BOARD / "board.ld"), "-Wl,--gc-sections", "-Wl,--defsym=FLASH=4194304,--defsym=RAM=2097152"]

        def run(*command: str) -> str:
            return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout

        run(*compiler, "-c", "policy.c", "-o", "policy.o")
        run(*compiler, "main.c", str(BOARD / "board.c"), "policy.o", *link, "-lgcc", "-Wl,-Map=map", "-o", "all.elf")
        ours = [line.split() for line in run("arm-none-eabi-nm", "-S", "all.elf").splitlines() if len(line.split()) == 4]
        skip = {"observation", "action", "text", "run_all", "say", "reset", "memcpy", "memset", "vectors", "fault", "leave"}
        kept = [(int(size, 16), kind.lower()) for _, size, kind, name in ours if name.split(".")[0] not in skip]
        flash = sum(s for s, k in kept if k in "tr")
        ram = sum(s for s, k in kept if k in "bd")
        qemu = ["timeout", "60", "qemu-system-arm", "-M", "mps2-an386", "-nographic", "-semihosting", "-icount", "shift=0"]
        done = subprocess.run([*qemu, "-kernel", "all.elf"], cwd=folder, capture_output=True, text=True)
        return flash, ram, int((done.stdout + done.stderr).strip())


def main() -> None:
    print("| network | core | weights | flash | RAM | instructions an action |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, sizes in SIZES.items():
            source = Path(folder) / "float.onnx"
            network(sizes, "Relu", source)
            observations = np.random.default_rng(1).normal(size=(512, sizes[0])).astype(np.float32)
            made = {"float32, plain loops": (float_c(source, sizes), "-O2")}
            for bits in ("int8", "int4"):
                artifact = Path(folder) / f"{bits}.onnx"
                scheme = fewbit.Scheme(weights=bits, method="rtn")
                fewbit.quantize(source, observations=observations, scheme=scheme).save(artifact)
                made[f"{bits}, fewbit"] = (c.generate(lower(read(artifact)), "policy")["files"], "-O2")
            for cpu in CPUS:
                for what, (files, level) in made.items():
                    flash, ram, instructions = measured(files, cpu, sizes[0], level)
                    print(f"| {name} | {cpu} | {what} | {flash:,} | {ram:,} | {instructions:,} |", flush=True)


if __name__ == "__main__":
    main()
