"""Recorded observations: a file, arrays or a data loader's batches, as one array for each of a policy's inputs."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fewbit.errors import FewbitError

Arrays = np.ndarray | dict[str, np.ndarray]
Observations = str | Path | np.ndarray | dict[str, Any] | Iterable[Any]  # a file, arrays [n, ...], a data loader


def named(given: Observations, inputs: list[str], optional: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """The arrays by the names of a policy's inputs.

    Args:
        given: an array [n, ...] where there is one input; {input: array}; a file of either (see `read`); or an iterable of
            batches of either, of which a tuple's first element is taken, as in a data loader's (inputs, labels).
        inputs: the names, in order. optional: of inputs that need not be there.

    Returns:
        {input: array}; arrays of other names are left out, as recordings hold rewards and the like too.

    Raises:
        FewbitError: an input has no array, or something is no array of real numbers.
    """
    arrays = _arrays(given)
    if isinstance(arrays, np.ndarray):
        arrays = _only(arrays, inputs)
    elif len(inputs) == len(arrays) == 1:
        arrays = {inputs[0]: next(iter(arrays.values()))}  # there is nothing to mistake it for
    if missing := [name for name in inputs if name not in arrays]:
        held = ", ".join(arrays) or "nothing"
        raise FewbitError(f"the observations hold {held}; the policy takes {', '.join(inputs)}: {missing[0]} is missing")
    present = [*inputs, *(name for name in optional if name in arrays)]
    return {name: _numbers(arrays[name], f"the observations of {name}") for name in present}


def _only(array: np.ndarray, inputs: list[str]) -> dict[str, np.ndarray]:
    if len(inputs) > 1:
        example = ", ".join(f"{name}=..." for name in inputs) if all(map(str.isidentifier, inputs)) else "**arrays"
        raise FewbitError(
            f"the policy takes {', '.join(inputs)}, one array is not enough; give a .npz file with an array for each "
            f"(numpy.savez(FILE, {example})), in Python a dict, --env ID, or --state of what it remembers"
        )
    return {inputs[0]: array}


def _arrays(given: Observations) -> Arrays:
    if isinstance(given, str | Path):
        return read(Path(given))
    if isinstance(given, dict):
        return {str(name): _array(value) for name, value in given.items()}
    if isinstance(given, np.ndarray) or hasattr(given, "__array__"):
        return _array(given)
    if not isinstance(given, Iterable):
        raise FewbitError(f"observations: a {type(given).__name__}; give an array [n, ...], a dict of arrays, or a file's name")
    return _joined([b[0] if isinstance(b, tuple | list) and len(b) else b for b in given])


def _joined(batches: list[Any]) -> Arrays:
    """Batches one after the other."""
    if batches and all(isinstance(b, dict) and b.keys() == batches[0].keys() for b in batches):
        return {str(k): _concatenated([b[k] for b in batches]) for k in batches[0]}
    return _concatenated(batches)


def _concatenated(batches: list[Any]) -> np.ndarray:
    arrays = [_array(b) for b in batches]
    if any(a.ndim == 0 for a in arrays):
        raise FewbitError("the observations are neither an array [n, ...] nor batches of a data loader; use numpy.asarray")
    if len({a.shape[1:] for a in arrays}) > 1:
        raise FewbitError(f"the observations' batches have shapes {arrays[0].shape} and others; each must be [n, ...] alike")
    return np.concatenate(arrays) if arrays else np.zeros(0)


def _array(value: Any) -> np.ndarray:
    """A torch tensor too, wherever it lies."""
    try:
        return np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
    except (ValueError, TypeError):
        raise FewbitError(f"observations: a {type(value).__name__} that is no array; give a numpy.ndarray") from None


def _numbers(array: np.ndarray, what: str) -> np.ndarray:
    if array.dtype.kind not in "fiub":
        raise FewbitError(f"{what} are {array.dtype}; give real numbers")
    return array


def shapes(given: Observations | None) -> list[tuple[int, ...]]:
    """What one observation of one array may be: its shape without the first dimension, or the first two (episodes, steps)."""
    if isinstance(given, str | Path):
        try:
            given = read(Path(given))
        except FewbitError:  # said where they are calibrated on
            return []
    shape = tuple(int(n) for n in getattr(given, "shape", ()))
    return [shape[k:] for k in (1, 2) if len(shape) > k]


def read(path: Path) -> Arrays:
    """Arrays of a .npy or .npz file, or the table of a .csv file (one observation a line); never unpickles."""
    if not path.exists():
        raise FewbitError(f"{path}: no such file")
    if path.suffix.lower() == ".csv":
        return _table(path)
    try:
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.ndarray):
            return _numbers(found, str(path))
        with found:
            arrays = {name: found[name] for name in found.files}
        if not arrays or not all(isinstance(a, np.ndarray) for a in arrays.values()):
            raise ValueError
        return arrays
    except Exception:
        raise FewbitError(
            f"{path}: not a .npy array of numbers, or truncated; write it with numpy.save, numpy.savez, or as a .csv table"
        ) from None


def read_array(path: Path) -> np.ndarray:
    """The one array of a .npy or .csv file."""
    found = read(path)
    if isinstance(found, dict):
        raise FewbitError(f"{path}: holds arrays of several names; give a .npy file")
    return found


def _table(path: Path) -> np.ndarray:
    """[lines, columns] of numbers with commas between; one line of names above them is passed over."""
    try:
        lines = [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        names = not all(_is_number(cell) for cell in lines[0].split(","))
        if len(lines) > names:
            return np.loadtxt(lines[names:], delimiter=",", ndmin=2)
    except (ValueError, IndexError):
        pass
    raise FewbitError(f"{path}: not a table of numbers; give one observation a line, its numbers with commas between")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
