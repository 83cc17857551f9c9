"""The one error that users see: what is wrong and where, and what to do about it, in one line."""


class FewbitError(Exception):
    """Bad input, or something asked for that cannot be done; the command line prints it and exits 2."""


class MissingExtra(FewbitError):
    """A package that an optional part needs is not installed."""

    def __init__(self, package: str, extra: str):
        super().__init__(f'{package} is not installed; run: pip install "fewbit[{extra}]"')
