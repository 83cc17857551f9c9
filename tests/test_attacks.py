"""Files that lie: every reader of GGUF and safetensors refuses them in one line, without memory that the file does not fill."""

import json
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import tiny_llm  # noqa: E402

from fewbit import checkpoint, gguf_file  # noqa: E402
from fewbit.errors import FewbitError  # noqa: E402
from fewbit.gguf_file import Tensor  # noqa: E402
from fewbit.llm import artifact, export, imatrix, quantize, source  # noqa: E402
from fewbit.llm.options import Options  # noqa: E402
from fewbit.llm.tensors import Tensors  # noqa: E402

METADATA = {"general.type": "imatrix", "a": 1, "b": [1, 2], "c": ["x", "yz"], "d": 0.5, "e": True}


@pytest.fixture(scope="module")
def matrix(tmp_path_factory) -> bytes:
    """A small importance matrix as GGUF."""
    path = tmp_path_factory.mktemp("attacks") / "a.gguf"
    sums = [Tensor.of("blk.0.attn_q.weight.in_sum2", np.ones((1, 64))), Tensor.of("blk.0.attn_q.weight.counts", np.ones((1, 1)))]
    gguf_file.write(path, METADATA, sums)
    return path.read_bytes()


def readers(path: Path) -> list:
    def all_tensors() -> None:
        for entry in gguf_file.read(path)[1].values():
            gguf_file.load(path, entry)

    return [all_tensors, lambda: imatrix.read(path)]


def refused(path: Path, content: bytes, must: bool = True) -> None:
    path.write_bytes(content)
    for read in readers(path):
        try:
            read()
        except FewbitError as e:
            assert "\n" not in str(e) and len(str(e)) < 500 + len(str(path))
        else:
            assert not must, "accepted"


def test_what_is_written_is_read(tmp_path, matrix):
    (tmp_path / "a").write_bytes(matrix)
    metadata, entries = gguf_file.read(tmp_path / "a")
    assert metadata == METADATA and sorted(entries) == ["blk.0.attn_q.weight.counts", "blk.0.attn_q.weight.in_sum2"]
    assert np.array_equal(imatrix.read(tmp_path / "a").squares["blk.0.attn_q.weight"], np.ones(64))


def test_a_gguf_file_cut_anywhere_is_refused(tmp_path, matrix):
    end = len(matrix) - 32  # the last tensor is 4 bytes and padding
    for size in range(0, end, 3):
        refused(tmp_path / "a", matrix[:size])


def test_a_gguf_file_with_any_byte_changed_is_read_or_refused(tmp_path, matrix):
    tracemalloc.start()
    for at in range(len(matrix)):
        for change in (1, 0x80):
            refused(tmp_path / "a", matrix[:at] + bytes([matrix[at] ^ change]) + matrix[at + 1 :], must=False)
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


def text(s: str) -> bytes:
    return struct.pack("<Q", len(s.encode())) + s.encode()


def header(tensors: list[bytes], keys: list[bytes] = (), count: int | None = None, version: int = 3) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors) if count is None else count, len(keys)) + b"".join(keys)
    made = head + b"".join(tensors)
    return made + b"\0" * (-len(made) % 32) + b"\0" * 256


def entry(name: str = "a", shape: tuple[int, ...] = (8,), number: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, number, offset)


