"""Play it: a policy's exported C as WebAssembly (clang and lld, no libc), the float one as arrays, for small worlds."""

import base64
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from fewbit.engine.lower import lower
from fewbit.engine.program import Float, Program
from fewbit.errors import FewbitError
from fewbit.targets import c

WORLDS = ("CartPole-v1", "Pendulum-v1")  # whose equations templates/play.js holds
ENTRY = """#include "policy.h"
static float observation[{inputs}];
static {type} action[{outputs}];
void *observation_at(void) {{ return observation; }}
void *action_at(void) {{ return action; }}
void act(void) {{ policy_act(observation, action); }}
"""
ONE = {"Relu", "Tanh", "Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Cast", "ArgMax"}  # of one value
TWO = {"Add", "Sub", "Mul", "Div"}

Words = dict[str, Any]


def compiler() -> str | None:
    """Why C cannot be compiled to WebAssembly here; None where it can."""
    missing = [p for p in ("clang", "wasm-ld") if not shutil.which(p)]
    return f"It takes {' and '.join(missing)} (Debian's packages clang and lld)." if missing else None


def player(name: str, model: ir.Model) -> Words:
    """One policy for the page: {"name", "wasm", "inputs", "outputs", "integer", "bytes"}; refused where it has no C."""
    program = lower(model)
    made = c.generate(program, "policy")
    if len(program.inputs) != 1 or program.state or program.input_dtypes[next(iter(program.inputs))] != np.float32:
        raise FewbitError("the page plays policies of one float observation that remember nothing")
    inputs = int(np.prod(next(iter(program.inputs.values()))))
    outputs, kind = _action(made["files"]["policy.h"])
    code = wasm(made["files"], ENTRY.format(inputs=inputs, outputs=outputs, type=kind))
    text = base64.b64encode(code).decode()
    sizes = {"inputs": inputs, "outputs": outputs, "bytes": made["sizes"]["flash_bytes"]}
    return {"name": name, "wasm": text, "integer": kind != "float"} | sizes


def _action(header: str) -> tuple[int, str]:
    """(elements, C type) of the one action, from the header that was made."""
    count = next(int(line.split()[-1]) for line in header.splitlines() if line.startswith("#define POLICY_ACTION_SIZE"))
    return count, next(t for t in ("float", "int32_t", "int64_t", "int16_t", "int8_t", "uint8_t") if f", {t} *action" in header)


def wasm(files: dict[str, str], entry: str) -> bytes:
    """files: {name: text} of one network's C; a module that exports its memory and the entry's three functions."""
    with tempfile.TemporaryDirectory() as folder:
        for name, text in {**files, "entry.c": entry}.items():
            (Path(folder) / name).write_text(text)
        exports = [f"-Wl,--export={name}" for name in ("act", "observation_at", "action_at")]
        flags = [
            "--target=wasm32",
            "-O2",
            "-std=c99",
            "-ffreestanding",
            "-nostdlib",
            "-Wl,--no-entry",
            "-Wl,--strip-all",
            *exports,
        ]
        command = ["clang", *flags, "policy.c", "entry.c", "-o", "policy.wasm"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise FewbitError(f"clang cannot compile it to WebAssembly: {(done.stderr.strip() or '?').splitlines()[0][:200]}")
        return (Path(folder) / "policy.wasm").read_bytes()


def float_player(name: str, model: ir.Model) -> Words:
    """The float network as steps that play.js walks: {"name", "steps", "input", "output", "bytes"}."""
    program = lower(model)
    steps = [_step(s, program) for s in program.steps]
    size = sum(int(v.size) * 4 for s in program.steps for v in getattr(s, "inputs", ()) if isinstance(v, np.ndarray))
    return {"name": name, "steps": steps, "input": next(iter(program.inputs)), "output": program.outputs[0], "bytes": size}


def _step(step: Any, program: Program) -> Words:
    known = isinstance(step, Float) and (step.op in ONE | TWO | {"Clip", "Gemm"})
    if not known:
        raise FewbitError(f"the page's float arithmetic has no {getattr(step, 'op', type(step).__name__)}")
    inputs = [v for v in step.inputs if v is not None]
    if step.op in ONE:
        inputs = inputs[:1]
    if step.op == "Gemm":
        weight = np.asarray(inputs[1], np.float32)
        bias = np.asarray(inputs[2], np.float32) if len(inputs) > 2 else np.zeros(1, np.float32)
        if step.attributes.get("alpha", 1.0) != 1 or step.attributes.get("beta", 1.0) != 1 or step.attributes.get("transA"):
            raise FewbitError("the page's float arithmetic has no scaled Gemm")
        weight = weight if step.attributes.get("transB") else weight.T
        inputs = [inputs[0], weight, np.broadcast_to(bias.reshape(-1), len(weight))]
    return {"op": step.op, "out": step.out, "inputs": [v if isinstance(v, str) else _packed(v) for v in inputs]}


def _packed(value: Any) -> Words:
    array = np.ascontiguousarray(value, np.float32).reshape(-1)
    return {"floats": base64.b64encode(array.tobytes()).decode()}
