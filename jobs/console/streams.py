"""Standard output and standard error: any encoding, closed, full, or a pipe without a reader."""

import os
import sys
from contextlib import suppress
from typing import TextIO

from jobs.errors import OutputLostError
from logpose.common.errors import printable

# What a terminal of few characters shows instead of those that our own messages have.
_SIMPLER = str.maketrans({"×": "x", "–": "-", "…": "...", "µ": "u", "≥": ">=", "→": "->", "─": "-", "━": "-"})


def prepare_streams() -> None:
    """Make all three standard streams usable: called first by the command line.

    One that is closed, as for a service without a console, becomes the null device: otherwise the next file that is
    opened would take its place, and what a library prints would be written into that.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, PTH123
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # what libraries print
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115, PTH123


def write_line(text: str, stream: TextIO | None) -> None:
    """Print a line, or some, and flush: control characters, and what the stream's encoding lacks, are escaped.

    Raises OutputLostError where the stream takes no more. Nothing is printed where there is no stream.
    """
    if stream is not None:
        try:
            print(encodable(text, stream), file=stream, flush=True)
        except (OSError, ValueError) as error:  # ValueError: the stream has been closed
            raise lost(error) from error


def lost(error: OSError | ValueError) -> OutputLostError:
    """Return the error for standard output that takes no more."""
    reason = getattr(error, "strerror", None) or str(error)
    return OutputLostError(
        f"expected to print, found {reason.lower()} at standard output: send it elsewhere, or give --quiet",
        is_pipe=isinstance(error, BrokenPipeError),
    )


def encodable(text: str, stream: TextIO) -> str:
    """Return the text without control characters other than line ends, and with characters of the stream's encoding."""
    text = "\n".join(map(printable, text.split("\n")))
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.translate(_SIMPLER).encode(encoding, "backslashreplace").decode(encoding)
    except LookupError:
        pass
    return text


def discard_output() -> None:
    """Redirect standard output to the null device, so that the flush at exit does not fail."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
