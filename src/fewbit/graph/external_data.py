"""Weights that lie in files beside the ONNX file, as torch.onnx.export writes them: found, checked, and taken into the model.

A file that a stranger sent may name any path. What is read is a regular file in the model's own folder or below it, or, in a
Hugging Face cache, the blob of the same repository that a link there stands for.
"""

from pathlib import Path

import onnx
from onnx import TensorProto

from fewbit.errors import FewbitError
from fewbit.graph import tensors


def load(proto: onnx.ModelProto, folder: Path) -> list[Path]:
    """Take every tensor that lies in another file into the model, in place.

    Args:
        proto: the model as it was parsed; nothing of it is trusted.
        folder: where the model's file lies.

    Returns:
        The files that were read, in the order of their first use.

    Raises:
        FewbitError: a location that leaves the folder, a file that is missing, too short or no regular file, or 2 GiB and more.
    """
    found = [t for t in tensors.every(proto) if t.data_location == TensorProto.EXTERNAL]
    if sum(tensors.nbytes(t) for t in found) + proto.ByteSize() >= tensors.MAX_BYTES:
        raise FewbitError("it holds 2 GiB of weights or more; fewbit reads ONNX files of less")
    files: dict[str, Path] = {}
    for t in found:
        entry = {e.key: e.value for e in t.external_data}
        location = entry.get("location", "")
        if location not in files:
            files[location] = _file(t.name, location, folder)
        _take(t, files[location], entry)
    return list(files.values())


def _file(name: str, location: str, folder: Path) -> Path:
    what = f"initializer {name} lies in {location!r}"
    parts = Path(location).parts
    if not location or "\0" in location or "\\" in location or ":" in location or Path(location).is_absolute() or ".." in parts:
        raise FewbitError(f"{what}, which is no place in the model's own folder; save the model as one file")
    path = folder / location
    if not path.exists():
        raise FewbitError(f"{what}, which is not beside the model; copy that file there too, or save the model as one file")
    real = path.resolve()
    if not real.is_file():
        raise FewbitError(f"{what}, which is no file; save the model as one file")
    if not real.is_relative_to(folder.resolve()) and not _blob(real, folder):
        raise FewbitError(f"{what}, a link that leaves the model's folder; copy the file itself there")
    return real


def _blob(real: Path, folder: Path) -> bool:
    """Is it where the links of a Hugging Face snapshot lead: repository/snapshots/revision/file -> repository/blobs/hash?"""
    above = folder.absolute()
    snapshots = next((p for p in [above, *above.parents] if p.name == "snapshots"), None)
    return snapshots is not None and real.parent == (snapshots.parent / "blobs").resolve()


def _take(t: TensorProto, path: Path, entry: dict[str, str]) -> None:
    need, size = tensors.nbytes(t), path.stat().st_size
    try:
        offset, length = int(entry.get("offset") or 0), int(entry.get("length") or need)
    except ValueError:
        raise FewbitError(f"initializer {t.name}: its place in {path.name} is no number; export the model again") from None
    if offset < 0 or length != need or offset + need > size:
        raise FewbitError(
            f"initializer {t.name} takes {need} bytes, {path.name} has {length} for it from byte {offset} of {size}; "
            "the two files are not of one export, or one is cut short"
        )
    with path.open("rb") as f:
        f.seek(offset)
        t.raw_data = f.read(need)
    t.data_location = TensorProto.DEFAULT
    del t.external_data[:]
