"""`--for vllm|llama.cpp|transformers`: what each of them does not run is refused before any work, with what it would take.

vLLM's rules are those that all versions of its Marlin and Machete kernels share (newer Marlin also takes groups of 32 and 64);
transformers' were tried: 5.24 with compressed-tensors 0.20 loads no file with zero points, of llm-compressor's own neither.
"""

from collections.abc import Iterable
from pathlib import Path

from fewbit.errors import FewbitError
from fewbit.llm import gguf, relayout
from fewbit.llm.options import WEIGHTS, Options
from fewbit.llm.packed import Layer, layer
from fewbit.llm.tensors import Tensors
from fewbit.numerics import ggml

PLACES = {
    "vllm": ("compressed-tensors", "gptq", "awq"),
    "llama.cpp": ("gguf",),
    "transformers": ("compressed-tensors",),
}
FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("q_a_proj", "kv_a_proj_with_mqa"), ("w1", "w3"))  # by vLLM
GROUP = 128
# Rows and columns of a weight that kernels need whole multiples of.
MULTIPLES = {"w8a8": (16, 16), "fp8": (16, 16), "fp8-block": (128, 128), "nvfp4": (64, 128), "mxfp4": (64, 128)}
INTEGERS = (64, 128)


def check(consumer: str, source: Path, to: str, kind: str, given: Options) -> None:
    """source: a float checkpoint that is to become `kind`, or an artifact. to: a place of llm/export, "" of an artifact to be."""
    if consumer not in PLACES:
        raise FewbitError(f"--for {consumer} is unknown; choose one of {', '.join(PLACES)}")
    if to and to not in PLACES[consumer]:
        raise FewbitError(f"--for {consumer}: it does not load {to}; give --to {' or '.join(PLACES[consumer])}")
    if given.bits_per_weight is not None and consumer == "vllm" and not given.symmetric:
        raise FewbitError("--for vllm: its kernels run int8 without zero points only; give --symmetric with --bits-per-weight")
    layers = _layers(source, kind, given)
    for name, (shape, own) in layers.items():
        if consumer == "llama.cpp":
            _llama_cpp(name, shape, own)
        elif own.weights in ggml.TYPES:
            raise FewbitError(
                f"--for {consumer}: it does not run {own.weights}; {', '.join(WEIGHTS[:2])} in groups of {GROUP} it does"
            )
        elif consumer == "vllm":
            _vllm(name, shape, own)
        else:
            _transformers(name, shape, own)
    if consumer == "vllm":
        _one_width({name: own for name, (_, own) in layers.items()})


def known(source: Path, to: str, kind: str, given: Options) -> dict[str, str]:
    """Consumer -> why it does not run what is about to be written, "" where it does; of all that load this place."""
    found = {}
    for consumer in (c for c, places in PLACES.items() if to in places):
        try:
            check(consumer, source, to, kind, given)
            found[consumer] = ""
        except FewbitError as e:
            found[consumer] = str(e)
    return found


def widths(consumer: str, symmetric: bool) -> tuple[int, ...]:
    """Bits that --bits-per-weight may choose among."""
    own = {"vllm": ("int4", "int8"), "llama.cpp": WEIGHTS if symmetric else ("int4", "int3", "int2")}.get(consumer, WEIGHTS)
    return tuple(sorted(layer(w, GROUP, symmetric).bits for w in own))


def fused(names: Iterable[str]) -> list[list[str]]:
    """The layers among these that vLLM runs as one."""
    held, found = set(names), []
    for name in held:
        head, _, part = name.rpartition(".")
        group = next((g for g in FUSED if g[0] == part), ())
        found.append([m for m in (f"{head}.{p}" for p in group) if m in held])
    return sorted(g for g in found if len(g) > 1)


def _one_width(layers: dict[str, Layer]) -> None:
    for group in fused(layers):
        if len({layers[n] for n in group}) > 1:
            kinds = ", ".join(layers[n].weights for n in group)
            raise FewbitError(f"--for vllm: it runs {', '.join(group)} as one, which are {kinds}; quantize again with --for vllm")


def _layers(source: Path, kind: str, given: Options) -> dict[str, tuple[tuple[int, int], Layer]]:
    """Name -> shape [out, in] and how it is, or is to be, kept."""
    recipe = relayout.recipe_of(source)
    if recipe is None:
        own = layer(kind, given.group_size, given.symmetric)
        return {n.removesuffix(".weight"): ((s[0], s[1]), own) for n, s in relayout.matrices(source).items()}
    tensors, found = Tensors(source), {}
    for key in tensors:
        name, _, leaf = key.rpartition(".")
        if leaf in ("codes", "blocks") and ".layers." in name:
            own, out = recipe.of(name), tensors.shape(key)[0]
            if leaf == "codes":
                columns = tensors.shape(f"{name}.scale")[1] * own.group_size
            else:
                kept = ggml.TYPES[own.weights]
                columns = tensors.shape(key)[1] // kept.record.itemsize * kept.block
            found[name] = ((out, columns), own)
    return found


def _llama_cpp(name: str, shape: tuple[int, int], own: Layer) -> None:
    if own.weights not in gguf.FLOAT_TYPES:
        ggml.check(name, shape[1], ggml.TYPES[gguf.holder(own, f"--for llama.cpp: {name}")])


def _vllm(name: str, shape: tuple[int, int], own: Layer) -> None:
    if own.weights in WEIGHTS:
        if own.weights not in ("int4", "int8"):
            raise FewbitError(f"--for vllm: its kernels do not run {own.weights} ({name}); int4 and int8 they do")
        if own.group_size not in (GROUP, shape[1]):
            raise FewbitError(
                f"--for vllm: its Marlin and Machete kernels do not all run groups of {own.group_size} ({name}); "
                f"give --group-size {GROUP}, or whole rows"
            )
        if own.weights == "int8" and not own.symmetric:
            raise FewbitError(f"--for vllm: its kernels run int8 without zero points only ({name}); give --symmetric")
    _divides("vllm", name, shape, MULTIPLES.get(own.weights, INTEGERS), own.weights)


def _transformers(name: str, shape: tuple[int, int], own: Layer) -> None:
    if own.weights in WEIGHTS and not own.symmetric:
        raise FewbitError(f"--for transformers: it loads no zero points ({name}, {own.weights}); quantize with --symmetric")
    if own.weights == "fp8-block":
        _divides("transformers", name, shape, (1, 128), own.weights)


def _divides(consumer: str, name: str, shape: tuple[int, int], by: tuple[int, int], weights: str) -> None:
    if shape[0] % by[0] or shape[1] % by[1]:
        others = [k for k, (rows, columns) in MULTIPLES.items() if shape[0] % rows == 0 and shape[1] % columns == 0]
        raise FewbitError(
            f"--for {consumer}: {weights} needs rows in multiples of {by[0]} and columns of {by[1]}; {name} is {shape[0]} x "
            f"{shape[1]}" + (f", which {', '.join(others)} would take" if others else "; no kind of weight fits it there")
        )
