"""The smallest network that shows a fault: nodes and outputs are dropped while the fault stays the same."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from random_graphs.oracle import Oracle, Sample
from random_graphs.verdict import Verdict, judge


def minimise(made: Sample, kind: str, folder: Path, tries: int = 150) -> Sample:
    """The smaller network; a candidate counts where the oracle runs it and a fault is of that kind (words.kind_of)."""
    for simpler in (_plain_names, _initializers_alone):
        candidate = replace(made, **simpler(made))
        if _shows(candidate, kind, folder):
            made = candidate
    changed = True
    while changed and tries > 0:
        changed = False
        for candidate in _smaller(made):
            tries -= 1
            if tries <= 0:
                break
            if _shows(candidate, kind, folder):
                made, changed = candidate, True
                break
    return made


def _shows(candidate: Sample, kind: str, folder: Path) -> bool:
    found = _fault(candidate, folder)
    return found is not None and kind in found.kinds


def _fault(candidate: Sample, folder: Path) -> Verdict | None:
    try:
        onnx.checker.check_model(candidate.model, full_check=True)
        if not candidate.states:
            outputs = Oracle(candidate.model, candidate.baked)({k: v[:8] for k, v in candidate.feeds.items()})
            if not all(np.isfinite(o).all() for o in outputs):
                return None
        verdict = judge(candidate, folder)
    except Exception:
        return None
    return verdict if verdict.status == "fault" else None


def _plain_names(made: Sample) -> dict:
    """Every value and node called by a short name."""
    model, names = _copy(made), {}
    graph = model.graph

    def short(name: str) -> str:
        return name and names.setdefault(name, f"v{len(names)}")

    for v in [*graph.input, *graph.output]:
        v.name = short(v.name)
    for t in graph.initializer:
        t.name = short(t.name)
    for k, n in enumerate(graph.node):
        values = [[short(i) for i in n.input], [short(o) for o in n.output]]
        del n.input[:], n.output[:]
        n.input.extend(values[0])
        n.output.extend(values[1])
        n.name = f"{n.op_type}_{k}"
    del graph.value_info[:]
    states = {short(i): short(o) for i, o in made.states.items()}
    return {"model": model, "feeds": {short(k): v for k, v in made.feeds.items()}, "states": states}


def _initializers_alone(made: Sample) -> dict:
    """Constant nodes as initializers, which are no inputs."""
    model = _copy(made)
    names = {t.name for t in model.graph.initializer}
    inputs = [_clone(v) for v in model.graph.input if v.name not in names]
    nodes = []
    for n in model.graph.node:
        value = next((a.t for a in n.attribute if a.name == "value"), None) if n.op_type == "Constant" else None
        if value is None:
            nodes.append(_clone(n))
        else:
            model.graph.initializer.add().CopyFrom(value)
            model.graph.initializer[-1].name = n.output[0]
    model.ir_version = max(model.ir_version, 8)
    for field, values in (("node", nodes), ("input", inputs)):
        del getattr(model.graph, field)[:]
        getattr(model.graph, field).extend(values)
    return {"model": model}


def _smaller(made: Sample) -> Iterator[Sample]:
    yield from (replace(made, model=m) for m in (*_fewer_outputs(made), *_earlier_outputs(made), *_bypassed(made)))


def _copy(made: Sample) -> onnx.ModelProto:
    model = onnx.ModelProto()
    model.CopyFrom(made.model)
    return model


def _fewer_outputs(made: Sample) -> Iterator[onnx.ModelProto]:
    kept = set(made.states.values())
    for k in range(len(made.model.graph.output) if len(made.model.graph.output) > 1 else 0):
        if made.model.graph.output[k].name not in kept:
            model = _copy(made)
            del model.graph.output[k]
            yield _pruned(model)


def _earlier_outputs(made: Sample) -> Iterator[onnx.ModelProto]:
    """An output replaced by what its node reads."""
    types = _types(made.model)
    for k, out in enumerate(made.model.graph.output):
        node = next((n for n in made.model.graph.node if out.name in n.output), None)
        for name in node.input if node is not None else []:
            if name in types and name not in {o.name for o in made.model.graph.output} | {i.name for i in made.model.graph.input}:
                model = _copy(made)
                model.graph.output[k].CopyFrom(types[name])
                yield _pruned(model)


def _bypassed(made: Sample) -> Iterator[onnx.ModelProto]:
    """A node left out where one of its inputs has its output's type and shape."""
    types = _types(made.model)
    ends = {o.name for o in made.model.graph.output}
    for k, node in enumerate(made.model.graph.node):
        for name in node.input:
            out = node.output[0]
            same = name in types and out in types and types[name].type == types[out].type
            if same and not any(o in ends for o in node.output):
                model = _copy(made)
                del model.graph.node[k]
                for other in model.graph.node:
                    for i, used in enumerate(other.input):
                        if used == out:
                            other.input[i] = name
                yield _pruned(model)


