"""An exported policy as a Python callable: compiled with gcc, called once an observation."""

import ctypes
import subprocess
from pathlib import Path

import numpy as np

from fewbit.engine import reference
from fewbit.engine.program import Program
from fewbit.targets import c


class CPolicy:
    """policy(batch or {name: batch}) -> actions, each by one call of policy_act; each row has a struct for what it remembers."""

    def __init__(self, program: Program, folder: Path):
        made = c.generate(program, "policy")
        for file, text in made["files"].items():
            (folder / file).write_text(text)
        flags = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-O2", "-shared", "-fPIC"]
        subprocess.run(["gcc", *flags, "policy.c", "-o", "policy.so"], cwd=folder, check=True)
        self.library, self.program, self.inputs = ctypes.CDLL(str(folder / "policy.so")), program, program.observations
        self.sizes, self.shape, self.dtype = made["sizes"], None, None
        self.states: list[ctypes.Array] = []

    def reset(self) -> None:
        for state in self.states:
            self.library.policy_reset(state)

    def __call__(self, observation) -> np.ndarray:
        given = observation if isinstance(observation, dict) else {next(iter(self.inputs)): observation}
        arrays = [np.ascontiguousarray(given[k], self.program.input_dtypes[k]) for k in self.inputs]
        if self.shape is None:
            self._begin({k: a[:1] for k, a in zip(self.inputs, arrays, strict=True)}, len(arrays[0]))
        held = np.int32 if self.dtype == np.int64 else self.dtype
        out = np.empty((len(arrays[0]), *self.shape), held)
        for k in range(len(out)):
            rows = [a[k : k + 1].ctypes.data_as(ctypes.c_void_p) for a in [*arrays, out]]
            self.library.policy_act(*([self.states[k]] if self.states else []), *rows)
        return out.astype(self.dtype)

    def _begin(self, first: dict[str, np.ndarray], count: int) -> None:
        """The action's shape and dtype, and a struct for each row of the batch."""
        made = reference.run(self.program, first | {s.input: s.initial[None] for s in self.program.state})
        self.shape, self.dtype = made[self.program.outputs[0]].shape[1:], made[self.program.outputs[0]].dtype
        if self.program.state:
            self.states = [ctypes.create_string_buffer(self.sizes["state_bytes"]) for _ in range(count)]
            self.reset()
