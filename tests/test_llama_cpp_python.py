"""Our GGUF files in llama-cpp-python, built from source in its own environment: the logits and the perplexity that we compute.

    python -m pytest -m peer tests/test_llama_cpp_python.py         # minutes, nearly all of them the compiler's

FEWBIT_LLAMA_CPP_PYTHON: the interpreter of an environment that has it already; FEWBIT_PEERS: a folder to keep the new one in.
"""

import os
import subprocess
import venv
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.peer
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import tiny_llm  # noqa: E402

from fewbit.llm import export, perplexity, quantize  # noqa: E402
from fewbit.llm.options import Options  # noqa: E402
from fewbit.numerics import ggml  # noqa: E402

IDS = np.random.default_rng(0).integers(0, 256, 200)
TEXT = "It's 12345 o'clock,  isn't it?\n\n\n  naïve café 日本語\tx = y+1;\r\n"
BUILD = {"CMAKE_ARGS": "-DGGML_NATIVE=ON -DGGML_OPENMP=OFF -DLLAMA_CURL=OFF -DLLAVA_BUILD=OFF", "CMAKE_BUILD_PARALLEL_LEVEL": "1"}
INSIDE = """
import sys, llama_cpp, numpy as np
model = llama_cpp.Llama(sys.argv[1], n_ctx=256, logits_all=True, n_threads=1, verbose=False)
ids = np.load(sys.argv[2])
model.eval(ids.tolist())
tokens = model.tokenize(open(sys.argv[3], "rb").read(), add_bos=False)
np.savez(sys.argv[4], logits=model.scores[: len(ids)], tokens=tokens)
"""


@pytest.fixture(scope="module")
def interpreter(tmp_path_factory) -> str:
    if given := os.environ.get("FEWBIT_LLAMA_CPP_PYTHON"):
        return given
    folder = Path(os.environ.get("FEWBIT_PEERS") or tmp_path_factory.mktemp("peers")) / "llama-cpp-python"
    python = str(folder / "bin" / "python")
    if not Path(python).exists() or subprocess.run([python, "-I", "-c", "import llama_cpp"], capture_output=True).returncode:
        venv.create(folder, clear=True, with_pip=True)
        install = [python, "-m", "pip", "install", "-q", "--no-binary", "llama-cpp-python", "llama-cpp-python==0.3.36"]
        subprocess.run(install, check=True, env=os.environ | BUILD)
    return python


def theirs(interpreter: str, path: Path, folder: Path) -> tuple[np.ndarray, list[int]]:
    """(logits of IDS, tokens of TEXT)."""
    np.save(folder / "ids.npy", IDS)
    (folder / "text").write_bytes(TEXT.encode())
    files = [path, folder / "ids.npy", folder / "text", folder / "out.npz"]
    subprocess.run([interpreter, "-I", "-c", INSIDE, *map(str, files)], check=True)
    found = np.load(folder / "out.npz")
    return found["logits"], found["tokens"].tolist()


def loss(logits: np.ndarray) -> float:
    """Nats a token."""
    return float(torch.nn.functional.cross_entropy(torch.from_numpy(logits[:-1]).double(), torch.from_numpy(IDS[1:])))


@pytest.mark.parametrize("kind", ["f32", *ggml.TYPES])
def test_llama_cpp_python_computes_what_we_compute(interpreter, kind, tmp_path, record_property):
    folder = tiny_llm.save(tmp_path / "m", hidden_size=512, intermediate_size=512, num_hidden_layers=2, head_dim=128, calm=5)
    if kind != "f32":
        solved = export.find("gguf").options(folder, kind, Options(method="rtn"))
        quantize.quantize(folder, tmp_path / "folder", solved)
        folder = tmp_path / "folder"
    export.export(folder, tmp_path / "a.gguf", "gguf", "f32" if kind == "f32" else "")
    with torch.no_grad():
        ours = perplexity.load(folder)(input_ids=torch.tensor(IDS[None])).logits[0].numpy()
    logits, tokens = theirs(interpreter, tmp_path / "a.gguf", tmp_path)
    off, ratio = float((ours - logits).std() / ours.std()), np.exp(loss(logits) - loss(ours))
    record_property("measured", f"llama-cpp-python {kind}: logits {off:.2%} apart, perplexity {ratio - 1:+.3%}")
    assert off < (3e-3 if kind == "f32" else 0.04)  # it rounds activations to 8 bits beside quantized weights
    assert abs(ratio - 1) < 0.005
    assert tokens == transformers.AutoTokenizer.from_pretrained(folder)(TEXT)["input_ids"]
