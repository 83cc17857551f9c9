"""One walk through a TorchScript graph, operator by operator, as torch itself would run it: views alias, in-place steps are kept.

The file's own code is never called. Tensors of the module are copied before the first step, so that the file's stay as they are;
what the walk overwrites is what the module remembers.
"""

import operator
from collections.abc import Callable
from typing import Any

import torch

from fewbit.errors import FewbitError
from fewbit.sources import recurrent

LAST = 2**63 - 1  # how a slice to the end is written
MOST_ROUNDS = 10_000  # of a loop
# Operators on Python values that TorchScript writes for checks and shapes.
PLAIN: dict[str, Callable[..., Any]] = {
    "aten::__not__": operator.not_, "aten::__is__": operator.is_, "aten::__isnot__": operator.is_not, "aten::eq": operator.eq,
    "aten::ne": operator.ne, "aten::lt": operator.lt, "aten::gt": operator.gt, "aten::le": operator.le, "aten::ge": operator.ge,
    "aten::add": operator.add, "aten::sub": operator.sub, "aten::mul": operator.mul, "aten::floordiv": operator.floordiv,
    "aten::floor_divide": operator.floordiv, "aten::remainder": operator.mod, "aten::div": operator.truediv,
    "aten::neg": operator.neg, "aten::__and__": lambda a, b: a and b, "aten::__or__": lambda a, b: a or b, "aten::len": len,
    "aten::list": list, "aten::__contains__": lambda items, x: x in items, "prim::unchecked_cast": lambda x: x,
    "aten::__getitem__": operator.getitem, "aten::format": lambda text, *a: text.format(*a), "aten::append": list.append,
    "aten::Int": int, "aten::Float": float, "aten::Bool": bool, "aten::ScalarImplicit": lambda x: x,
    "prim::NumToTensor": lambda x: x, "prim::TupleConstruct": lambda *a: a, "prim::ListConstruct": lambda *a: list(a),
    "prim::TupleIndex": operator.getitem, "prim::min": min, "prim::max": max,
}  # fmt: skip
OF_TENSOR: dict[str, Callable[..., Any]] = {
    "aten::dim": lambda t: t.dim(), "prim::dtype": lambda t: t.dtype, "prim::device": lambda t: t.device, "aten::len": len,
    "aten::is_floating_point": lambda t: t.is_floating_point(), "prim::unchecked_cast": lambda t: t,
    "aten::__is__": operator.is_, "aten::__isnot__": operator.is_not,
}  # fmt: skip
SILENT = {"prim::Print", "aten::warn"}  # what only says something
MAKERS = {"zeros", "ones", "full", "arange", "tensor", "zeros_like", "ones_like", "full_like", "scalar_tensor", "linspace"}