HUGE = 1 << 62
LIES = {
    "version": header([entry()], version=9),
    "tensors": header([entry()], count=HUGE),
    "offset": header([entry(offset=HUGE)]),
    "offset behind the end": header([entry(offset=256)]),
    "offset off alignment": header([entry(offset=4)]),
    "overlap": header([entry("a"), entry("b")]),
    "twice": header([entry("a"), entry("a", offset=32)]),
    "shape": header([entry(shape=(HUGE,))]),
    "shape whose size overflows": header([entry(shape=(1 << 33, 1 << 33))]),
    "dimensions": header([text("a") + struct.pack("<I", 1 << 31)]),
    "nothing": header([entry(shape=(0, 8))]),
    "type": header([entry(number=4000)]),
    "rows that are no blocks": header([entry(shape=(8,), number=2)]),
    "path": header([entry("../../etc/passwd")]),
    "windows path": header([entry("..\\a")]),
    "name with a newline": header([entry("a\nb")]),
    "long name": header([entry("a" * 4000)]),
    "name not UTF-8": header([struct.pack("<Q", 2) + b"\xff\xfe" + entry()[9:]]),
    "key": header([], [struct.pack("<Q", HUGE)]),
    "key twice": header([], [text("k") + struct.pack("<II", 4, 1)] * 2),
    "string": header([], [text("k") + struct.pack("<IQ", 8, HUGE)]),
    "array": header([], [text("k") + struct.pack("<IIQ", 9, 4, HUGE)]),
    "array of strings": header([], [text("k") + struct.pack("<IIQ", 9, 8, HUGE)]),
    "array of arrays": header([], [text("k") + struct.pack("<IIQ", 9, 9, 1) * 50]),
    "value type": header([], [text("k") + struct.pack("<I", 77)]),
    "alignment 0": header([entry()], [text("general.alignment") + struct.pack("<II", 4, 0)]),
    "alignment 3": header([entry()], [text("general.alignment") + struct.pack("<II", 4, 3)]),
    "alignment text": header([entry()], [text("general.alignment") + struct.pack("<I", 8) + text("32")]),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_gguf_file_that_lies_is_refused(tmp_path, lie):
    refused(tmp_path / "a", LIES[lie])


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("safetensors")
    tiny_llm.save(folder / "m", num_hidden_layers=1)
    quantize.quantize(folder / "m", folder / "out", Options("int4", 32, method="rtn"))
    return folder


def _lying(path: Path, how: str) -> bytes:
    """A safetensors file with one thing in its header changed."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    held, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    names = sorted((n for n in held if n != "__metadata__"), key=lambda n: held[n]["data_offsets"])
    first, second = held[names[0]], held[names[1]]
    begin, end = first["data_offsets"]
    changes = {
        "offsets behind the end": lambda: first.update(data_offsets=[begin, end + (1 << 60)]),
        "negative offsets": lambda: first.update(data_offsets=[-8, end]),
        "offsets reversed": lambda: first.update(data_offsets=[end, begin]),
        "offsets that are text": lambda: first.update(data_offsets=["0", "8"]),
        "overlap and a hole": lambda: second.update(
            data_offsets=[begin, begin + second["data_offsets"][1] - second["data_offsets"][0]]
        ),
        "shape": lambda: first.update(shape=[1 << 40, 1 << 40]),
        "shape that is no list": lambda: first.update(shape=7),
        "dtype": lambda: first.update(dtype=["F32"]),
        "no shape": lambda: first.pop("shape"),
        "entry that is no object": lambda: held.update({names[0]: 3}),
    }
    if how in changes:
        changes[how]()
    header = json.dumps(held).encode()
    made = {
        "nested": b"[" * 100_000,
        "not JSON": b"\xff" * 64,
        "no object": b"[1]",
    }.get(how, header)
    size = {"length": 1 << 60, "length past the end": len(data)}.get(how, len(made))
    return size.to_bytes(8, "little") + made + (body[:-5] if how == "truncated" else body)


SAFETENSORS = [
    "offsets behind the end", "negative offsets", "offsets reversed", "offsets that are text", "overlap and a hole", "shape",
    "shape that is no list", "dtype", "no shape", "entry that is no object", "nested", "not JSON", "no object", "length",
    "length past the end", "truncated",
]  # fmt: skip


@pytest.mark.parametrize("how", SAFETENSORS)
def test_a_safetensors_file_that_lies_is_refused_by_every_reader(home, tmp_path, how):
    import shutil

    for name in ("m", "out"):
        shutil.copytree(home / name, tmp_path / name)
    for path in (tmp_path / "m" / "model.safetensors", tmp_path / "out" / "model-00002-of-00002.safetensors"):
        path.write_bytes(_lying(path, how))
    damaged, (out, m) = tmp_path / "m" / "model.safetensors", (tmp_path / "out", tmp_path / "m")
    for read in (
        lambda: checkpoint.read_header(damaged),
        lambda: source.open_source(m),
        lambda: Tensors(out),
        lambda: artifact.state_dict(out),
        lambda: export.export(m, tmp_path / "made", "gguf", "f16"),
        lambda: export.export(out, tmp_path / "made", "gguf"),
        lambda: export.export(out, tmp_path / "made", "compressed-tensors"),
        lambda: export.export(m, tmp_path / "made", "compressed-tensors", "fp8"),
    ):
        with pytest.raises(FewbitError) as caught:
            read()
        assert "\n" not in str(caught.value)
    assert not [p for p in tmp_path.iterdir() if "made" in p.name]


def test_an_index_that_names_a_path_reads_nothing_outside_the_folder(home, tmp_path):
    import shutil

    shutil.copytree(home / "out", tmp_path / "out")
    shutil.copyfile(home / "m" / "model.safetensors", tmp_path / "outside.safetensors")
    index = tmp_path / "out" / artifact.INDEX
    held = json.loads(index.read_text())
    held["weight_map"] = dict.fromkeys(held["weight_map"], "../outside.safetensors")
    index.write_text(json.dumps(held))
    for read in (lambda: artifact.state_dict(tmp_path / "out"), lambda: export.export(tmp_path / "out", tmp_path / "a", "gguf")):
        with pytest.raises(FewbitError, match="outside.safetensors"):
            read()
    assert not (tmp_path / "a").exists()
