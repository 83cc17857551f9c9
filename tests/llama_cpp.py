"""llama.cpp itself, for comparison: the library inside the wheel `xllamacpp`, through ctypes.

    model = Model("model.gguf"); model.logits(ids)      float32 [n, vocabulary]
    quantize(weight, number, importance)                ggml's own quantizer, uint8 [out, bytes of a row]

Structures that are handed over whole are given room to spare: their sizes differ by version, their first fields do not.
"""

import ctypes as c
from functools import cache
from pathlib import Path

import numpy as np

SPARE = 64


class _Opaque(c.Structure):
    _fields_ = [("words", c.c_uint64 * SPARE)]


class _Batch(c.Structure):
    _fields_ = [("n_tokens", c.c_int32)] + [(n, c.c_void_p) for n in ("token", "embd", "pos", "n_seq_id", "seq_id", "logits")]


@cache
def library() -> c.CDLL:
    import xllamacpp

    found = c.CDLL(str(next(Path(xllamacpp.__file__).parent.glob("xllamacpp*.so"))))
    results = {
        "llama_model_default_params": _Opaque, "llama_context_default_params": _Opaque, "ggml_quantize_chunk": c.c_size_t,
        "llama_get_logits": c.c_void_p, "llama_model_load_from_file": c.c_void_p, "llama_init_from_model": c.c_void_p,
        "llama_model_get_vocab": c.c_void_p, "llama_get_memory": c.c_void_p, "llama_vocab_n_tokens": c.c_int32,
        "llama_free": None, "llama_model_free": None,
    }  # fmt: skip
    for name, result in results.items():
        getattr(found, name).restype = result  # by index it would be another object each time
    found._silent = c.CFUNCTYPE(None, c.c_int, c.c_char_p, c.c_void_p)(lambda *_: None)
    found.llama_log_set(found._silent, None)
    found.llama_backend_init()
    return found


class Model:
    """One sequence at a time, on one thread."""

    def __init__(self, path: str | Path, context: int = 1024, threads: int = 1):
        lib = self._lib = library()
        self._model = lib.llama_model_load_from_file(str(path).encode(), lib.llama_model_default_params())
        if not self._model:
            raise ValueError(f"{path}: llama.cpp does not load it")
        parameters = lib.llama_context_default_params()
        (c.c_uint32 * 3).from_buffer(parameters)[:] = [context] * 3  # n_ctx, n_batch, n_ubatch
        self._context = lib.llama_init_from_model(c.c_void_p(self._model), parameters)
        if not self._context:
            raise ValueError(f"{path}: llama.cpp makes no context for it")
        lib.llama_set_n_threads(c.c_void_p(self._context), threads, threads)
        self._vocab = lib.llama_model_get_vocab(c.c_void_p(self._model))
        self.vocabulary = lib.llama_vocab_n_tokens(c.c_void_p(self._vocab))

    def logits(self, ids: np.ndarray) -> np.ndarray:
        n = len(ids)
        self._lib.llama_memory_clear(c.c_void_p(self._lib.llama_get_memory(c.c_void_p(self._context))), True)
        token, position = np.asarray(ids, np.int32), np.arange(n, dtype=np.int32)
        counts, wanted = np.ones(n, np.int32), np.ones(n, np.int8)
        sequence = np.zeros(1, np.int32)
        sequences = np.full(n, sequence.ctypes.data, np.uintp)
        arrays = (token, None, position, counts, sequences, wanted)
        batch = _Batch(n, *(None if a is None else a.ctypes.data for a in arrays))
        if self._lib.llama_decode(c.c_void_p(self._context), batch):
            raise ValueError("llama_decode failed")
        at = self._lib.llama_get_logits(c.c_void_p(self._context))
        return np.ctypeslib.as_array((c.c_float * (n * self.vocabulary)).from_address(at)).reshape(n, -1).copy()

    def tokenize(self, text: str, special: bool = False) -> list[int]:
        """special: with what the model's tokenizer puts before and behind a text."""
        data, room = text.encode(), (c.c_int32 * (len(text.encode()) + 8))()
        arguments = (
            c.c_void_p(self._vocab),
            data,
            c.c_int32(len(data)),
            room,
            c.c_int32(len(room)),
            c.c_bool(special),
            c.c_bool(False),
        )
        return list(room[: self._lib.llama_tokenize(*arguments)])

    def close(self) -> None:
        self._lib.llama_free(c.c_void_p(self._context))
        self._lib.llama_model_free(c.c_void_p(self._model))


def measured(path: str | Path, windows: np.ndarray, against: Path | None = None, threads: int = 1) -> dict[str, float]:
    """windows [n, length] of ids: every position predicts the next. kl: the mean of KL(against || this), in nats."""
    models = [Model(p, windows.shape[1], threads) for p in (path, against) if p]
    loss, kl = 0.0, 0.0
    for ids in windows:
        ours, *base = (_log_probabilities(m.logits(ids)[:-1]) for m in models)
        loss -= ours[np.arange(len(ours)), ids[1:]].sum()
        kl += sum((np.exp(p) * (p - ours)).sum() for p in base)
    for model in models:
        model.close()
    count = windows[:, 1:].size
    return {"perplexity": float(np.exp(loss / count))} | ({"kl": float(kl / count)} if against else {})


def _log_probabilities(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def quantize(weight: np.ndarray, number: int, row_bytes: int, importance: np.ndarray | None = None) -> np.ndarray:
    """weight float32 [out, in]; importance [in], as an imatrix gives it."""
    weight = np.ascontiguousarray(weight, np.float32)
    out = np.empty((len(weight), row_bytes), np.uint8)
    cost = None if importance is None else np.ascontiguousarray(importance, np.float32)
    pointers = [None if a is None else c.c_void_p(a.ctypes.data) for a in (weight, out, cost)]
    sizes = [c.c_int64(v) for v in (0, *weight.shape)]
    assert library().ggml_quantize_chunk(number, *pointers[:2], *sizes, pointers[2]) == out.nbytes
    return out
