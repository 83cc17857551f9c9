"""A TorchScript module (.pt) as a source: its graph is walked here, operator by operator, with what it remembers taken out.

Such a file's code would run when called; this walk runs ATen operators of one table and nothing else. Loading the file is still
torch.jit.load, so the user must say that the file is trusted. Buffers that the module overwrites become inputs and outputs.
"""

import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fewbit.errors import FewbitError, first_line
from fewbit.sources import Source, digest, recurrent, torch_module
from fewbit.sources.recurrent import Remembered

MOST = 2**63 - 1
# Operators on Python values that TorchScript writes for checks and shapes.
PLAIN: dict[str, Callable[..., Any]] = {
    "aten::__not__": operator.not_, "aten::__is__": operator.is_, "aten::__isnot__": operator.is_not, "aten::eq": operator.eq,
    "aten::ne": operator.ne, "aten::lt": operator.lt, "aten::gt": operator.gt, "aten::len": len, "aten::list": list,
    "aten::__contains__": lambda items, x: x in items, "aten::dim": lambda t: t.dim(), "prim::unchecked_cast": lambda x: x,
    "aten::__getitem__": operator.getitem, "aten::format": lambda text, *a: text.format(*a),
    "prim::dtype": lambda t: t.dtype, "prim::device": lambda t: t.device, "prim::TupleConstruct": lambda *a: a,
    "prim::ListConstruct": lambda *a: list(a), "prim::TupleIndex": operator.getitem,
}  # fmt: skip
TENSOR = {
    "linear", "elu", "relu", "tanh", "sigmoid", "silu", "softplus", "leaky_relu", "gelu", "hardtanh", "clamp", "add", "sub",
    "mul", "div", "neg", "cat", "unsqueeze", "squeeze", "flatten", "view", "reshape", "select", "transpose", "permute", "matmul",
    "addmm", "t", "chunk", "conv1d", "conv2d", "layer_norm", "zeros", "exp", "to", "contiguous", "detach", "clone", "dropout",
    "expand",
}  # fmt: skip


def load(path: Path) -> Source:
    """The float graph of a trusted TorchScript file; the width of its observation is its first layer's."""
    try:
        module = torch.jit.load(path, map_location="cpu").eval()
    except Exception as e:
        raise FewbitError(f"{path}: not a TorchScript module, or truncated ({type(e).__name__})") from None
    try:
        return _capture(module, path)
    except FewbitError as e:
        raise FewbitError(f"{path}: {e}") from None


def _capture(module: torch.jit.ScriptModule, path: Path) -> Source:
    step = Step(module)
    width, examples = _example(module, step)
    names = ["action", *(s.output for s in step.states)]
    model = torch_module.export(step, examples, names)
    contract = {"observation": {"observation": [width]}, "recurrent_state": [s.name for s in step.states]}
    return Source(model, path.name, digest(path.read_bytes()), contract, tuple(s.record for s in step.states))


def _example(module: torch.jit.ScriptModule, step: "Step") -> tuple[int, dict[str, torch.Tensor]]:
    """The width of the observation, the first of its matrices' that runs, and inputs of two rows."""
    widths = dict.fromkeys(int(v.shape[1]) for v in module.state_dict().values() if v.dim() == 2)
    problem = "it has no dense or recurrent layer to tell its observation's size"
    for width in widths:
        examples = {"observation": torch.zeros(2, width)} | {s.name: torch.zeros(2, *s.shape) for s in step.states}
        try:
            with torch.no_grad():
                step(*examples.values())
            return width, examples
        except (FewbitError, RuntimeError) as e:
            problem = first_line(e)
    raise FewbitError(problem)


def _overwritten(graph: Any) -> list[str]:
    """Names of the module's own buffers that an in-place copy reaches."""
    found = []
    for node in graph.nodes():
        if node.kind() == "aten::copy_":
            target = next(node.inputs()).node()
            while target.kind() == "aten::slice":
                target = next(target.inputs()).node()
            if target.kind() != "prim::GetAttr":
                raise FewbitError("it overwrites a tensor that is no buffer of its own; export it as ONNX")
            found.append(target.s("name"))
    return list(dict.fromkeys(found))


