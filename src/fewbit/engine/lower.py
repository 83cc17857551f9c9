"""Lower a QDQ graph to a Program: ask for the outputs, and follow each value back to what makes it.

`floats(value)` emits whatever leaves the value in a float register, `codes(value)` whatever leaves its integer codes.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from fewbit.engine.float_ops import EXACT, OPS, cast_type
from fewbit.engine.operands import (
    bias_of,
    codes_before,
    constant_of,
    format_of,
    is_constant,
    is_integral,
    is_quantized,
    plain,
    scale_of,
    weight_of,
)
from fewbit.engine.program import (
    Add,
    Dequantize,
    Float,
    Linear,
    Lookup,
    Multiply,
    Patches,
    Program,
    Quantize,
    Rescale,
    Step,
    Table,
)
from fewbit.engine.state import states
from fewbit.errors import FewbitError, Unsupported
from fewbit.graph import patches
from fewbit.graph.edit import const, label
from fewbit.graph.elementwise import Chain, chain
from fewbit.numerics import semantics, unary
from fewbit.numerics.formats import IntFormat

CODES = {np.dtype(t) for t in ("int8", "uint8", "int16", "uint16")}


def lower(model: ir.Model) -> Program:
    """The program of a QDQ (or plain float) graph; refuses by name what cannot be run."""
    program = _Lowering(model.graph).program()
    outputs = dict(zip((v.name for v in model.graph.outputs), program.outputs, strict=True))
    held = states(model, program.inputs)
    return replace(program, state=tuple(replace(s, output=outputs[s.output]) for s in held))


@dataclass(frozen=True)
class _Codes:
    """A register of codes and how to read it."""

    register: str
    scale: float
    zero_point: int
    format: IntFormat


class _Lowering:
    def __init__(self, graph: ir.Graph):
        self.graph = graph
        self.steps: list[Step] = []
        self.made: dict[str, str] = {}
        self.channels_last: dict[str, str] = {}  # a Conv's output -> the same as it was computed, its channels last
        self.integer: set[str] = set()
        self.constants: dict[str, np.ndarray] = {}
        self.inexact: list[str] = []
        self.readings: dict[str, tuple[float, int]] = {}

    def program(self, body: bool = False) -> Program:
        """body: of a Scan, whose inputs' sizes nobody outside it needs to know."""
        inputs = [v for v in self.graph.inputs if v.name not in self.graph.initializers]
        outputs = tuple(self.floats(v) for v in self.graph.outputs)
        shapes, dtypes = {}, {}
        for v in inputs:
            dims = [d for d in (v.shape or [])[1:] if isinstance(d, int)]
            if not body and (v.shape is None or len(dims) != len(v.shape) - 1):
                raise FewbitError(
                    f"input {v.name}: its shape {v.shape} is not fixed behind the batch; export it with fixed sizes"
                )
            shapes[v.name or ""] = tuple(dims)
            dtypes[v.name or ""] = v.dtype.numpy() if v.dtype is not None else np.dtype(np.float32)
        return Program(shapes, dtypes, outputs, tuple(self.steps), tuple(self.inexact), self.constants, readings=self.readings)

    def floats(self, value: ir.Value) -> str:
        waiting = [value]  # no recursion: a graph may be thousands of nodes deep
        while waiting:
            needed = next((i for i in self._read_as_floats(waiting[-1]) if (i.name or "") not in self.made), None)
            if needed is None:
                self._floats(waiting.pop())
            else:
                waiting.append(needed)
        return self.made[value.name or ""]

    def _read_as_floats(self, value: ir.Value) -> list[ir.Value]:
        """What a float operator computes the value from; nothing where it is made of codes, or already."""
        node = value.producer()
        if (value.name or "") in self.made or node is None or node.op_type == "DequantizeLinear" or is_quantized(node):
            return []
        return [i for i in node.inputs if i is not None and not is_constant(i)] if _is_known(node) else []

    def _floats(self, value: ir.Value) -> str:
        name = value.name or ""
        if name in self.made:
            return self.made[name]
        node = value.producer()
        if node is None:
            if not any(value is i for i in self.graph.inputs):
                raise Unsupported(f"output {name} is a constant, which the engine does not give")
            out = name
        elif node.op_type == "DequantizeLinear":
            scale, zero = scale_of(node)
            out = self._emit(Dequantize(self.codes(node.inputs[0]), name, scale, zero), integer=True)
        elif is_quantized(node):
            out = self._linear(node, None)
        else:
            out = self._float(node, name)
        self.made[name] = out
        return out

    def codes(self, value: ir.Value | None) -> str:
        """The register of the codes that a QuantizeLinear makes, or of constant codes."""
        if value is None:
            raise FewbitError("a DequantizeLinear has no input; the file is damaged")
        waiting = [(value, iter(codes_before(value)))]
        while waiting:
            one, before = waiting[-1]
            needed = next((v for v in before if (v.name or "") not in self.made), None)
            if needed is None:
                self._codes(one)
                waiting.pop()
            else:
                waiting.append((needed, iter(codes_before(needed))))
        return self.made[value.name or ""]

    def _codes(self, value: ir.Value) -> str:
        node, name, constant = value.producer(), value.name or "", const(value)
        if name in self.made:
            return self.made[name]
        if constant is not None:
            self.constants[name] = plain(constant)
            self.made[name] = name
            self.integer.add(name)
        elif value.is_graph_input() and value.dtype is not None and value.dtype.numpy() in CODES:
            self.made[name] = name  # pixels, or a sensor's: codes as they come
        elif node is None or node.op_type != "QuantizeLinear":
            raise Unsupported(f"value {name}: integers that no QuantizeLinear made are not run by this engine")
        else:
            self.made[name] = self._quantized(node, name)
            scale, zero = scale_of(node)
            self.readings[self.made[name]] = (float(scale.reshape(-1)[0]), zero)
        return self.made[name]

    def _quantized(self, q: ir.Node, name: str) -> str:
        """Emit whatever makes the codes of one QuantizeLinear."""
        source = q.inputs[0]
        assert source is not None
        zero, lowest = scale_of(q)[1], format_of(q).quant_min
        node = source.producer()
        while node is not None and node.op_type == "Relu" and zero == lowest and node.inputs[0] is not None:
            source, node = node.inputs[0], node.inputs[0].producer()  # S4: ReLU is the saturation of the output
        if node is None:
            return self._quantize(source, q)
        if is_quantized(node):
            return self._linear(node, q)
        if node.op_type in ("Add", "Sub", "Mul") and all(i is not None and is_integral(i) for i in node.inputs):
            return self._binary(node, q)
        if node.op_type == "Concat" and all(i is not None and is_integral(i) for i in node.inputs):
            parts = [self._rescale(self._integral(i), q, f"{name}.{k}") for k, i in enumerate(node.inputs) if i is not None]
            return self._emit(Float("Concat", name, tuple(parts), {"axis": node.attributes["axis"].value}), True)
        if is_integral(source):
            return self._rescale(self._integral(source), q, name)
        function = chain(source, is_integral)
        if function is not None and function.nodes:
            return self._function(function, source, q)
        return self._quantize(source, q)

    def _integral(self, value: ir.Value) -> _Codes:
        """Emit the codes behind such a value."""
        moved: list[ir.Value] = []
        while (node := value.producer()) is not None and node.op_type != "DequantizeLinear" and node.inputs[0] is not None:
            moved.append(value)
            value = node.inputs[0]
        assert node is not None
        scale, zero = scale_of(node)
        held = _Codes(self.codes(node.inputs[0]), float(scale.reshape(-1)[0]), zero, format_of(node))
        for one in reversed(moved):
            held = self._moved(one, held)
        return held

    def _moved(self, value: ir.Value, x: _Codes) -> _Codes:
        """Codes x moved about, as the value's node does it."""
        node, name = value.producer(), f"{value.name}.moved"
        assert node is not None
        if name not in self.made:
            rest = tuple(None if i is None else c if (c := const(i)) is not None else self.floats(i) for i in node.inputs[1:])
            self.made[name] = self._emit(Float(node.op_type, name, (x.register, *rest), _attributes(node, value.name)), True)
            self.readings[name] = (x.scale, x.zero_point)
        return _Codes(self.made[name], x.scale, x.zero_point, x.format)

    def _rescale(self, x: _Codes, q: ir.Node, out: str) -> str:
        """S3 and S4 to the scale of q; nothing where it is the same."""
        (scale, zero), fmt = scale_of(q), format_of(q)
        if (x.scale, x.zero_point, x.format) == (float(scale), zero, fmt):
            return x.register
        m, shift = semantics.multiplier(x.scale / float(scale), semantics.ADD_BOUND)
        self.readings[out] = (float(scale), zero)
        return self._emit(Rescale(x.register, out, x.zero_point, m, shift, zero, fmt), True)

    def _binary(self, node: ir.Node, q: ir.Node) -> str:
        a, b = (self._integral(i) for i in node.inputs if i is not None)
        (scale, zero), fmt, out = scale_of(q), format_of(q), q.outputs[0].name or ""
        zeros, sy = (a.zero_point, b.zero_point), float(scale)
        if node.op_type == "Mul":
            ratio = a.scale * b.scale / sy
            m, shift = semantics.multiplier(ratio, semantics.PRODUCT_BOUND, semantics.PRODUCT_BITS)
            return self._emit(Multiply(a.register, b.register, out, zeros, m, shift, zero, fmt), True)
        sign = -1 if node.op_type == "Sub" else 1
        m_a, m_b, shift = semantics.add_multipliers(a.scale / sy, sign * (b.scale / sy))
        return self._emit(Add(a.register, b.register, out, zeros, m_a, m_b, shift, zero, fmt), True)

    def _say_float(self, made: ir.Node | str) -> None:
        """Keep what runs in float between codes, or in a way that no clause of the semantics says."""
        what = f"value {made}" if isinstance(made, str) else f"{made.op_type} (node {made.name or made.outputs[0].name})"
        self.inexact += [] if what in self.inexact else [what]

    def _emit(self, step: Step, integer: bool) -> str:
        self.steps.append(step)
        if integer:
            self.integer.add(step.out)
        return step.out

    def _linear(self, gemm: ir.Node, q: ir.Node | None) -> str:
        assert gemm.inputs[0] is not None
        alpha = [gemm.attributes[k].value for k in ("alpha", "beta") if k in gemm.attributes]
        if any(v != 1.0 for v in alpha) or ("transA" in gemm.attributes and gemm.attributes["transA"].value):
            raise Unsupported(f"node {label(gemm)}: a quantized Gemm with alpha, beta or transA is not run by the engine")
        x, (weight, sw, zw) = self._integral(gemm.inputs[0]), weight_of(gemm)
        name = (gemm if q is None else q).outputs[0].name or ""
        source, out = x.register, name
        if gemm.op_type == "Conv":
            source, weight = self._patches(gemm, x, weight)
            out = f"{name}.channels_last"
        rows = np.broadcast_to(sw, len(weight)).astype(np.float64) * x.scale
        bias = bias_of(gemm, rows)
        bound = semantics.accumulator_bound(weight, zw, bias, x.format, x.zero_point)
        shared: dict[str, Any] = dict(
            x=source,
            weight=weight.astype(np.int16) - np.int16(zw) if zw or weight.dtype == np.uint8 else weight,
            bias=bias,
            zero_input=x.zero_point,
            bound=bound,
            layer=gemm.outputs[0].name or "",
        )
        if q is None:
            self._emit(Linear(out=out, exit_scale=rows.astype(np.float32), **shared), integer=True)
            return self._channels_first(out, name, gemm)
        sy, zy = scale_of(q)
        self.readings[out] = (float(sy.reshape(-1)[0]), zy)
        m, shift = semantics.multipliers(rows / float(sy.reshape(-1)[0]), bound)
        self._emit(Linear(out=out, m=m, shift=shift, zero_point=zy, format=format_of(q), **shared), True)
        return self._channels_first(out, name, gemm)

    def _patches(self, conv: ir.Node, x: _Codes, weight: np.ndarray) -> tuple[str, np.ndarray]:
        """(the register of the patches, the weight [out, elements of a patch] in their order)."""
        attributes = {k: a.as_string() if a.type == ir.AttributeType.STRING else a.value for k, a in conv.attributes.items()}
        seen = patches.window(attributes, weight.shape[2:], conv.name or "")
        last = self.channels_last.get(x.register)
        out = f"{conv.outputs[0].name}.patches"
        self._emit(Patches(last or x.register, out, seen, x.zero_point, last is not None), True)
        return out, (np.moveaxis(weight, 1, -1) if last else weight).reshape(len(weight), -1)

    def _channels_first(self, made: str, name: str, node: ir.Node) -> str:
        """Of a Conv: its output as ONNX has it, beside the one with its channels last."""
        if node.op_type != "Conv":
            return made
        self.channels_last[name] = made
        assert node.inputs[1] is not None
        rank = len(weight_of(node)[0].shape)
        perm = [0, rank - 1, *range(1, rank - 1)]
        return self._emit(Float("Transpose", name, (made,), {"perm": perm}), True)

    def _function(self, function: Chain, end: ir.Value, q: ir.Node) -> str:
        """S6: segments for 16-bit codes, every code's own value for 8-bit ones."""
        x = self._integral(function.root)
        (sy, zy), fmt, out = scale_of(q), format_of(q), q.outputs[0].name or ""
        label = "+".join(n.op_type for n in function.nodes)
        if x.format.bits <= 8:
            codes = np.arange(x.format.quant_min, x.format.quant_max + 1)
            values = evaluate(function, end, (codes - x.zero_point) * x.scale)
            table = np.clip(np.rint(values / np.float64(sy)) + zy, fmt.quant_min, fmt.quant_max).astype(fmt.dtype)
            return self._emit(Lookup(x.register, out, table, x.format.quant_min, fmt, label), True)
        if not x.format.signed or x.zero_point:
            return self._quantize(end, q)
        segments = unary.fit(lambda v: evaluate(function, end, v), x.scale)
        m, shift = semantics.multiplier(float(segments.scale) / float(sy), 1 << 15)
        return self._emit(Table(x.register, out, segments, m, shift, zy, fmt, label), True)

    def _quantize(self, source: ir.Value, q: ir.Node) -> str:
        scale, zero = scale_of(q)
        if scale.size != 1:
            raise Unsupported(f"node {label(q)}: an activation with a scale per channel is not run by the engine")
        x = self.floats(source)
        if x in self.integer:
            made = source.producer()
            self._say_float(source.name or "" if made is None else made)
        return self._emit(Quantize(x, q.outputs[0].name or "", np.float32(scale.reshape(-1)[0]), zero, format_of(q)), True)

    def _float(self, node: ir.Node, out: str) -> str:
        if not _is_known(node):
            raise Unsupported(f"node {label(node)}: operator {node.op_type} is not run by the engine")
        if node.op_type == "Cast":
            cast_type(_attributes(node, out))
        inputs = tuple(None if i is None else c if (c := constant_of(i)) is not None else self.floats(i) for i in node.inputs)
        if node.op_type not in EXACT:
            self._say_float(node)
        touches = any(isinstance(i, str) and i in self.integer for i in inputs)
        return self._emit(Float(node.op_type, out, inputs, _attributes(node, out)), touches)