def _types(model: onnx.ModelProto) -> dict[str, onnx.ValueInfoProto]:
    try:
        graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except Exception:
        return {}
    constants = {t.name for t in model.graph.initializer}
    return {v.name: v for v in [*graph.input, *graph.value_info, *graph.output] if v.name not in constants}


def _pruned(model: onnx.ModelProto) -> onnx.ModelProto:
    """Without nodes and initializers that no output needs."""
    needed = {o.name for o in model.graph.output}
    kept = []
    for node in reversed(model.graph.node):
        if needed & set(node.output):
            needed |= set(node.input)
            kept.append(node)
    weights = [t for t in model.graph.initializer if t.name in needed]
    names = {t.name for t in model.graph.initializer}
    inputs = [v for v in model.graph.input if v.name not in names or v.name in needed]
    for field, values in (("node", kept[::-1]), ("initializer", weights), ("input", inputs)):
        values = [_clone(v) for v in values]
        del getattr(model.graph, field)[:]
        getattr(model.graph, field).extend(values)
    del model.graph.value_info[:]
    return model


def _clone(proto):
    made = type(proto)()
    made.CopyFrom(proto)
    return made


def to_python(made: Sample) -> str:
    """A short program that makes the network, its float constants random; what was handed to quantize as `rows`."""
    model, lines = made.model, []
    kinds = onnx.TensorProto.DataType.Name
    for t in model.graph.initializer:
        array = onnx.numpy_helper.to_array(t)
        random = array.dtype.kind == "f" and array.size > 3
        numbers = np.round(array.astype(np.float64), 3).tolist() if array.dtype.kind == "f" else array.tolist()
        value = f"w({', '.join(map(str, array.shape))})" if random else f"np.array({numbers}, np.{array.dtype})"
        lines.append(f"constants[{t.name!r}] = {value}" + (f"  # {array.dtype}" if array.dtype == np.float16 else ""))

    def calls(nodes) -> list[str]:
        made_lines = []
        for n in nodes:
            attributes = {}
            for a in n.attribute:
                value = helper.get_attribute_value(a) if not a.ref_attr_name else f"<{a.ref_attr_name}>"
                if isinstance(value, onnx.TensorProto):
                    value = onnx.numpy_helper.to_array(value).tolist()
                attributes[a.name] = round(value, 7) if isinstance(value, float) else value
            text = "".join(f", {k}={v!r}" for k, v in attributes.items())
            name = f", name={n.name!r}" if n.name else ""
            made_lines.append(f"n({n.op_type!r}, {list(n.input)}, {list(n.output)}{text}{name})")
        return made_lines

    for f in model.functions:
        lines.append(f"function {f.domain}:{f.name}({list(f.input)}) -> {list(f.output)}: {calls(f.node)}")
    lines += calls(model.graph.node)
    for word, ends in (("input", model.graph.input), ("output", model.graph.output)):
        for v in ends:
            dims = [d.dim_value or d.dim_param or None for d in v.type.tensor_type.shape.dim]
            lines.append(f"{word} {v.name!r} {kinds(v.type.tensor_type.elem_type)} {dims}")
    opsets = {o.domain or "ai.onnx": o.version for o in model.opset_import}
    return "\n".join([*lines, f"opset {opsets}, ir_version {model.ir_version}"])
