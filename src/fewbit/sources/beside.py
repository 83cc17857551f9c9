"""The normaliser's file that lies beside a Stable-Baselines3 zip, by name or by its first bytes; nothing is unpickled."""

import re
from pathlib import Path

from fewbit.errors import FewbitError

USUAL = "vecnormalize.pkl"  # as RL Zoo calls it
PICKLES = (".pkl", ".pickle", ".p")
_WORD = re.compile(r"(vec|obs|env)?[_-]?norm(alize[rd]?|alization|s)?(?![a-z])", re.IGNORECASE)
_CLASS = (b"vec_normalize", b"VecNormalize")  # what such a pickle names first


def find(path: Path) -> Path | None:
    """The VecNormalize that belongs to the zip.

    Args:
        path: of the zip.

    Returns:
        The one named after the zip (agent_vecnormalize.pkl, or a checkpoint's rl_model_vecnormalize_1000_steps.pkl), else
        vecnormalize.pkl, else the only one that is not named after another zip of the folder; None where there is none.

    Raises:
        FewbitError: there are several, and no name tells which.
    """
    others = {_letters(p.stem) for p in path.parent.glob("*.zip")} - {_letters(path.stem)}
    found = [p for p in sorted(path.parent.iterdir()) if _is_one(p)] or _below(path.parent)
    own = [p for p in found if _owner(p) == _letters(path.stem)]
    usual = [p for p in found if p.name == USUAL]
    left = own or usual or [p for p in found if _owner(p) not in others]
    if len(left) > 1:
        names = ", ".join(p.name for p in left)
        raise FewbitError(f"{path}: several normalisers lie beside it ({names}); give --normalizer FILE, or --normalizer none")
    return left[0] if left else None


def _below(folder: Path) -> list[Path]:
    """RL Zoo keeps best_model.zip in ID_1/, its normaliser in ID_1/ID/, where no other zip is."""
    return [p for p in sorted(folder.glob(f"*/{USUAL}")) if not any(p.parent.glob("*.zip"))]


def _is_one(path: Path) -> bool:
    if not path.is_file() or path.suffix in (".zip", ".onnx"):
        return False
    if path.suffix in PICKLES and _WORD.search(path.stem):
        return True
    try:
        with open(path, "rb") as file:
            start = file.read(512)
    except OSError:
        return False
    return all(word in start for word in _CLASS)


def _owner(path: Path) -> str:
    """Whose it is by its name: what is left of it without the word for a normaliser."""
    return _letters(_WORD.sub("", path.stem))


def _letters(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())
