"""What fewbit says of a network: does a refusal name its cause, and of what kind is a message?"""

import re
import traceback
from pathlib import Path

from random_graphs.oracle import Sample

FOREIGN = ("ONNXRuntimeError", "ONNX Runtime cannot run", "Traceback", "onnxruntime.capi")


def kind_of(text: str, names: tuple[str, ...]) -> str:
    """What a message has in common with others of its kind: the network's own names and numbers are taken out."""
    text = re.sub(r"(unclear refusal \([^)]*\): )?\S*network\.onnx: ", r"\1", text)
    text = text.replace("[ONNXRuntimeError] : ", "").replace("ONNX Runtime cannot run this network", "")
    text = re.sub(r"/tmp/\S*onnx:", "", text)
    for name in sorted(names, key=len, reverse=True):
        if len(name) > 1:
            text = re.sub(r"(?<![\w/])" + re.escape(name) + r"[\w./]*(?!\w)", "*", text)
    text = re.sub(
        r"Node \([^)]*\)|(node|input|output|tensor|value|initializer|weight|name) [^:(]*?(?=[:(]| has| declares| is |$)",
        "*",
        text,
    )
    text = re.sub(r"^(int16|int8) ", "", text)
    return re.sub(r"-?\d+(\.\d+)?(e[-+]?\d+)?", "#", text)[:120]


def names_of(made: Sample) -> tuple[str, ...]:
    """What the network's values and nodes are called; operators' names are left to tell kinds apart."""
    graph = made.model.graph
    nodes = [*graph.node, *(n for f in made.model.functions for n in f.node)]
    names = (
        {n.name for n in nodes}
        | {v for n in nodes for v in [*n.input, *n.output]}
        | {v.name for v in [*graph.input, *graph.output]}
    )
    return tuple(names - made.operators - {""})


def where(e: Exception) -> str:
    """The innermost line of fewbit that it went through."""
    frames = [f for f in traceback.extract_tb(e.__traceback__) if "/fewbit/" in f.filename]
    return f"{Path(frames[-1].filename).name} {frames[-1].name}" if frames else "outside"


def unclear(text: str, made: Sample) -> str | None:
    """What a refusal lacks: one line that names an operator, a tensor, a node, a dtype, an opset or an option."""
    if "\n" in text.strip():
        return "more than one line"
    if any(word in text for word in FOREIGN):
        return "another runtime's words"
    if "please report" in text:
        return "fewbit's own check of what it wrote"
    listed = text.split("the policy takes ")[-1].split(", ")
    if "the policy takes " in text and {t.name for t in made.model.graph.initializer} & set(listed):
        return "initializers taken for inputs"
    names = {*names_of(made), *made.operators, "float16", "float64", "double", "opset", "batch", "--", "dtype"}
    behind = text.split(".onnx:", 1)[-1]
    return None if any(n in behind for n in names if n) else "names nothing of the network"
