"""Files that nobody meets half written: written beside, then renamed."""

import os
from pathlib import Path

from fewbit.errors import FewbitError


def check_new(path: Path) -> None:
    """Refuse, before any work, a name that is taken or whose folder does not exist."""
    if path.exists():
        raise FewbitError(f"{path}: exists; remove it or choose another name")
    if not path.parent.is_dir():
        raise FewbitError(f"{path}: the folder {path.parent} does not exist")


def write_whole(path: str | Path, content: bytes | str) -> int:
    """Write content (text as UTF-8) to path; its bytes. The folder must exist."""
    path, data = Path(path), content.encode() if isinstance(content, str) else content
    if not path.parent.is_dir():
        raise FewbitError(f"{path}: the folder {path.parent} does not exist")
    if path.is_dir():
        raise FewbitError(f"{path}: is a folder; give the name of a file")
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return len(data)
