"""The one error that users see: what is wrong and where, and what to do about it, in one line."""

from collections.abc import Iterator
from contextlib import contextmanager


class FewbitError(Exception):
    """Bad input, or something asked for that cannot be done; the command line prints it and exits 2."""


class Unsupported(FewbitError):
    """A sound graph that has more than fewbit's own engine runs; ONNX Runtime may run it (engine/load)."""


class FewbitWarning(UserWarning):
    """Something was done as asked, and its cost is larger than whoever asked will expect; the command line prints it."""


def first_line(e: BaseException) -> str:
    """What somebody else's exception says, in one line; its type where it says nothing."""
    return (str(e).strip() or type(e).__name__).splitlines()[0][:200]


EXTRAS = {  # module -> (its package, the extra of fewbit that brings it)
    "torch": ("torch", "torch"), "onnxscript": ("onnxscript", "torch"), "transformers": ("transformers", "llm"),
    "safetensors": ("safetensors", "llm"), "tokenizers": ("tokenizers", "llm"), "lm_eval": ("lm-eval", "eval"),
    "stable_baselines3": ("stable-baselines3", "sb3"), "sb3_contrib": ("sb3-contrib", "sb3"), "gymnasium": ("gymnasium", "rl"),
    "mujoco": ("mujoco", "mujoco"), "Box2D": ("box2d", "box2d"), "ray": ("ray", "ray"), "envpool": ("envpool", "envpool"),
    "openvino": ("openvino", "openvino"), "ai_edge_litert": ("ai-edge-litert", "litert"), "tensorrt": ("tensorrt", "tensorrt"),
    "tensorrt_rtx": ("tensorrt-rtx-cu13-bindings", "tensorrt-rtx"), "matplotlib": ("matplotlib", "report"),
    "PIL": ("pillow", "report"),
}  # fmt: skip


def install(extra: str) -> str:
    """The command that installs an extra: of an installed fewbit, and from a checkout that is not installed yet."""
    return f'pip install "fewbit[{extra}]" (in a checkout of fewbit: pip install -e ".[{extra}]")'


class MissingExtra(FewbitError):
    """A package that an optional part needs is not installed."""

    def __init__(self, package: str, extra: str):
        super().__init__(f"{package} is not installed; run: {install(extra)}")


@contextmanager
def extras() -> Iterator[None]:
    """Make an import that fails inside a MissingExtra, where an extra brings it. A function's decorator too."""
    try:
        yield
    except ModuleNotFoundError as e:
        found = missing(e)
        if found is None:
            raise
        raise found from None


def missing(e: ModuleNotFoundError) -> MissingExtra | None:
    """The extra that brings what could not be imported; None where none does."""
    known = EXTRAS.get((e.name or "").split(".")[0])
    return MissingExtra(*known) if known else None
