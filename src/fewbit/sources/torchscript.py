"""A TorchScript module (.pt) as a source: its graph is walked here (torchscript_walk), and what it remembers is taken out.

Loading the file is torch.jit.load, which can run code, so the user must say that the file is trusted. What is read is run beside
torch's own on random observations before anything is made of it. Tensors that it overwrites become inputs and outputs.
"""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from fewbit.errors import FewbitError, first_line
from fewbit.graph import calibrate
from fewbit.sources import Source, digest, torch_module
from fewbit.sources.recurrent import Remembered
from fewbit.sources.torchscript_walk import Walk

EPISODES, STEPS = 3, 3  # of the comparison with torch
ADVICE = "give observations of the right size, or observation_shape=(…)"
CLOSE = 1e-3  # of the actions' range, or of one


def load(path: Path, shape: tuple[int, ...] | None = None, likely: Sequence[tuple[int, ...]] = ()) -> Source:
    """The float graph of a trusted TorchScript file.

    Args:
        path: as torch.jit.save wrote it.
        shape: its observation's, without the batch; None: the width of one of its layers, or one of `likely`.
        likely: shapes that the user's observations have.

    Raises:
        FewbitError: no TorchScript, an operator that cannot be walked, or a reading that is not what torch computes.
    """
    _check_kind(path)
    try:
        module = torch.jit.load(path, map_location="cpu").eval()
    except Exception as e:
        raise FewbitError(f"{path}: not a TorchScript module, or truncated ({type(e).__name__})") from None
    try:
        return _capture(module, path, [tuple(shape)] if shape is not None else _shapes(module, likely))
    except FewbitError as e:
        raise FewbitError(f"{path}: {e}") from None


def _check_kind(path: Path) -> None:
    """Refuse what torch.save and torch.export write, saying what it is."""
    advice = "build the network, load these weights into it, and give the module itself or torch.jit.script(module).save(…)"
    if not zipfile.is_zipfile(path):
        if path.read_bytes()[:2] in (b"\x80\x02", b"\x80\x04"):
            raise FewbitError(
                f"{path}: a pickle (a checkpoint of weights, of an old torch.save), no TorchScript module; {advice}"
            )
        return
    with zipfile.ZipFile(path) as z:
        names = z.namelist()
    if any(n.endswith("/data.pkl") for n in names) and not any("/code/" in n for n in names):
        raise FewbitError(f"{path}: a checkpoint of weights (torch.save of a state_dict, say), no TorchScript module; {advice}")
    if any("archive_format" in n or n.endswith("serialized_exported_program.json") for n in names):
        raise FewbitError(
            f"{path}: a program of torch.export, no TorchScript module; give the module itself or export it as ONNX"
        )


def _capture(module: torch.jit.ScriptModule, path: Path, shapes: list[tuple[int, ...]]) -> Source:
    step, shape = _read(module, shapes)
    _compare(module, step, shape)
    model = _export(step, shape)
    _check(model, module, step, shape)
    contract = {"observation": {"observation": list(shape)}, "recurrent_state": [s.name for s in step.states]}
    return Source(model, path.name, digest(path.read_bytes()), contract, tuple(s.record for s in step.states))


def _export(step: "Step", shape: tuple[int, ...]) -> ir.Model:
    """With a free batch; of a module that was traced with a batch of one and holds it, with that, which read frees."""
    names = ["action", *(s.output for s in step.states)]
    problems = []
    for rows in (2, 1):
        examples = {"observation": torch.zeros(rows, *shape)} | {s.name: torch.zeros(rows, *s.shape) for s in step.states}
        try:
            return torch_module.export(step, examples, names, fixed=rows == 1)
        except FewbitError as e:
            problems.append(str(e))
    if problems[1].startswith("its batch of 1"):
        raise FewbitError("it was traced with one observation and holds that batch; trace it with two, or script it")
    raise FewbitError(problems[0])


