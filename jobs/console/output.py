"""Messages of a job: normal, --quiet or --verbose for a person, one JSON object (--json) for a program."""

from __future__ import annotations

import json
import logging
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from enum import IntEnum
from typing import Any, TextIO

from jobs.console.streams import write_line
from jobs.errors import OutputLostError
from logpose.common.errors import printable
from logpose.common.notices import LOGGER

# What a terminal must not break, so that it can be copied: quoted text, and a command at the end of a line.
_WHOLE = re.compile(r"'[^']*'|\"[^\"]*\"|\blogpose .*$")


class Verbosity(IntEnum):
    """How much is printed. Errors always are."""

    JSON = -2  # one JSON object at the end, for a program
    QUIET = -1
    NORMAL = 0
    VERBOSE = 1


# Of the current thread: two jobs may run at the same time, one quiet and one not.
_verbosity = ContextVar("verbosity", default=Verbosity.NORMAL)
_result: ContextVar[Mapping[str, Any] | None] = ContextVar("result", default=None)


def verbosity() -> Verbosity:
    """Return the current verbosity."""
    return _verbosity.get()


@contextmanager
def verbosity_of(level: Verbosity) -> Iterator[None]:
    """Set the verbosity while the block runs. At JSON, print the last emitted result at its end."""
    before = _verbosity.set(level)
    _result.set(None)
    handler = _Notes(level)
    LOGGER.addHandler(handler)
    try:
        yield
        if level is Verbosity.JSON and (result := _result.get()) is not None:
            write_line(json.dumps(result, default=_plain), sys.stdout)
    finally:
        LOGGER.removeHandler(handler)
        _verbosity.reset(before)


def say_aside(line: str) -> None:
    """Print one line on standard error, if that takes it: there is nowhere else to say that it does not."""
    with suppress(OutputLostError):
        if sys.stderr is not None:
            write_line(fit(printable(line), sys.stderr), sys.stderr)


class _Notes(logging.Handler):
    """Prints what `note_once` logs, from any thread."""

    def __init__(self, level: Verbosity) -> None:
        super().__init__(logging.WARNING)
        self._verbosity = level

    def emit(self, record: logging.LogRecord) -> None:
        if self._verbosity >= Verbosity.NORMAL:
            say_aside(f"note: {record.getMessage()}")


def say(line: str = "", *, at: Verbosity = Verbosity.NORMAL, wrap: bool = True) -> None:
    """Print a line if the verbosity is `at` or higher; `wrap` it if it is too long for the terminal.

    Control characters, and what the stream cannot encode, are escaped; a name that may hold newlines needs `printable`.
    Raises OutputLostError where standard output takes no more.
    """
    if _verbosity.get() >= at and sys.stdout is not None:
        write_line(fit(line, sys.stdout) if wrap else line, sys.stdout)


def fit(text: str, stream: TextIO) -> str:
    """Wrap the lines that are too long for the terminal at their spaces. Anything but a terminal gets them as they are.

    Quoted text, and a command that ends a line, stay whole.
    """
    if not stream.isatty():
        return text
    width = shutil.get_terminal_size().columns
    return "\n".join(_wrap(line, width) if len(line) > width else line for line in text.split("\n"))


def _wrap(line: str, width: int) -> str:
    body = line.lstrip(" ")
    indent = " " * (len(line) - len(body))
    glued = _WHOLE.sub(lambda match: match[0].replace(" ", "\0"), body)
    return textwrap.fill(
        glued, width, initial_indent=indent, subsequent_indent=f"{indent}  ",
        break_long_words=False, break_on_hyphens=False, replace_whitespace=False,
    ).replace("\0", " ")  # fmt: skip


def detail(line: str) -> None:
    """Print a line with `--verbose` only."""
    say(line, at=Verbosity.VERBOSE)


def emit(result: Mapping[str, Any]) -> None:
    """Set the result that `--json` prints. A job that runs other jobs emits last, and so replaces their results."""
    _result.set(result)


def _plain(value: Any) -> Any:
    """Convert a NumPy number, a path or the like to what JSON can hold."""
    return value.item() if hasattr(value, "item") else printable(str(value))
