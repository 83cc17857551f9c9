"""The tensors of a checkpoint's safetensors files, one at a time, without torch."""

from pathlib import Path

import ml_dtypes
import numpy as np

from fewbit import checkpoint
from fewbit.errors import FewbitError

DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "U8": np.uint8}
DTYPES |= {"I8": np.int8, "I32": np.int32, "I64": np.int64, "F8_E4M3": ml_dtypes.float8_e4m3fn}


class Tensors:
    """By name; read when asked for; nothing stays mapped."""

    def __init__(self, folder: Path):
        files = checkpoint.shards(folder)
        if not files:
            raise FewbitError(
                f"{folder}: no safetensors file; give the folder of a checkpoint, or what `fewbit llm quantize` wrote"
            )
        self.folder = folder
        gone = next((path for path in files if not path.is_file()), None)
        if gone:
            raise FewbitError(f"{gone}: no such file, which the index names; copy it or download it again")
        held = {path: checkpoint.entries(path) for path in files}
        places = checkpoint.merged((path, header) for path, (header, _) in held.items())
        self._places = {name: (path, held[path][1], entry) for name, (path, entry) in places.items()}

    def __iter__(self):
        return iter(self._places)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor; an error where no file has it."""
        if name not in self._places:
            raise FewbitError(f"{self.folder}: tensor {name[:80]} is missing; download it again, or quantize again")
        return tuple(self._places[name][2]["shape"])

    def __call__(self, name: str) -> np.ndarray | None:
        """The array, or None where no file has it."""
        if name not in self._places:
            return None
        path, start, entry = self._places[name]
        if entry["dtype"] not in DTYPES:
            raise FewbitError(f"{path}: {name} is {entry['dtype'][:20]}; known are {', '.join(DTYPES)}")
        first, end = entry["data_offsets"]
        dtype = np.dtype(DTYPES[entry["dtype"]])
        found = np.fromfile(path, dtype, (end - first) // dtype.itemsize, offset=start + first)
        return found.reshape(entry["shape"])