def _is_known(node: ir.Node) -> bool:
    return node.op_type in [*OPS, "Scan"] and node.domain in ("", "ai.onnx")


def _attributes(node: ir.Node, out: str | None) -> dict[str, Any]:
    """The node's attributes; which of its outputs is meant, where it may have several; a Scan's body as a program."""
    found = {
        k: _Lowering(a.value).program(body=True) if isinstance(a.value, ir.Graph) else a.value for k, a in node.attributes.items()
    }
    if len(node.outputs) > 1 or node.op_type == "Split":
        found |= {"output": [o.name for o in node.outputs].index(out), "num_outputs": len(node.outputs)}
    return found


def _number(value: ir.Value | None) -> np.ndarray | None:
    """A constant of one element without the axes that it was written with."""
    held = const(value)
    return None if held is None else np.asarray(held, np.float64).reshape(())


def evaluate(function: Chain, end: ir.Value, x: np.ndarray) -> np.ndarray:
    """The function of one value, in float64."""
    values: dict[ir.Value, np.ndarray] = {function.root: np.asarray(x, np.float64)}
    for node in function.nodes:
        args = [values[i] if i in values else _number(i) for i in node.inputs]
        values[node.outputs[0]] = OPS[node.op_type]({k: a.value for k, a in node.attributes.items()}, *args)
    return values[end]