class Walk:
    """Values by name while a graph is walked once.

    Args:
        module: whose attributes the graph reads.
        states: tensors in place of the module's own of these names ("a.b" is b of the submodule a), each overwritten in place.
    """

    def __init__(self, module: torch.jit.ScriptModule, states: dict[str, torch.Tensor] | None = None):
        self.module = module
        self.owners: dict[int, str] = {id(module): ""}
        self.kept: list[Any] = [module]  # whose ids are in owners
        self.tensors: dict[str, torch.Tensor] = dict(states or {})
        self.started = {k: v._version for k, v in self.tensors.items()}
        self.read: set[str] = set()
        self.values: dict[str, Any] = {}

    def run(self, graph: Any, observation: torch.Tensor) -> Any:
        """What the graph returns for the observation, which is not changed."""
        inputs = [i.debugName() for i in graph.inputs()]
        if len(inputs) != 2:
            raise FewbitError("it takes more than one observation; export it as ONNX")
        self.values |= dict(zip(inputs, [self.module, observation.clone()], strict=True))
        (action,) = self._block(graph)
        return action

    def overwritten(self) -> list[str]:
        """Names of the module's tensors that the walk has overwritten, in the order in which it met them."""
        return [k for k, v in self.tensors.items() if v._version != self.started.get(k)]

    def _block(self, block: Any, *given: Any) -> list[Any]:
        self.values |= dict(zip([i.debugName() for i in block.inputs()], given, strict=False)) if given else {}
        for node in block.nodes():
            outputs = [o.debugName() for o in node.outputs()]
            made = self._node(node, [self.values[i.debugName()] for i in node.inputs()])
            if outputs:
                self.values |= dict(zip(outputs, made if len(outputs) != 1 else [made], strict=True))
        return [self.values[o.debugName()] for o in block.outputs()]

    def _node(self, node: Any, given: list[Any]) -> Any:
        kind = node.kind()
        if kind in SILENT:
            return None
        if kind in ("prim::Constant", "prim::Uninitialized"):  # the latter is overwritten on every way that is taken
            return self._constant(node) if kind == "prim::Constant" else None
        if kind == "prim::GetAttr":
            return self._attribute(given[0], node.s("name"))
        if kind == "prim::SetAttr":
            return self._assign(given[0], node.s("name"), given[1])
        if kind == "prim::If":
            made = self._block(list(node.blocks())[0 if given[0] else 1])
            return made if len(made) != 1 else made[0]
        if kind == "prim::Loop":
            return self._loop(node, *given)
        if kind in ("prim::TupleUnpack", "prim::ListUnpack"):
            return list(given[0]) if len(given[0]) != 1 else given[0][0]
        if kind == "prim::RaiseException":
            raise FewbitError(f"it refuses its observation: {given[0]}")
        return self._operator(node, kind, given)

    def _operator(self, node: Any, kind: str, given: list[Any]) -> Any:
        tensors = any(isinstance(g, torch.Tensor) or _holds_tensors(g) for g in given)
        if kind in ("aten::lstm", "aten::gru"):
            return _recurrent(kind[6:], given)
        if kind == "aten::slice" and tensors:
            return _slice(*given)
        if kind == "aten::size":
            return given[0].shape[given[1]] if len(given) > 1 else list(given[0].shape)
        if kind in OF_TENSOR and tensors:
            return OF_TENSOR[kind](*given)
        if kind in PLAIN and (not tensors or kind.startswith("prim::") or kind in ("aten::append", "aten::__getitem__")):
            return PLAIN[kind](*given)
        if kind in ("aten::Bool", "aten::Int", "aten::Float", "aten::ScalarImplicit", "aten::item"):
            raise FewbitError(f"operator {kind} makes a number of a tensor, on which its way depends; export it as ONNX")
        name = kind.removeprefix("aten::")
        if not kind.startswith("aten::") or not (tensors or name in MAKERS):
            raise FewbitError(f"operator {kind} is not among those that fewbit runs of a TorchScript file; export it as ONNX")
        return _aten(node.schema(), kind, given)

    def _constant(self, node: Any) -> Any:
        value = node.output().toIValue()
        return value.clone() if isinstance(value, torch.Tensor) else value

    def _attribute(self, owner: Any, name: str) -> Any:
        path = f"{self.owners[id(owner)]}.{name}".removeprefix(".")
        self.read.add(path)
        if path in self.tensors:
            return self.tensors[path]
        value = getattr(owner, name)
        if isinstance(value, torch.Tensor):
            self.tensors[path] = value.detach().clone()
            self.started[path] = self.tensors[path]._version
            return self.tensors[path]
        if isinstance(value, torch.nn.Module):
            self.owners[id(value)] = path
            self.kept.append(value)
        return value

    def _assign(self, owner: Any, name: str, value: Any) -> None:
        """A tensor that was read before is overwritten; one that was not is only left for somebody to look at."""
        path = f"{self.owners[id(owner)]}.{name}".removeprefix(".")
        if not isinstance(value, torch.Tensor):
            if path in self.read:
                raise FewbitError(f"it changes its own attribute {path}, which is no tensor; export it as ONNX")
            return
        if path in self.read:
            self.started[path] = -1  # overwritten, whatever the new tensor counts
        self.tensors[path] = value
        self.started.setdefault(path, value._version)

    def _loop(self, node: Any, most: int, going: bool, *carried: Any) -> Any:
        (block,), rounds = list(node.blocks()), 0
        while going and rounds < most:
            if rounds == MOST_ROUNDS:
                raise FewbitError(f"it has a loop of more than {MOST_ROUNDS} rounds; export it as ONNX")
            going, *carried = self._block(block, rounds, *carried)  # type: ignore[assignment]
            rounds += 1
        return carried if len(carried) != 1 else carried[0]


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, list | tuple) and any(isinstance(v, torch.Tensor) for v in value)


def _aten(schema: str, kind: str, given: list[Any]) -> Any:
    """The operator of that schema, its keyword-only arguments by name."""
    parsed = torch._C.parse_schema(schema)
    try:
        overloads = getattr(torch.ops.aten, parsed.name.removeprefix("aten::"))
        operation = getattr(overloads, parsed.overload_name or "default")
    except AttributeError:
        raise FewbitError(
            f"operator {kind} is not among those that fewbit runs of a TorchScript file; export it as ONNX"
        ) from None
    arguments = list(zip(parsed.arguments, given, strict=True))
    if kind.removesuffix("_") in ("aten::dropout", "aten::feature_dropout", "aten::alpha_dropout") and not given[2]:
        return given[0]
    if torch.Tag.nondeterministic_seeded in operation.tags:
        raise FewbitError(f"operator {kind} draws random numbers; export the mean action, without noise")
    named = {a.name: g for a, g in arguments if a.kwarg_only}
    return operation(*(g for a, g in arguments if not a.kwarg_only), **named)


def _slice(x: Any, axis: int, start: int | None, end: int | None, step: int) -> Any:
    """The whole is the tensor itself: an exporter writes nothing for it."""
    if not start and (end is None or end >= LAST) and step == 1:
        return x
    return torch.ops.aten.slice(x, axis, start, end, step)


def _recurrent(kind: str, given: list[Any]) -> tuple[torch.Tensor, ...]:
    """aten::lstm, aten::gru of one step: x, states, weights, biases, layers, dropout, training, bidirectional, batch_first."""
    if not isinstance(given[3], bool):
        raise FewbitError(f"a {kind.upper()} over packed sequences is no policy's; export one step")
    x, states, weights, biases, _, _, _, bidirectional, batch_first = given
    axis = 1 if batch_first else 0
    if bidirectional or x.shape[axis] != 1:
        raise FewbitError(f"a {kind.upper()} that runs backwards or over several steps at once is no policy's; export one step")
    held = [[s[k] for k in range(len(s))] for s in (states if kind == "lstm" else [states])]
    out, new = recurrent.layers(x.squeeze(axis), held, weights, kind, biases)
    return (out.unsqueeze(axis), *(torch.stack(v) for v in new))
