"""An engine for TensorRT-RTX, NVIDIA's other product: for RTX cards, its kernels compiled where it runs. Builds without a GPU.

What the builder took as int8 is read in its verbose log, which at detailed profiling verbosity lists each kernel with the types
that it reads and the ONNX nodes it came from. (The engine's inspector says the same, but must load the engine, on a GPU.)
"""

import re
from pathlib import Path
from typing import Any

import tensorrt_rtx_bindings as trt

from fewbit.errors import FewbitError
from fewbit.files import write_whole
from fewbit.graph import metadata
from fewbit.graph.read import read
from fewbit.targets.tensorrt import LAYERS, log_of, rewrite, serialize

POINTWISE = "kgen"  # the log's word for a generated kernel: elementwise work, and products too narrow for a matrix kernel
TYPES = {"Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "FP8": "float8_e4m3", "Int8": "int8", "Int4": "int4"}


def export(artifact: Path, out: Path) -> dict[str, Any]:
    """{"files", "size_bytes", "runtime", "layers": {ONNX node: type its product reads}}; out is the engine's path."""
    model = rewrite(read(artifact))
    try:
        engine = serialize(trt, metadata.to_bytes(model))
    except FewbitError as e:
        raise FewbitError(f"{artifact}: {e}") from None
    names = [n.name or "" for n in model.graph if n.op_type in LAYERS]
    layers = kernels([line for _, line in log_of(trt).lines], names)
    size = write_whole(out, engine)
    return {"files": [str(out)], "size_bytes": size, "runtime": f"TensorRT-RTX {trt.__version__}", "layers": layers}


def kernels(log: list[str], names: list[str]) -> dict[str, str]:
    """{layer: type that its product reads}, of the layers that the builder's log speaks of."""
    found: dict[str, str] = {}
    listing = next((text for text in log if text.startswith("Layers:")), "")
    for line in listing.split("\n"):
        kind, reads = re.search(r"LayerType: (\w+)", line), line.partition(", Constants: [")[0]
        types = set(re.findall(r"Datatype: (\w+)", reads))
        if kind is None or not types:
            continue
        origins = line.partition("Metadata: ")[2].split("\x1f")
        for name in [o.removeprefix("[ONNX Layer: ").removesuffix("]") for o in origins]:
            if name in names and (kind[1] != POINTWISE or name not in found):
                found[name] = " and ".join(sorted(TYPES.get(t, t) for t in types))
    return {name: found[name] for name in names if name in found}
