"""An exported policy as a Python callable: compiled with gcc, called once an observation."""

import ctypes
import subprocess
from pathlib import Path

import numpy as np

from fewbit.engine.program import Program
from fewbit.targets import c


class CPolicy:
    """policy(batch or {name: batch}) -> actions, each by one call of policy_act."""

    def __init__(self, program: Program, folder: Path):
        made = c.generate(program, "policy")
        for file, text in made["files"].items():
            (folder / file).write_text(text)
        flags = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-O2", "-shared", "-fPIC"]
        subprocess.run(["gcc", *flags, "policy.c", "-o", "policy.so"], cwd=folder, check=True)
        self.library, self.program, self.inputs = ctypes.CDLL(str(folder / "policy.so")), program, program.inputs
        self.sizes, self.shape, self.dtype = made["sizes"], None, None

    def __call__(self, observation) -> np.ndarray:
        given = observation if isinstance(observation, dict) else {next(iter(self.inputs)): observation}
        arrays = [np.ascontiguousarray(given[k], self.program.input_dtypes[k]) for k in self.inputs]
        if self.shape is None:
            from fewbit.engine import reference

            first = reference.run(self.program, {k: a[:1] for k, a in zip(self.inputs, arrays, strict=True)})
            self.shape, self.dtype = first[self.program.outputs[0]].shape[1:], first[self.program.outputs[0]].dtype
        held = np.int32 if self.dtype == np.int64 else self.dtype
        out = np.empty((len(arrays[0]), *self.shape), held)
        for k in range(len(out)):
            rows = [a[k].ctypes.data_as(ctypes.c_void_p) for a in arrays]
            self.library.policy_act(*rows, out[k : k + 1].ctypes.data_as(ctypes.c_void_p))
        return out.astype(self.dtype)
