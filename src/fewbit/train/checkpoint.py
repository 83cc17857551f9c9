"""A training run on disk: written whole after every round, read back only into the run that it belongs to."""

import io
from collections.abc import Callable
from pathlib import Path

import torch

from fewbit.errors import FewbitError
from fewbit.files import write_whole
from fewbit.train.distill import Run


def functions(path: Path | None, belongs: str) -> tuple[Callable[[Run], None], Callable[[Run], None]]:
    """(resume, save) for `distill.fit`. belongs: names all that decides the result; another run's file is started over."""

    def resume(run: Run) -> None:
        if path is not None and path.exists():
            found = read(path)
            if found.get("belongs") == belongs:
                restore(run, found)

    def save(run: Run) -> None:
        if path is not None:
            write_whole(path, to_bytes(run, belongs))

    return resume, save


def to_bytes(run: Run, belongs: str) -> bytes:
    buffer = io.BytesIO()
    state = {"module": run.student.module.state_dict(), "adam": run.adam.state_dict(), "generator": run.generator.get_state()}
    torch.save(state | {"belongs": belongs, "rows": run.rows, "done": run.done, "kept": run.kept}, buffer)
    return buffer.getvalue()


def read(path: Path) -> dict:
    try:
        found = torch.load(path, weights_only=True)
        if not isinstance(found, dict):
            raise ValueError
        return found
    except Exception:
        raise FewbitError(f"{path}: not a training checkpoint, or damaged; remove it to start over") from None


def restore(run: Run, found: dict) -> None:
    run.student.module.load_state_dict(found["module"])
    run.adam.load_state_dict(found["adam"])
    run.generator.set_state(found["generator"])
    for mine, saved in ((run.rows, found["rows"]), (run.done, found["done"]), (run.kept, found["kept"])):
        mine.clear()
        mine.update(saved)
