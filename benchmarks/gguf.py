"""What llama.cpp's types cost a language model, in llama.cpp: our files beside those of its own quantizer, the same token ids.

    python benchmarks/gguf.py MODEL -o benchmarks/results/gguf.jsonl [--only ours:q4_0 theirs:q4_0 f32] [--work FOLDER]
    python benchmarks/gguf.py SMALL -o benchmarks/results/gguf_small.jsonl --types q4_k q5_k q6_k --window 512 --kl
    python benchmarks/gguf.py --table benchmarks/results/gguf.jsonl > benchmarks/results/gguf.md

MODEL: the float32 checkpoint; SMALL: what benchmarks/small_llama.py trained. Text and windows are benchmarks/llm.py's. "theirs"
is ggml's quantizer on every Linear of the blocks (embedding and head in q8_0, as ours), "imatrix" the same under the importance
of the calibration text, "rtn+imatrix" our search for scales under it. llama.cpp is the library in the wheel xllamacpp; it rounds
activations to 8 bits. in_fewbit: the perplexity that we compute, of the float model and of ours.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from llm import texts

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

SMALL = ("q4_0", "q4_1", "iq4_nl", "q8_0")
TYPES = (*SMALL, "q4_k", "q5_k", "q6_k")


def theirs(model: Path, out: Path, kind_name: str, importance: dict[str, np.ndarray] | None) -> Path:
    """A file like ours, its matrices from ggml's own quantizer."""
    import llama_cpp

    from fewbit import gguf_file
    from fewbit.llm import gguf
    from fewbit.numerics import ggml

    plain = out.with_suffix(".f32")
    if not plain.exists():
        gguf.export(model, plain, "f32")
    metadata, entries = gguf_file.read(plain)
    tensors = []
    for name, e in entries.items():
        kind = ggml.TYPES["q8_0" if name in ("token_embd.weight", "output.weight") else kind_name]

        def rows(name: str = name, e: gguf_file.Entry = e, kind: ggml.Type = kind) -> np.ndarray:
            cost = importance.get(name) if importance else None
            return llama_cpp.quantize(gguf_file.load(plain, e), kind.number, kind.row_bytes(e.shape[1]), cost)

        whole = len(e.shape) == 1
        number = 0 if whole else kind.number
        tensors.append(gguf_file.Tensor(name, e.shape, number, (lambda e=e: gguf_file.load(plain, e)) if whole else rows))
    metadata = {k: v for k, v in metadata.items()} | {"general.file_type": ggml.TYPES[kind_name].file_type}
    gguf_file.write(out, metadata, tensors)
    plain.unlink()
    return out


def made(model: Path, work: Path, who: str, kind: str, calibration: Path) -> Path:
    from fewbit.llm import export, imatrix, quantize
    from fewbit.llm.options import Options

    out, importance, folder = work / f"{who}-{kind}.gguf", work / "importance.gguf", work / f"out-{kind}"
    if out.exists():
        return out
    if "imatrix" in who and not importance.exists():
        squares, tokens = imatrix.measure(model, calibration, 64, 512)
        imatrix.write(importance, squares, tokens, calibration.name, 512)
    if who == "ours":
        quantize.quantize(model, folder, export.find("gguf").options(model, kind, Options()), calibration)
        export.export(folder, out, "gguf")
    elif who == "rtn+imatrix":
        export.export(model, out, "gguf", kind, Options(method="rtn"), importance=importance)
    elif who == "f32":
        export.export(model, out, "gguf", "f32")
    else:
        theirs(model, out, kind, imatrix.read(importance).squares if who == "imatrix" else None)
    return out


def in_fewbit(folder: Path, windows: np.ndarray) -> dict[str, float]:
    """The perplexity that `fewbit llm perplexity` gives on the same ids, if the folder is there still."""
    import torch

    from fewbit.llm import perplexity

    if not folder.is_dir():
        return {}
    found = perplexity.perplexity(perplexity.load(folder), torch.from_numpy(windows), None)
    return {"in_fewbit": found["perplexity"]}


