"""`generate` of a whole model, float32 in transformers against fewbit's packed layers in the same model.

    python benchmarks/llm_generate.py FLOAT_FOLDER [--threads 1,2] >> benchmarks/results/llm_kernels.md

Weights int4 in groups of 64, the embedding (and the head tied to it) int8, all rounded to nearest: speed and memory do not
depend on the solver. Both models in one process, in turns, medians; memory of each in a process of its own.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import transformers
from llm_kernels import quantized
from safetensors.numpy import load_file, save_file

from fewbit.llm import packed
from fewbit.llm.linear import QuantLinear
from fewbit.llm.loading import load
from fewbit.llm.packed import Layer, Recipe

TOKENS, TURNS = 48, 5
PROMPT = "The history of the city begins with"


def write(source: Path, to: Path) -> None:
    """The folder rounded to nearest, as `fewbit llm quantize` writes one."""
    held: dict[str, np.ndarray] = {}
    special = {"model.embed_tokens": Layer("int8", 64, True)}
    for path in source.glob("*.safetensors"):
        for key, value in load_file(path).items():
            name = key.removesuffix(".weight")
            if "proj" in name and value.ndim == 2:
                held |= packed.tensors(name, quantized(value, 4, 64, False))
            elif name in special:
                held |= packed.tensors(name, quantized(value, 8, 64, True))
            else:
                held[key] = value
    save_file(held, to / "model.safetensors")
    config = json.loads((source / "config.json").read_text())
    entry = packed.to_config(Recipe(Layer("int4", 64, False), "rtn", special))
    (to / "config.json").write_text(json.dumps(config | {"quantization_config": entry}))
    for path in (p for p in source.iterdir() if p.suffix in (".json", ".jinja") and p.name != "config.json"):
        shutil.copy(path, to)


def in_float(folder: Path):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), transformers.AutoTokenizer.from_pretrained(folder)


def generate(model, tokenizer) -> float:
    """Seconds for TOKENS new tokens."""
    inputs = tokenizer(PROMPT, return_tensors="pt")
    start = time.perf_counter()
    model.generate(**inputs, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False, pad_token_id=0)
    return time.perf_counter() - start


def layers_alone(model) -> float:
    """Milliseconds of all packed layers for one token, nothing between them: the least of 20."""
    layers = [m for m in model.modules() if isinstance(m, QuantLinear)]
    inputs = [torch.randn(1, m.in_features) for m in layers]
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        for layer, x in zip(layers, inputs, strict=True):
            layer(x)
        seconds.append(time.perf_counter() - start)
    return min(seconds) * 1e3


def memory(folder: Path, kind: str) -> tuple[int, int, int]:
    """(bytes of the model's tensors, peak of the process, peak of a process that has only imported) of a run of its own."""
    done = subprocess.run([sys.executable, __file__, str(folder), "--memory", kind], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return tuple(json.loads(done.stdout.splitlines()[-1]))


def peak() -> int:
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmHWM"))


def measure_memory(folder: Path, kind: str) -> None:
    torch.set_num_threads(1)
    import transformers.models.llama.modeling_llama  # noqa: F401

    before = peak()
    model, tokenizer = load(folder, 1) if kind == "packed" else in_float(folder)
    generate(model, tokenizer)
    print(json.dumps([model.get_memory_footprint(), peak(), before]))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--memory")
    given = parser.parse_args()
    if given.memory:
        return measure_memory(given.folder, given.memory)
    with tempfile.TemporaryDirectory() as place:
        write(given.folder, Path(place))
        compare(given.folder, Path(place), [int(t) for t in given.threads.split(",")])


def compare(source: Path, made: Path, threads: list[int]) -> None:
    print(f"\n`generate` of {source.name}, greedy, {TOKENS} tokens after a prompt of a few, medians of {TURNS} turns:\n")
    print("| threads | | tokens a second | ms a token | packed layers alone, ms |\n|" + "---|" * 5)
    floats = in_float(source)
    for count in threads:
        torch.set_num_threads(count)
        models = {"float32": floats, "fewbit, int8 activations": load(made, count)}
        models["fewbit, float activations"] = load(made, count, "float")
        seconds: dict[str, list[float]] = {name: [] for name in models}
        for turn in range(TURNS + 1):
            for name, pair in models.items():
                seconds[name] += [generate(*pair)] if turn else []
                if not turn:
                    generate(*pair)
        for name, (model, _) in models.items():
            one = statistics.median(seconds[name]) / TOKENS
            alone = f"{layers_alone(model):.1f}" if "fewbit" in name else "-"
            print(f"| {count} | {name} | {1 / one:.1f} | {one * 1e3:.1f} | {alone} |", flush=True)
    print("\n| | bytes of the model | peak of the process | of it, imports alone |\n|" + "---|" * 4)
    for name, folder in (("float32", source), ("packed", made)):
        model_bytes, top, before = memory(folder, name)
        print(f"| {name} | {model_bytes / 1e6:.1f} MB | {top / 1e6:.0f} MB | {before / 1e6:.0f} MB |", flush=True)


if __name__ == "__main__":
    main()
