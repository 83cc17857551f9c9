"""The one error that users see: what is wrong and where, and what to do about it, in one line."""


class FewbitError(Exception):
    """Bad input, or something asked for that cannot be done; the command line prints it and exits 2."""


class Unsupported(FewbitError):
    """A sound graph that has more than fewbit's own engine runs; ONNX Runtime may run it (engine/load)."""


class FewbitWarning(UserWarning):
    """Something was done as asked, and its cost is larger than whoever asked will expect; the command line prints it."""


def first_line(e: BaseException) -> str:
    """What somebody else's exception says, in one line; its type where it says nothing."""
    return (str(e).strip() or type(e).__name__).splitlines()[0][:200]


class MissingExtra(FewbitError):
    """A package that an optional part needs is not installed."""

    def __init__(self, package: str, extra: str):
        super().__init__(f'{package} is not installed; run: pip install "fewbit[{extra}]"')
