"""The proof that no 16-bit sum of an int8 kernel saturates on x86 without VNNI (solvers/pairs), layer by layer."""

import numpy as np
import onnx_ir as ir

from fewbit.errors import FewbitError
from fewbit.graph.edit import const
from fewbit.graph.strip import reads_codes
from fewbit.solvers import pairs


def proof(model: ir.Model) -> dict[str, int]:
    """{layer: the largest sum of neighbouring weights}, of the layers that read 8-bit codes; refuses one that may saturate."""
    found = {}
    for node in model.graph:
        weight = node.inputs[1].producer() if node.op_type in ("Gemm", "Conv") and node.inputs[1] is not None else None
        codes = const(weight.inputs[0]) if weight is not None and weight.op_type == "DequantizeLinear" else None
        if codes is None or not reads_codes(node):
            continue
        rows = pairs.largest(_rows(node, codes), node.op_type == "Conv")
        worst = int(rows.argmax())
        if rows[worst] > pairs.MOST:
            raise FewbitError(
                f"layer {node.name}: weights of output {worst} add up to {rows[worst]} in neighbouring inputs, more than "
                f"{pairs.MOST}, and 16-bit sums saturate on x86 without VNNI; "
                "quantize the source with --target onnxruntime or openvino"
            )
        found[node.name or ""] = int(rows[worst])
    return found


def _rows(node: ir.Node, codes: np.ndarray) -> np.ndarray:
    codes = codes.astype(np.int32)
    turned = node.op_type == "Gemm" and not ("transB" in node.attributes and node.attributes["transB"].value)
    return codes.T if turned else codes
