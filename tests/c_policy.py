"""An exported policy as a Python callable: compiled with gcc, called once an observation."""

import ctypes
import subprocess
from pathlib import Path

import numpy as np

from fewbit.engine import reference
from fewbit.engine.program import Program
from fewbit.targets import c


class CPolicy:
    """policy(batch or {name: batch}) -> actions, each by one call of policy_act; each row has a struct for what it remembers,
    kept until reset(). policy.initial and policy.step as rl/returns calls them, with the structs as the state."""

    def __init__(self, program: Program, folder: Path):
        made = c.generate(program, "policy")
        for file, text in made["files"].items():
            (folder / file).write_text(text)
        flags = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-O2", "-shared", "-fPIC"]
        subprocess.run(["gcc", *flags, "policy.c", "-o", "policy.so"], cwd=folder, check=True)
        self.library, self.program, self.inputs = ctypes.CDLL(str(folder / "policy.so")), program, program.observations
        self.sizes, self.states = made["sizes"], program.state
        zeros = {k: np.zeros((1, *s), program.input_dtypes[k]) for k, s in program.inputs.items()}
        first = reference.run(program, zeros)[program.outputs[0]]
        self.shape, self.dtype, self.held = first.shape[1:], first.dtype, None

    def reset(self) -> None:
        self.held = None

    def initial(self, count: int) -> dict[str, np.ndarray]:
        """A struct for each of count episodes, as bytes."""
        structs = np.zeros((count, self.sizes["state_bytes"]), np.uint8)
        for k in range(count):
            self.library.policy_reset(_at(structs, k))
        return {"struct": structs}

    def step(self, observation, state: dict[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        structs = state["struct"].copy()
        return self._act(observation, structs), {"struct": structs}

    def __call__(self, observation) -> np.ndarray:
        if self.states and self.held is None:
            given = next(iter(observation.values())) if isinstance(observation, dict) else observation
            self.held = self.initial(len(given))["struct"]
        return self._act(observation, self.held)

    def _act(self, observation, structs: np.ndarray | None) -> np.ndarray:
        given = observation if isinstance(observation, dict) else {next(iter(self.inputs)): observation}
        kinds = {k: np.int32 if v == np.int64 else v for k, v in self.program.input_dtypes.items()}
        arrays = [np.ascontiguousarray(given[k], kinds[k]) for k in self.inputs]
        out = np.empty((len(arrays[0]), *self.shape), np.int32 if self.dtype == np.int64 else self.dtype)
        for k in range(len(out)):
            held = [] if structs is None else [structs]
            self.library.policy_act(*(_at(a, k) for a in [*held, *arrays, out]))
        return out.astype(self.dtype)


def _at(array: np.ndarray, k: int) -> ctypes.c_void_p:
    return array[k : k + 1].ctypes.data_as(ctypes.c_void_p)