def table(path: Path) -> None:
    """Markdown, of each type over the most windows that all of its files were measured on; a later row counts."""
    rows = {(r["who"], r["type"], r["windows"]): r for r in map(json.loads, path.read_text().splitlines())}
    lines = [cells for kind in TYPES if (cells := line(rows, kind))]
    titles = list(dict.fromkeys(title for cells in lines for title in cells))
    print("| " + " | ".join(titles) + " |\n" + "|---" * len(titles) + "|")
    for cells in lines:
        print("| " + " | ".join(cells.get(title, "") for title in titles) + " |")


def line(rows: dict[tuple, dict], kind: str) -> dict[str, str]:
    """Title -> cell."""
    for windows in sorted({key[2] for key in rows}, reverse=True):
        wanted = [("f32", "f32", windows), *((who, kind, windows) for who in ("theirs", "imatrix", "ours"))]
        if all(key in rows for key in wanted):
            base, *others = (rows[key]["perplexity"] for key in wanted)
            plain, matrix, ours = (p - base for p in others)
            found = {"type": kind, "windows": str(windows), "float32": f"{base:.3f}"}
            found |= {title: f"{p:.3f}" for title, p in zip(("llama.cpp", "with its matrix", "ours"), others, strict=True)}
            found |= {"over float": f"{ours / base:.2%}"}
            shares = {"of its loss": f"{ours / plain:.0%}", "of its loss with a matrix": f"{ours / matrix:.0%}"}
            found |= kl(*(rows[key] for key in wanted[1:])) or shares
            own = rows[wanted[3]].get("in_fewbit")
            return found | {"in fewbit": f"{own:.3f}" if own else "", "MB": f"{rows[wanted[3]]['bytes'] / 1e6:.1f}"}
    return {}


def kl(theirs: dict, matrix: dict, ours: dict) -> dict[str, str]:
    if not all("kl" in r for r in (theirs, matrix, ours)):
        return {}
    """The divergences, where they were measured: perplexity hardly tells the types of more bits apart."""
    titles = ("KL: llama.cpp", "KL: with its matrix", "KL: ours")
    return {title: f"{r['kl']:.2e}" for title, r in zip(titles, (theirs, matrix, ours), strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--only", nargs="*", help="WHO:TYPE, or f32")
    parser.add_argument("--types", nargs="*", default=SMALL, help=f"of {', '.join(TYPES)}; those of 32 columns")
    parser.add_argument("--kl", action="store_true", help="the divergence from the float32 file too, run beside")
    parser.add_argument("--windows", type=int, default=12)
    parser.add_argument("--window", type=int, default=1024, help="tokens of one")
    parser.add_argument("--work", type=Path, help="where files go; a temporary folder")
    parser.add_argument("--table", type=Path)
    a = parser.parse_args()
    if a.table:
        return table(a.table)
    if not (a.model and a.out):
        parser.error("give MODEL and -o, or --table")
    import llama_cpp

    from fewbit.llm import calibration as c

    cases = a.only or ["f32", *(f"{who}:{kind}" for kind in a.types for who in ("ours", "theirs", "imatrix", "rtn+imatrix"))]
    with tempfile.TemporaryDirectory() as temporary:
        work = a.work or Path(temporary)
        calibration, whole = texts(a.model, work)
        windows = c.windows(c.tokens(a.model, whole), a.window, 4096, 0.5, a.windows, str(whole)).numpy()
        base = made(a.model, work, "f32", "f32", calibration) if a.kl else None
        for case in cases:
            who, _, kind = case.partition(":")
            path, began = made(a.model, work, who, kind or who, calibration), time.perf_counter()
            row = {"who": who, "type": kind or who, "windows": a.windows, "bytes": path.stat().st_size}
            row |= llama_cpp.measured(path, windows, base) | {"measure_seconds": time.perf_counter() - began}
            if who in ("ours", "f32"):
                row |= in_fewbit(a.model if who == "f32" else work / f"out-{kind}", windows)
            with a.out.open("a") as f:
                f.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
