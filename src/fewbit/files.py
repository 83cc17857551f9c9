"""Files that nobody meets half written: written beside, then renamed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fewbit.errors import FewbitError


def check_new(path: Path) -> None:
    """Refuse, before any work, a name that is taken or whose folder does not exist."""
    if path.exists():
        raise FewbitError(f"{path}: exists; remove it or choose another name")
    if not path.parent.is_dir():
        raise FewbitError(f"{path}: the folder {path.parent} does not exist")


def write_whole(path: str | Path, content: bytes | str) -> int:
    """Write content (text as UTF-8) to path, in the place of a file that is there, with the mode that the umask gives; its bytes.

    Raises:
        FewbitError: the folder does not exist, or the file cannot be written whole (the disk is full, say); path is as it was.
    """
    path, data = Path(path), content.encode() if isinstance(content, str) else content
    check_writable(path)
    part = _part(path)
    try:
        part.write_bytes(data)
        os.replace(part, path)
    except OSError as e:
        raise _refusal(path, e) from None
    finally:
        part.unlink(missing_ok=True)
    return len(data)


def check_writable(path: str | Path, source: str | Path | None = None) -> None:
    """Refuse, before any work is done for it, a path that write_whole could not write, or that is the source of that work."""
    path = Path(path)
    if not path.parent.is_dir():
        raise FewbitError(f"{path}: the folder {path.parent} does not exist")
    if path.is_dir():
        raise FewbitError(f"{path}: is a folder; give the name of a file")
    if source is not None and path.exists() and Path(source).exists() and path.samefile(source):
        raise FewbitError(f"{path}: is the file to read, and would be lost; give another name to write to")
    part = _part(path)
    try:
        part.touch()
        part.unlink()
    except OSError as e:
        raise _refusal(path, e) from None


@contextmanager
def said_in_one_line(path: Path) -> Iterator[None]:
    """What the system refuses while path is written (a full disk, no permission) as one line about path."""
    try:
        yield
    except OSError as e:
        raise _refusal(path, e) from None


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Keep path's place to this process: a second one that would write there is refused. A kill gives it free again.

    Raises:
        FewbitError: Another process is at it.
    """
    try:
        import fcntl
    except ImportError:  # Windows has no such locks
        yield
        return
    lock = path.with_name(f".{path.name}.lock")
    with said_in_one_line(path):
        held = lock.open("w")
    with held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = lock.exists() and os.path.samestat(os.fstat(held.fileno()), lock.stat())
        except OSError:
            ours = False
        if not ours:  # held, or just given free and removed by the process that had it
            raise FewbitError(f"{path}: another run is writing it; wait for its end, or choose another name")
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _part(path: Path) -> Path:
    """Of this process: another one that writes the same file has its own, and the last to finish is kept."""
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def _refusal(path: Path, e: OSError) -> FewbitError:
    return FewbitError(f"{path}: cannot be written ({e.strerror}); give a place that can be")
