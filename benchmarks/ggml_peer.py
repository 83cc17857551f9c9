"""llama.cpp's CPU matrix-vector product through ctypes, for llm_kernels.py: a shared library that exports ggml (a build of ggml,
or the one in the wheel xllamacpp)."""

import ctypes as c
from pathlib import Path

import numpy as np

TYPES = {"F32": 0, "Q4_0": 2, "Q4_1": 3, "Q8_0": 8}
NUMBERS = ("ggml_backend_graph_compute", "ggml_cpu_has_")  # functions that return an int; the others here: a pointer, or nothing
LOG = c.CFUNCTYPE(None, c.c_int, c.c_char_p, c.c_void_p)


class _Parameters(c.Structure):
    _fields_ = [("mem_size", c.c_size_t), ("mem_buffer", c.c_void_p), ("no_alloc", c.c_bool)]


class Ggml:
    """One library (or the several files of one build), its CPU backend, and products of copies of one weight."""

    def __init__(self, paths: list[Path]):
        self._libraries = [c.CDLL(str(p), mode=c.RTLD_LOCAL) for p in paths]
        self._silent = LOG(lambda *_: None)
        self.call("ggml_log_set", self._silent, None)
        self._backend = self.call("ggml_backend_cpu_init")

    def call(self, name: str, *arguments):
        return self._find(name)(*arguments)

    def _find(self, name: str):
        for library in self._libraries:
            if hasattr(library, name):
                f = library[name]
                f.restype = c.c_char_p if name.endswith("_name") else c.c_int if name.startswith(NUMBERS) else c.c_void_p
                return f
        raise AttributeError(f"no library exports {name}")

    def features(self) -> str:
        known = ("avx2", "f16c", "avx512", "avx512_vnni", "avx_vnni", "llamafile")
        return ", ".join(k for k in known if self.call(f"ggml_cpu_has_{k}"))

    def repacked(self):
        """The buffer type that rearranges weights as they are set, or None."""
        registry = c.c_void_p(self.call("ggml_backend_cpu_reg"))
        device = c.c_void_p(self.call("ggml_backend_reg_dev_get", registry, c.c_size_t(0)))
        address = self.call("ggml_backend_reg_get_proc_address", registry, b"ggml_backend_dev_get_extra_bufts")
        found = c.CFUNCTYPE(c.POINTER(c.c_void_p), c.c_void_p)(address)(device) if address else None
        k = 0
        while found and found[k]:
            if b"REPACK" in self.call("ggml_backend_buft_name", c.c_void_p(found[k])):
                return found[k]
            k += 1
        return None

    def products(self, weight: np.ndarray, kind: str, copies: int, x: np.ndarray, repacked: bool, threads: int):
        """(a call for each copy, the last one's result()), or None: no such buffer."""
        buffer = self.repacked() if repacked else self.call("ggml_backend_cpu_buffer_type")
        if buffer is None:
            return None
        out, width = weight.shape
        held, work = (c.c_void_p(self.call("ggml_init", _Parameters(64 << 20, None, True))) for _ in range(2))
        sizes = c.c_int64(width), c.c_int64(out)
        weights = [c.c_void_p(self.call("ggml_new_tensor_2d", held, TYPES[kind], *sizes)) for _ in range(copies)]
        vector = c.c_void_p(self.call("ggml_new_tensor_2d", work, TYPES["F32"], c.c_int64(width), c.c_int64(1)))
        results = [c.c_void_p(self.call("ggml_mul_mat", work, w, vector)) for w in weights]
        graphs = [c.c_void_p(self.call("ggml_new_graph_custom", work, c.c_size_t(8), False)) for _ in results]
        for graph, r in zip(graphs, results, strict=True):
            self.call("ggml_build_forward_expand", graph, r)
        assert self.call("ggml_backend_alloc_ctx_tensors_from_buft", held, c.c_void_p(buffer))
        plain = c.c_void_p(self.call("ggml_backend_cpu_buffer_type"))
        assert self.call("ggml_backend_alloc_ctx_tensors_from_buft", work, plain)
        content = self._quantized(weight, kind)
        for w in weights:
            self._set(w, content)
        self._set(vector, np.ascontiguousarray(x, np.float32).view(np.uint8).reshape(-1))

        self.call("ggml_backend_cpu_set_n_threads", c.c_void_p(self._backend), threads)
        compute, backend = self._find("ggml_backend_graph_compute"), c.c_void_p(self._backend)
        calls = [lambda g=graph: compute(backend, g) for graph in graphs]
        assert calls[-1]() == 0

        def result() -> np.ndarray:
            y = np.empty(out, np.float32)
            self.call("ggml_backend_tensor_get", results[-1], y.ctypes.data_as(c.c_void_p), c.c_size_t(0), c.c_size_t(y.nbytes))
            return y

        return calls, result

    def _quantized(self, weight: np.ndarray, kind: str) -> np.ndarray:
        size = {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}[kind]
        rows, width = weight.shape
        data, to = np.ascontiguousarray(weight, np.float32), np.empty(rows * width // 32 * size, np.uint8)
        source, target = (a.ctypes.data_as(c.c_void_p) for a in (data, to))
        self.call("ggml_quantize_chunk", TYPES[kind], source, target, c.c_int64(0), c.c_int64(rows), c.c_int64(width), None)
        return to

    def _set(self, tensor: c.c_void_p, content: np.ndarray) -> None:
        data = content.ctypes.data_as(c.c_void_p)
        self.call("ggml_backend_tensor_set", tensor, data, c.c_size_t(0), c.c_size_t(content.nbytes))