class Step(torch.nn.Module):
    """(observation, *states) -> (action, *next states), states with the batch first."""

    def __init__(self, module: torch.jit.ScriptModule):
        super().__init__()
        self.graph = module.graph.copy()
        torch._C._jit_pass_inline(self.graph)
        self.holder = [module]  # in a list: not a submodule, whose buffers an exporter would list
        self.states: list[Remembered] = []  # one of each layer
        self.layers: dict[str, int] = {}  # buffer -> its layers; 0 where it is [1, hidden]
        for name in _overwritten(self.graph):
            value = getattr(module, name)
            if value.dim() not in (2, 3) or value.shape[-2] != 1:
                raise FewbitError(
                    f"its state {name} has shape {list(value.shape)}; [layers, 1, hidden] or [1, hidden] is supported"
                )
            layers = value.shape[0] if value.dim() == 3 else 0
            for k, start in enumerate(value.detach().reshape(max(layers, 1), -1)):
                label = f"{name}_{k}" if layers > 1 else name
                self.states.append(Remembered(label, tuple(start.shape), start.tolist() if start.any() else None))
            self.layers[name] = layers

    def forward(self, *inputs: torch.Tensor) -> Any:
        observation, *held = inputs
        given, rest = {}, list(held)
        for name, layers in self.layers.items():
            own, rest = rest[: max(layers, 1)], rest[max(layers, 1) :]
            given[name] = torch.stack(own) if layers else own[0]
        walk = _Walk(self.holder[0], given)
        (action,) = walk.block(self.graph, observation)
        left = [
            b[k] if layers else b for n, layers in self.layers.items() for b in [walk.buffers[n]] for k in range(max(layers, 1))
        ]
        return (action, *left) if left else action


class _Walk:
    """Values by name while the graph is walked once."""

    def __init__(self, module: torch.jit.ScriptModule, buffers: dict[str, torch.Tensor]):
        self.module, self.buffers = module, dict(buffers)
        self.values: dict[str, Any] = {}
        self.names: dict[int, str] = {}  # id of a state's tensor -> its buffer

    def block(self, block: Any, observation: torch.Tensor | None = None) -> list[Any]:
        inputs = [i.debugName() for i in block.inputs()]
        if observation is not None:
            if len(inputs) != 2:
                raise FewbitError("it takes more than one observation; export it as ONNX")
            self.values |= dict(zip(inputs, [self.module, observation], strict=True))
        for node in block.nodes():
            outputs = [o.debugName() for o in node.outputs()]
            made = self._node(node, [self.values[i.debugName()] for i in node.inputs()])
            self.values |= dict(zip(outputs, made if len(outputs) != 1 else [made], strict=True))
        return [self.values[o.debugName()] for o in block.outputs()]

    def _node(self, node: Any, given: list[Any]) -> Any:
        kind = node.kind()
        if kind in ("prim::Constant", "prim::Uninitialized"):  # the latter is overwritten on every way that is taken
            return node.output().toIValue() if kind == "prim::Constant" else None
        if kind == "prim::GetAttr":
            return self._attribute(given[0], node.s("name"))
        if kind == "prim::If":
            blocks = list(node.blocks())
            made = self.block(blocks[0 if given[0] else 1])
            return made if len(made) != 1 else made[0]
        if kind in ("prim::TupleUnpack", "prim::ListUnpack"):
            return list(given[0]) if len(given[0]) != 1 else given[0][0]
        if kind == "prim::RaiseException":
            raise FewbitError(f"it refuses its observation: {given[0]}")
        if kind in ("aten::slice", "aten::copy_"):
            return self._slice(given) if kind == "aten::slice" else self._overwrite(given)
        if kind in ("aten::lstm", "aten::gru"):
            return _recurrent(kind[6:], given)
        if kind == "aten::size":
            return given[0].shape[given[1]] if len(given) > 1 else list(given[0].shape)
        if kind in PLAIN and not (kind in ("aten::eq", "aten::ne") and isinstance(given[0], torch.Tensor)):
            return PLAIN[kind](*given)
        name = kind.removeprefix("aten::").removesuffix("_")
        if name not in TENSOR:
            raise FewbitError(f"operator {kind} is not among those that fewbit runs of a TorchScript file; export it as ONNX")
        return getattr(torch.ops.aten, name)(*given)

    def _attribute(self, owner: Any, name: str) -> Any:
        if owner is self.module and name in self.buffers:
            self.names[id(self.buffers[name])] = name
            return self.buffers[name]
        return getattr(owner, name)

    def _slice(self, given: list[Any]) -> Any:
        """The whole is the tensor itself, so that overwriting it is seen to overwrite a buffer."""
        x, axis, start, end, step = given
        if not start and (end is None or end >= MOST) and step == 1:
            return x
        return torch.ops.aten.slice(x, axis, start, end, step)

    def _overwrite(self, given: list[Any]) -> Any:
        name = self.names.get(id(given[0]))
        if name is None:
            raise FewbitError("it overwrites a part of a tensor; export it as ONNX")
        self.buffers[name] = given[1]
        return given[1]


def _recurrent(kind: str, given: list[Any]) -> tuple[torch.Tensor, ...]:
    """aten::lstm, aten::gru of one step: x, states, weights, biases, layers, dropout, training, bidirectional, batch_first."""
    x, states, weights, biases, _, _, _, bidirectional, batch_first = given
    axis = 1 if batch_first else 0
    if bidirectional or x.shape[axis] != 1:
        raise FewbitError(f"a {kind.upper()} that runs backwards or over several steps at once is no policy's; export one step")
    held = [[s[k] for k in range(len(s))] for s in (states if kind == "lstm" else [states])]
    out, new = recurrent.layers(x.squeeze(axis), held, weights, kind, biases)
    return (out.unsqueeze(axis), *(torch.stack(v) for v in new))
