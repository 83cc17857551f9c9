"""A float graph to a student that can be trained, and a trained student back to the graphs: QDQ codes, float weights.

The QDQ file is written first, by graph/qdq and with all its decisions; training changes the constants of its layers and nothing
else. Scales of weights start at the clip that costs the output least (solvers/clip).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import ml_dtypes
import numpy as np
import onnx_ir as ir

from fewbit.engine.lower import lower
from fewbit.engine.program import Linear
from fewbit.engine.state import states
from fewbit.graph import calibrate, metadata, qdq
from fewbit.graph.edit import const
from fewbit.graph.layers import LAYERS, head, layers
from fewbit.graph.quantize import prepare
from fewbit.numerics.formats import INTEGERS
from fewbit.train.qat import Layer, Start, Trainable, needed
from fewbit.train.unroll import Recurrent, remembering

RAW = ".raw"  # the key of what the last layer makes
START = "smooth+clip"  # how the file is written before training
REMEMBERING = "smooth+clip+gptq"  # where something is remembered; it starts with these codes, which the closed loop already bears


@dataclass(frozen=True)
class Student:
    """module: trainable; floats: the float graph that it started from, its columns scaled; model: the QDQ graph; moved: by what
    the columns were scaled (exponents); weights: initializers of floats (weight, bias) by the layer's output in model."""

    module: Trainable
    floats: ir.Model
    model: ir.Model
    moved: dict[str, list[int]]
    weights: dict[str, tuple[str, str]]

    @property
    def raw(self) -> str:
        """The register of what the last layer before the action makes."""
        leading = needed(self.module.body, self.module.program.outputs[:1])
        return [s.out for s in self.module.body if isinstance(s, Linear) and s.out in leading][-1]

    def artifact(self) -> ir.Model:
        """A copy of the QDQ graph with the codes and scales that the module has now."""
        model = self.model.clone()
        for node in model.graph:
            if node.op_type in LAYERS:
                _write(node, self.module.layer(node.outputs[0].name or ""))
        return model

    def trained(self) -> ir.Model:
        """A copy of the float graph with the weights that the module has now, under the same names."""
        model = self.floats.clone()
        for name, (weight, bias) in self.weights.items():
            layer = self.module.layer(name)
            rows = (layer.weight * layer.first[:, None]).detach().numpy().reshape(layer.shape)
            _set(model.graph.initializers[weight], rows.astype(np.float32))
            if bias:
                _set(model.graph.initializers[bias], (layer.bias.double() * layer.unit).detach().numpy().astype(np.float32))
        return model


def student(original: ir.Model, feeds: dict[str, np.ndarray], scheme: qdq.Scheme) -> Student:
    """Of a float graph and what it was calibrated on: [n, ...] by input."""
    remembers = bool(metadata.state(original))
    begin = replace(scheme, method=REMEMBERING if remembers else START)
    ready = prepare(original, feeds, begin)
    floats = ready.model.clone()
    rms = [_rms(ready.statistics[layer.x.name or ""].gram) for layer in layers(floats)]
    model = qdq.write(ready.model, ready.ranges, begin, ready.statistics)
    quantized = [n for n in model.graph if n.op_type in LAYERS]
    starts, weights, formats = {}, {}, dict(scheme.layers)
    for node, layer, size in zip(quantized, layers(floats), rms, strict=True):
        fmt = INTEGERS[formats.get(node.name or "", scheme.weights)]
        name, inputs = node.outputs[0].name or "", layer.node.inputs
        weight, bias = const(inputs[1]), const(inputs[2]) if len(inputs) > 2 else None
        codes, scale = (const(v) for v in _constants(node, 1))
        assert weight is not None and codes is not None and scale is not None
        if remembers:
            weight = codes.astype(np.float32) * scale.reshape(-1, *[1] * (codes.ndim - 1))
        starts[name] = Start(weight, np.zeros(len(weight), np.float32) if bias is None else bias, scale, size, fmt)
        weights[name] = (inputs[1].name or "", inputs[2].name or "" if len(inputs) > 2 and inputs[2] is not None else "")  # type: ignore[union-attr]
    program = lower(model)
    module = Recurrent(program, starts) if program.state else Trainable(program, starts)
    return Student(module, floats, model, ready.moved, weights)


def _rms(gram: np.ndarray) -> float:
    return float(np.sqrt(max(np.diag(gram).mean(), 0.0)))


def _constants(node: ir.Node, index: int) -> tuple[ir.Value, ir.Value]:
    """(codes, scale) of a layer's weight (1) or bias (2)."""
    reader = node.inputs[index].producer()  # type: ignore[union-attr]
    assert reader is not None and reader.inputs[0] is not None and reader.inputs[1] is not None
    return reader.inputs[0], reader.inputs[1]


def _write(node: ir.Node, layer: Layer) -> None:
    """The layer's codes and scales into its DequantizeLinear nodes."""
    (codes, scale), (bias, bias_scale) = _constants(node, 1), _constants(node, 2)
    before, after = const(scale), layer.scale().detach().numpy()
    weights, found = const(codes), layer.codes().detach().numpy().astype(layer.format.dtype)
    assert before is not None and weights is not None
    if layer.most.item() < 8:
        found = found.astype(ml_dtypes.int4)
    unit = scale_input(node)
    _set(codes, found.reshape(layer.shape))
    _set(scale, after)
    _set(bias, layer.bias_codes(float(unit)).detach().numpy().astype(np.int32))
    _set(bias_scale, (unit * after).astype(np.float32))


def scale_input(node: ir.Node) -> np.float32:
    """Of the codes that a layer of a QDQ graph reads, moved about or not."""
    value = node.inputs[0]
    while value is not None and (producer := value.producer()) is not None and producer.op_type != "DequantizeLinear":
        value = producer.inputs[0]
    scale = const(producer.inputs[1]) if producer is not None else None
    assert scale is not None
    return np.float32(scale.reshape(()))


def _set(value: ir.Value, array: np.ndarray) -> None:
    value.const_value = ir.tensor(array, name=value.name)


def teacher(original: ir.Model) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """What the float graph wants of observations [n, ...]: its outputs that are numbers, and what its last layer makes.

    One that remembers does so by itself, from the first observation of each episode on.
    """
    last = head(original).node.outputs[0].name or ""
    names = [o.name or "" for o in original.graph.outputs if o.dtype == ir.DataType.FLOAT]
    runner = calibrate.session(calibrate.with_outputs(original, [last]))
    held = states(original, {i.name: tuple(i.shape[1:]) for i in runner.get_inputs()})

    def wanted(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip([*names, RAW], runner.run([*names, last], feeds), strict=True))

    return (lambda feeds: remembering(wanted, held, feeds)) if held else wanted
