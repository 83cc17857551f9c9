"""What llama.cpp's types cost a language model, in llama.cpp: our files beside those of its own quantizer, the same token ids.

    python benchmarks/gguf.py MODEL -o benchmarks/results/gguf.jsonl [--only ours:q4_0 theirs:q4_0 f32] [--work FOLDER]
    python benchmarks/gguf.py --table benchmarks/results/gguf.jsonl > benchmarks/results/gguf.md

MODEL: the float32 checkpoint. Text and windows are benchmarks/llm.py's. "theirs" is ggml's quantizer on every Linear of the
blocks (embedding and head in q8_0, as ours), "imatrix" the same under the importance of the calibration text, "rtn+imatrix" our
search for scales under it. llama.cpp is the library in the wheel xllamacpp; it rounds activations to 8 bits.
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

TYPES = ("q4_0", "q4_1", "iq4_nl", "q8_0")


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
    from fewbit.llm import export, imatrix
    from fewbit.llm.options import Options

    out, importance = work / f"{who}-{kind}.gguf", work / "importance.gguf"
    if out.exists():
        return out
    if "imatrix" in who and not importance.exists():
        squares, tokens = imatrix.measure(model, calibration, 64, 512)
        imatrix.write(importance, squares, tokens, calibration.name, 512)
    if who == "ours":
        folder = work / f"out-{kind}"  # from a run before, if there is one
        export.export(folder if folder.exists() else model, out, "gguf", "" if folder.exists() else kind, Options(), calibration)
    elif who == "rtn+imatrix":
        export.export(model, out, "gguf", kind, Options(method="rtn"), importance=importance)
    elif who == "f32":
        export.export(model, out, "gguf", "f32")
    else:
        theirs(model, out, kind, imatrix.read(importance).squares if who == "imatrix" else None)
    return out


def table(path: Path) -> None:
    """Markdown, of each type over the most windows that all of its files were measured on; a later row counts."""
    rows = {(r["who"], r["type"], r["windows"]): r for r in map(json.loads, path.read_text().splitlines())}
    titles = [
        "type",
        "windows",
        "float32",
        "llama.cpp",
        "with a matrix",
        "ours",
        "over float",
        "of its loss",
        "with a matrix",
        "MB",
    ]
    print("| " + " | ".join(titles) + " |\n" + "|---" * len(titles) + "|")
    for kind in TYPES:
        for windows in sorted({key[2] for key in rows}, reverse=True):
            wanted = [("f32", "f32", windows), *((who, kind, windows) for who in ("theirs", "imatrix", "ours"))]
            if all(key in rows for key in wanted):
                base, theirs, matrix, ours = (rows[key]["perplexity"] for key in wanted)
                lost = ours - base
                cells = [f"{x:.3f}" for x in (base, theirs, matrix, ours)]
                cells += [f"{lost / base:.1%}", f"{lost / (theirs - base):.0%}", f"{lost / (matrix - base):.0%}"]
                print(f"| {kind} | {windows} | " + " | ".join(cells) + f" | {rows[wanted[3]]['bytes'] / 1e6:.0f} |")
                break


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--only", nargs="*", help="WHO:TYPE, or f32")
    parser.add_argument("--windows", type=int, default=12)
    parser.add_argument("--work", type=Path, help="where files go; a temporary folder")
    parser.add_argument("--table", type=Path)
    a = parser.parse_args()
    if a.table:
        return table(a.table)
    if not (a.model and a.out):
        parser.error("give MODEL and -o, or --table")
    import llama_cpp

    from fewbit.llm import calibration as c

    cases = a.only or ["f32", *(f"{who}:{kind}" for kind in TYPES for who in ("ours", "theirs", "imatrix", "rtn+imatrix"))]
    with tempfile.TemporaryDirectory() as temporary:
        work = a.work or Path(temporary)
        calibration, whole = texts(a.model, work)
        windows = c.windows(c.tokens(a.model, whole), 1024, 4096, 0.5, a.windows, str(whole)).numpy()
        for case in cases:
            who, _, kind = case.partition(":")
            path, began = made(a.model, work, who, kind or who, calibration), time.perf_counter()
            row = {
                "who": who,
                "type": kind or who,
                "windows": a.windows,
                "bytes": path.stat().st_size,
                "perplexity": llama_cpp.perplexity(path, windows),
            }
            with a.out.open("a") as f:
                f.write(json.dumps(row | {"measure_seconds": time.perf_counter() - began}) + "\n")


if __name__ == "__main__":
    main()
