"""fewbit: a trained network to few bits, what that cost in return, and a file that runs."""

from typing import Any

from fewbit.errors import FewbitError, extras

__all__ = ["FewbitError", "Scheme", "amp", "evaluate", "llm", "load", "quantize", "rl", "search"]
_WHERE = {
    "quantize": "fewbit.pipeline",
    "evaluate": "fewbit.pipeline",
    "search": "fewbit.pipeline",
    "load": "fewbit.engine.load",
    "Scheme": "fewbit.graph.qdq",
}
_MODULES = {"amp": "fewbit.train.amp", "llm": "fewbit.llm", "rl": "fewbit.rl"}


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def __getattr__(name: str) -> Any:
    """Imported when asked for: a robot that loads an artifact needs neither torch nor gymnasium."""
    import importlib.metadata

    if name in _MODULES:
        with extras():
            return importlib.import_module(_MODULES[name])
    if name == "__version__":
        return importlib.metadata.version("fewbit")
    if name not in _WHERE:
        raise AttributeError(f"module fewbit has no attribute {name}")
    with extras():
        return getattr(importlib.import_module(_WHERE[name]), name)