def _shapes(module: torch.jit.ScriptModule, likely: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """What the observation may be: the widths of its matrices (of a frozen module among its constants), the likely ones first."""
    graph: Any = module.inlined_graph
    constants = [n.output().toIValue() for n in graph.findAllNodes("prim::Constant", True) if n.hasAttribute("value")]
    held = [*module.state_dict().values(), *(c for c in constants if isinstance(c, torch.Tensor))]
    widths = list(dict.fromkeys((int(v.shape[1]),) for v in held if v.dim() == 2))
    return list(dict.fromkeys([*(s for s in likely if s in widths), *likely, *widths]))


def _read(module: torch.jit.ScriptModule, shapes: list[tuple[int, ...]]) -> tuple["Step", tuple[int, ...]]:
    """The module as a step, and the first of the shapes with which it runs; the first one's refusal where none does."""
    problem = f"nothing in it tells its observation's size; {ADVICE}"
    for k, shape in enumerate(shapes):
        try:
            with torch.no_grad():
                return Step(module, torch.zeros(1, *shape)), shape
        except (FewbitError, RuntimeError, IndexError, TypeError, ValueError) as e:
            own = (
                str(e)
                if isinstance(e, FewbitError)
                else f"torch cannot run it on observations {list(shape)} ({first_line(e)}); {ADVICE}"
            )
            problem = own if k == 0 else problem
    raise FewbitError(problem)


def _compare(module: torch.jit.ScriptModule, step: "Step", shape: tuple[int, ...]) -> None:
    """Refuse a reading that is not what torch makes of the module, step after step."""
    seen = torch.randn(STEPS, 1, *shape, generator=torch.Generator().manual_seed(0))
    held = step.initial(1)
    want = _own(module, step, seen)
    with torch.no_grad():
        for x, right in zip(seen, want, strict=True):
            made = step(x, *held)
            got, held = (made[0], list(made[1:])) if step.states else (made, [])
            _alike(right.numpy(), got.numpy())


def _own(module: torch.jit.ScriptModule, step: "Step", seen: torch.Tensor) -> list[torch.Tensor]:
    """Actions of the module itself over observations [steps, 1, ...] from its initial state, which it has again afterwards."""
    try:
        with torch_module.quiet(), torch.no_grad():  # a file may hold what its author printed
            return [_action(module(x)).clone() for x in seen]
    except RuntimeError as e:
        raise FewbitError(f"torch cannot run it on observations {list(seen.shape[2:])} ({first_line(e)})") from None
    finally:
        step.restore(module)


def _alike(want: np.ndarray, got: np.ndarray) -> None:
    close = CLOSE * max(1.0, float(np.ptp(want)) if want.size else 1.0)
    if want.shape != got.shape or not np.allclose(got, want, rtol=0, atol=close, equal_nan=True):
        raise FewbitError("what fewbit reads in it is not what torch computes with it; export it as ONNX")


def _check(model: ir.Model, module: torch.jit.ScriptModule, step: "Step", shape: tuple[int, ...]) -> None:
    """Refuse a graph whose rows are not the module's actions of each episode by itself."""
    seen = torch.randn(EPISODES, STEPS, 1, *shape, generator=torch.Generator().manual_seed(1))
    want = np.stack([[a[0].numpy() for a in _own(module, step, episode)] for episode in seen])
    runner = calibrate.session(ir.to_proto(model))
    held = {s.name: h.numpy() for s, h in zip(step.states, step.initial(EPISODES), strict=True)}
    for k in range(STEPS):
        action, *after = calibrate.run(runner, None, {"observation": seen[:, k, 0].numpy()} | held)
        held = dict(zip(held, after, strict=True))
        _alike(want[:, k], action)


def _action(made: Any) -> torch.Tensor:
    if not isinstance(made, torch.Tensor):
        raise FewbitError(f"it returns a {type(made).__name__}, not one tensor of actions; export it as ONNX")
    return made


class Step(torch.nn.Module):
    """(observation, *states) -> (action, *next states), states with the batch first.

    Args:
        module: scripted or traced.
        observation: an example of one row, which tells what the module overwrites.
    """

    def __init__(self, module: torch.jit.ScriptModule, observation: torch.Tensor):
        super().__init__()
        self.graph = module.graph.copy()
        torch._C._jit_pass_inline(self.graph)
        self.holder = [module]  # in a list: not a submodule, whose buffers an exporter would list
        self.states: list[Remembered] = []  # one of each layer
        self.layers: dict[str, int] = {}  # tensor -> its layers; 0 where its batch comes first
        walk = Walk(module)
        _action(walk.run(self.graph, observation))
        self.first = {name: _find(module, name).detach().clone() for name in walk.overwritten()}
        for name, value in self.first.items():
            self._remember(name, value)

    def _remember(self, name: str, value: torch.Tensor) -> None:
        layered = value.dim() == 3 and value.shape[1] == 1
        if not layered and (value.dim() < 2 or value.shape[0] != 1):
            raise FewbitError(f"its state {name} has shape {list(value.shape)}; [layers, 1, hidden] or [1, …] is supported")
        self.layers[name] = layers = value.shape[0] if layered else 0
        for k, start in enumerate(value[:, 0] if layered else value):
            label = name.replace(".", "_") + (f"_{k}" if layers > 1 else "")
            self.states.append(Remembered(label, tuple(start.shape), start.reshape(-1).tolist() if start.any() else None))

    def initial(self, count: int) -> list[torch.Tensor]:
        """What count episodes start with, state by state, [count, ...]."""
        starts = [np.zeros(s.shape) if s.initial is None else np.reshape(s.initial, s.shape) for s in self.states]
        return [torch.tensor(s, dtype=torch.float32).expand(count, *s.shape).clone() for s in starts]

    def restore(self, module: torch.jit.ScriptModule) -> None:
        """Give the module what it remembers at an episode's first step."""
        for name, value in self.first.items():
            owner, _, last = name.rpartition(".")
            setattr(_find(module, owner), last, value.clone())

    def forward(self, *inputs: torch.Tensor) -> Any:
        observation, *held = inputs
        given, rest = {}, list(held)
        for name, layers in self.layers.items():
            own, rest = rest[: max(layers, 1)], rest[max(layers, 1) :]
            given[name] = torch.stack(own) if layers else own[0].clone()
        walk = Walk(self.holder[0], given)
        action = walk.run(self.graph, observation)
        left = [
            b[k] if layers else b for n, layers in self.layers.items() for b in [walk.tensors[n]] for k in range(max(layers, 1))
        ]
        return (action, *left) if left else action


def _find(module: Any, path: str) -> Any:
    for name in path.split(".") if path else []:
        module = getattr(module, name)
    return module
