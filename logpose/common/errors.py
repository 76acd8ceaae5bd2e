"""The base class of logpose's errors, and helpers for their messages.

    LogposeError
    ├── pipeline.errors.PipelineError   images and datasets
    ├── cnn.errors.NetworkError         networks, recipes and model files
    ├── jobs.errors.JobError            the use of a job
    ├── jobs.errors.Interrupted         Ctrl-C, after saving
    ├── BusyError                       another process is at work on the same output
    └── PathError                       a path that cannot be used

Every message is one line: what was expected, what was found, where, and what to do about it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import ClassVar

# Characters that would break a line on a terminal or in a log: C0, DEL, C1, line and paragraph separator.
_CONTROL = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))} | {
    0x2028: "\\u2028",
    0x2029: "\\u2029",
}


# How `printable` escapes: control characters and backslashes by two digits, bytes and separators by four. A byte that
# is not UTF-8 is one of Python's surrogates dc80..dcff; no name on disk has another, but text in it may look like one.
_ESCAPE = re.compile(r"\\(?:x([01][0-9a-f]|7f|[89][0-9a-f]|5c)|u(dc[89a-f][0-9a-f]|202[89]))")
_AMBIGUOUS = re.compile(r"\\(?=x(?:[01][0-9a-f]|7f|[89][0-9a-f]|5c)|u(?:d[89a-f][0-9a-f]{2}|202[89]))")


class LogposeError(Exception):
    """Base class of logpose's errors. `exit_code` is what the command line exits with.

    >>> try:
    ...     logpose.open("missing.zarr")
    ... except logpose.LogposeError as error:
    ...     print(error)
    expected a dataset built by logpose, found nothing at missing.zarr: check the path, or run logpose build
    """

    exit_code: ClassVar[int] = 2

    def __str__(self) -> str:
        return printable(super().__str__())


class BusyError(LogposeError):
    """Another process is at work on the same output."""


class PathError(LogposeError):
    """A path that was given cannot be used: it is a URL, or an output would replace something else."""


def printable(text: str) -> str:
    """Return the text as one line of valid UTF-8.

    File names may hold newlines, or bytes that are not valid UTF-8 (Python keeps those as lone surrogates). Both are
    written as backslash escapes; everything else stays as it is.
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8").translate(_CONTROL)


def escaped(name: str) -> str:
    """Return a file name as `printable` does, but so that `unescaped` finds it again.

    For that, a backslash of the name that looks like the beginning of an escape is escaped as well.
    """
    return printable(_AMBIGUOUS.sub(r"\\x5c", name))


def unescaped(text: str) -> str:
    """Return the file name that `escaped` was given."""
    return _ESCAPE.sub(lambda found: chr(int(found[1] or found[2], 16)), text)


def reason_of(error: BaseException) -> str:
    """Return what an error says, without the number and the path that an error of the system adds."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return printable(str(error))


def is_thread_limit(error: object) -> bool:
    """Whether the system refused to start a thread."""
    return isinstance(error, RuntimeError) and "can't start new thread" in str(error)


def shortened(text: str, length: int = 200) -> str:
    """Return the text, or its beginning where it is longer than `length`: what others wrote may be of any length."""
    return text if len(text) <= length else f"{text[:length]}…"


def suggest(name: str, known: Iterable[str]) -> str:
    """Return the remedy for an unknown name: the most similar known name, or the list of all."""
    names = sorted(known)
    matches = get_close_matches(name.lower(), [candidate.lower() for candidate in names], n=1, cutoff=0.6)
    if matches:
        meant = next(candidate for candidate in names if candidate.lower() == matches[0])
        return f"did you mean '{meant}'?"
    return f"choose one of: {', '.join(names)}"
