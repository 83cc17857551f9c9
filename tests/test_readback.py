"""What is exported is read back before it takes its name: a mistake of writer or disk leaves nothing."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import tiny_llm  # noqa: E402

from fewbit import gguf_file  # noqa: E402
from fewbit.errors import FewbitError  # noqa: E402
from fewbit.llm import artifact, awq_layout, export, gguf, plain, quantize, readback  # noqa: E402
from fewbit.llm.options import Options  # noqa: E402
from fewbit.llm.tensors import Tensors  # noqa: E402

ROUNDED = Options(group_size=32, method="rtn")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("readback")
    tiny_llm.save(folder / "m")
    quantize.quantize(folder / "m", folder / "sym", Options("int4", 32, True, "rtn"))
    quantize.quantize(folder / "m", folder / "asym", Options("int4", 32, method="rtn"))
    quantize.quantize(folder / "m", folder / "three", Options("int3", 32, method="rtn"))
    return folder


CASES = [
    ("sym", "compressed-tensors", ""), ("asym", "compressed-tensors", ""), ("three", "compressed-tensors", ""),
    ("sym", "gptq", ""), ("asym", "gptq", ""), ("asym", "awq", ""), ("sym", "gguf", ""), ("asym", "gguf", ""),
    ("three", "gguf", ""),
    ("m", "gguf", "f16"), ("m", "gguf", "f32"), ("m", "gguf", "q8_0"), ("m", "gguf", "q4_1"), ("m", "gguf", "iq4_nl"),
    *(("m", "compressed-tensors", kind) for kind in ("int8", "int4", "int3", "w8a8", "fp8", "fp8-block", "nvfp4", "mxfp4")),
]  # fmt: skip


@pytest.mark.parametrize(("source", "to", "kind"), CASES)
def test_every_layout_is_read_back(home, tmp_path, source, to, kind):
    record = export.export(home / source, tmp_path / "out", to, kind, ROUNDED)
    assert record["read_back"] >= 6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["int8", "int4", "w8a8", "fp8", "fp8-block", "nvfp4", "mxfp4"])
def test_rounding_in_a_checkpoints_own_dtype_is_within_the_step(tmp_path, kind, dtype):
    folder = tiny_llm.save(tmp_path / "m", dtype=dtype)
    assert export.export(folder, tmp_path / "out", "compressed-tensors", kind, ROUNDED)["read_back"] == 6


def swapped(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """The bytes of each word the other way round."""
    return torch.from_numpy(plain_pack(codes, bits).numpy().byteswap())


plain_pack = plain.pack_int32


@pytest.mark.parametrize(
    ("source", "to", "kind", "where", "name", "broken"),
    [
        ("sym", "compressed-tensors", "", plain, "pack_int32", swapped),
        ("m", "compressed-tensors", "int4", plain, "pack_int32", swapped),
        ("asym", "gptq", "", plain, "pack_int32", swapped),
        ("asym", "awq", "", awq_layout, "ORDER", (0, 1, 2, 3, 4, 5, 6, 7)),
        ("m", "compressed-tensors", "fp8", plain, "_fp8", lambda steps: (steps * 1.5).clamp(-448, 448).to(plain.FP8)),
        ("m", "compressed-tensors", "nvfp4", plain, "_fp4", lambda steps: torch.zeros(len(steps), steps.shape[1] // 2).byte()),
        ("sym", "gguf", "", gguf, "_order", lambda name, config: lambda rows: rows),
        ("m", "gguf", "f16", gguf, "_order", lambda name, config: lambda rows: rows),
        ("m", "gguf", "f16", gguf, "_float", lambda tensors, key: tensors(key).astype(np.float32) * np.float32(1.01)),
    ],
)
def test_a_writer_that_is_wrong_is_caught(home, tmp_path, monkeypatch, source, to, kind, where, name, broken):
    monkeypatch.setattr(where, name, broken)
    with pytest.raises(FewbitError, match="read back, is not what was") as caught:
        export.export(home / source, tmp_path / "out", to, kind, ROUNDED)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_a_file_that_lost_bytes_on_the_way_is_caught(home, tmp_path, monkeypatch):
    whole = gguf_file.read

    def short(path):
        with Path(path).open("r+b") as f:
            f.truncate(Path(path).stat().st_size - 4096)
        return whole(path)

    monkeypatch.setattr(gguf_file, "read", short)
    with pytest.raises(FewbitError, match="lies outside the file"):
        export.export(home / "sym", tmp_path / "out", "gguf")
    assert not list(tmp_path.iterdir())


def test_the_layouts_inverse_gives_the_artifacts_numbers(home, tmp_path):
    from fewbit.llm.packed import Layer

    wanted = artifact.state_dict(home / "asym")
    for to, read in (("compressed-tensors", readback.compressed), ("gptq", readback.gptq), ("awq", readback.awq)):
        export.export(home / "asym", tmp_path / to, to)
        held = Tensors(tmp_path / to)
        for name in (n for n in wanted if "_proj" in n):
            assert np.array_equal(read(name.removesuffix(".weight"), held, Layer("int4", 32, False)), wanted[name].numpy())
