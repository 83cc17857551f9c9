"""The standard streams: characters that a terminal's encoding lacks, a full disk behind them, a reader that went away."""

import codecs
import contextlib
import io
import os
import sys

from fewbit.escape import printable

PLAIN = {"±": "+-", "×": "x", "…": "...", "→": "->", "–": "-", "—": "-", "≤": "<=", "≥": ">=", "’": "'", "“": '"', "”": '"'}
ERRORS = "fewbit-plain"  # the name of the error handler below


def _plain(error: UnicodeError) -> tuple[str, int]:
    """What codecs asks for: ASCII in the place of what cannot be encoded; an escape where there is no likeness."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    return "".join(PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode() for c in missing), error.end


def prepare() -> None:
    """Make printing never fail for a character, and give a stream that was closed before the start a place to go."""
    codecs.register_error(ERRORS, _plain)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (it is the stream from here on)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=ERRORS)


def say(line: str) -> None:
    """One line on standard error; where that cannot be written the work goes on all the same."""
    with contextlib.suppress(OSError):
        print(printable(line), file=sys.stderr, flush=True)


def out(line: str) -> None:
    """One line on standard output."""
    print(printable(line))


def finish(status: int) -> int:
    """Write out what standard output still holds; the exit status: 1 where its reader went away, 2 where its disk is full."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _abandon()
        return status or 1
    except OSError as e:
        say(f"fewbit: standard output: {e.strerror}")
        _abandon()
        return 2
    return status


def _abandon() -> None:
    """Let what is left go nowhere: Python writes it out once more when it ends, and would complain."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
