"""Lower a QDQ graph to a Program: ask for the outputs, and follow each value back to what makes it.

`floats(value)` emits whatever leaves the value in a float register, `codes(value)` whatever leaves its integer codes.
"""

from typing import Any

import numpy as np
import onnx_ir as ir

from fewbit.engine.float_ops import EXACT, OPS
from fewbit.engine.program import Dequantize, Float, Linear, Program, Quantize, Step, Table
from fewbit.errors import FewbitError
from fewbit.graph.elementwise import Chain, chain
from fewbit.graph.fold import const
from fewbit.numerics import semantics
from fewbit.numerics.formats import INTEGERS, IntFormat

_FORMAT_OF = {
    np.dtype(f.dtype): f for f in (INTEGERS["int8"], INTEGERS["uint8"], INTEGERS["int16"], INTEGERS["uint16"], INTEGERS["int32"])
}


def lower(model: ir.Model) -> Program:
    """The program of a QDQ (or plain float) graph; refuses by name what cannot be run."""
    return _Lowering(model).program()


class _Lowering:
    def __init__(self, model: ir.Model):
        self.graph = model.graph
        self.steps: list[Step] = []
        self.made: dict[str, str] = {}
        self.integer: set[str] = set()
        self.exact = True

    def program(self) -> Program:
        inputs = [v for v in self.graph.inputs if v.name not in self.graph.initializers]
        outputs = tuple(self.floats(v) for v in self.graph.outputs)
        shapes, dtypes = {}, {}
        for v in inputs:
            dims = [d for d in (v.shape or [])[1:] if isinstance(d, int)]
            if v.shape is None or len(dims) != len(v.shape) - 1:
                raise FewbitError(
                    f"input {v.name}: its shape {v.shape} is not fixed behind the batch; export it with fixed sizes"
                )
            shapes[v.name or ""] = tuple(dims)
            dtypes[v.name or ""] = v.dtype.numpy() if v.dtype is not None else np.dtype(np.float32)
        return Program(shapes, dtypes, outputs, tuple(self.steps), self.exact)

    def floats(self, value: ir.Value) -> str:
        name = value.name or ""
        if name in self.made:
            return self.made[name]
        node = value.producer()
        if node is None:
            if not any(value is i for i in self.graph.inputs):
                raise FewbitError(f"output {name} is a constant; this is no policy")
            out = name
        elif node.op_type == "DequantizeLinear":
            scale, zero = self._scale(node)
            out = self._emit(Dequantize(self.codes(node.inputs[0]), name, scale, zero), integer=True)
        elif self._is_quantized(node):
            out = self._linear(node, None)
        else:
            out = self._float(node)
        self.made[name] = out
        return out

    def codes(self, value: ir.Value | None) -> str:
        node = value.producer() if value is not None else None
        if value is None or node is None or node.op_type != "QuantizeLinear":
            raise FewbitError(
                f"value {value.name if value is not None else '?'}: integers that no QuantizeLinear made are not supported"
            )
        name = value.name or ""
        if name not in self.made:
            source = node.inputs[0]
            assert source is not None
            producer = source.producer()
            function = chain(source, ("DequantizeLinear",)) if producer is not None else None
            if producer is not None and self._is_quantized(producer):
                self.made[name] = self._linear(producer, node)
            elif function is not None and function.nodes and self._sixteen(function.root):
                self.made[name] = self._table(function, source, node)
            else:
                self.made[name] = self._quantize(source, node)
        return self.made[name]

    def _emit(self, step: Step, integer: bool) -> str:
        self.steps.append(step)
        if integer:
            self.integer.add(step.out)
        return step.out

    def _scale(self, node: ir.Node) -> tuple[np.ndarray, int]:
        """(scale float32, one zero point) of a QuantizeLinear or DequantizeLinear."""
        scale = const(node.inputs[1])
        zero = const(node.inputs[2]) if len(node.inputs) > 2 else np.zeros((), np.int8)
        if scale is None or zero is None or scale.dtype != np.float32:
            raise FewbitError(f"node {node.name}: its scale and zero point must be constants, the scale float32")
        if not (np.isfinite(scale) & (scale > 0)).all():
            raise FewbitError(f"node {node.name}: a scale is zero, negative or not finite; the file is damaged")
        if zero.size > 1 and np.ptp(zero.astype(np.int64)):
            raise FewbitError(f"node {node.name}: zero points that differ by channel are not supported")
        return scale, int(zero.reshape(-1)[0])

    def _format(self, node: ir.Node) -> IntFormat:
        zero = const(node.inputs[2]) if len(node.inputs) > 2 else None
        fmt = _FORMAT_OF.get(zero.dtype) if zero is not None else INTEGERS["uint8"]
        if fmt is None:
            raise FewbitError(f"node {node.name}: quantization to {zero.dtype if zero is not None else '?'} is not supported")
        return fmt

    def _is_quantized(self, node: ir.Node) -> bool:
        """A Gemm whose input is dequantized and whose weight and bias are dequantized constants."""
        if node.op_type != "Gemm" or len(node.inputs) != 3 or not node.attributes.get("transB"):
            return False
        makers = [i.producer() if i is not None else None for i in node.inputs]
        return all(m is not None and m.op_type == "DequantizeLinear" for m in makers) and all(
            const(m.inputs[0]) is not None for m in makers[1:] if m is not None
        )

    def _sixteen(self, root: ir.Value) -> bool:
        node = root.producer()
        return node is not None and const(node.inputs[0]) is None and self._format(node).bits == 16 and self._scale(node)[1] == 0

    def _linear(self, gemm: ir.Node, q: ir.Node | None) -> str:
        x, w, b = (i.producer() for i in gemm.inputs if i is not None)
        assert x is not None and w is not None and b is not None
        (sx, zx), (sw, zw) = self._scale(x), self._scale(w)
        weight, bias = const(w.inputs[0]), const(b.inputs[0])
        assert weight is not None and bias is not None
        if weight.ndim != 2 or sx.size != 1 or sw.size not in (1, len(weight)) or bias.shape != (len(weight),):
            raise FewbitError(
                f"node {gemm.name}: weight {weight.shape}, its scale {sw.shape} and bias {bias.shape} do not fit together"
            )
        bound = semantics.accumulator_bound(weight, zw, bias, self._format(x), zx)
        rows = np.broadcast_to(sw.reshape(-1), len(weight)).astype(np.float64) * float(sx.reshape(-1)[0])
        shared: dict[str, Any] = dict(
            x=self.codes(x.inputs[0]),
            weight=weight.astype(np.int16) - np.int16(zw) if zw else weight,
            bias=bias,
            zero_input=zx,
            bound=bound,
        )
        name = gemm.outputs[0].name or ""
        if q is None:
            return self._emit(Linear(out=name, exit_scale=rows.astype(np.float32), **shared), integer=True)
        sy, zy = self._scale(q)
        pairs = [semantics.multiplier(r / float(sy.reshape(-1)[0]), bound) for r in rows]
        m, shift = (np.array(p, np.int64) for p in zip(*pairs, strict=True))
        return self._emit(
            Linear(out=q.outputs[0].name or "", m=m, shift=shift, zero_point=zy, format=self._format(q), **shared), True
        )

    def _table(self, function: Chain, end: ir.Value, q: ir.Node) -> str:
        root = function.root.producer()
        assert root is not None
        sx, _ = self._scale(root)
        inputs = (np.arange(semantics.TABLE_KNOTS) * semantics.TABLE_STEP - 32768) * float(sx)
        knots, scale = semantics.table(evaluate(function, end, inputs))
        sy, zy = self._scale(q)
        m, shift = semantics.multiplier(float(scale) / semantics.TABLE_STEP / float(sy), 1 << 20)
        label = "+".join(n.op_type for n in function.nodes)
        return self._emit(
            Table(self.codes(root.inputs[0]), q.outputs[0].name or "", knots, m, shift, zy, self._format(q), label), True
        )

    def _quantize(self, source: ir.Value, q: ir.Node) -> str:
        scale, zero = self._scale(q)
        if scale.size != 1:
            raise FewbitError(f"node {q.name}: an activation with a scale per channel is not supported")
        x = self.floats(source)
        self.exact &= x not in self.integer
        return self._emit(Quantize(x, q.outputs[0].name or "", np.float32(scale.reshape(-1)[0]), zero, self._format(q)), True)

    def _float(self, node: ir.Node) -> str:
        if node.op_type not in OPS or node.domain not in ("", "ai.onnx"):
            raise FewbitError(f"node {node.name}: operator {node.op_type} cannot be run by this engine; use ONNX Runtime")
        inputs = tuple(None if i is None else c if (c := const(i)) is not None else self.floats(i) for i in node.inputs)
        attributes = {k: a.value for k, a in node.attributes.items()}
        self.exact &= node.op_type in EXACT
        out = node.outputs[0].name or ""
        return self._emit(
            Float(node.op_type, out, inputs, attributes), integer=any(isinstance(i, str) and i in self.integer for i in inputs)
        )


def evaluate(function: Chain, end: ir.Value, x: np.ndarray) -> np.ndarray:
    """The function of one value, in float64."""
    values: dict[ir.Value, np.ndarray] = {function.root: np.asarray(x, np.float64)}
    for node in function.nodes:
        args = [None if i is None else values[i] if i in values else const(i) for i in node.inputs]
        args = [a if a is None else np.asarray(a, np.float64) for a in args]
        values[node.outputs[0]] = OPS[node.op_type]({k: a.value for k, a in node.attributes.items()}, *args)
    return values[end]
