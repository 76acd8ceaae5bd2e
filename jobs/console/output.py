"""Messages of a job: normal, --quiet or --verbose for a person, one JSON object (--json) for a program."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from enum import IntEnum
from typing import Any

from logpose.common.errors import printable


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
    try:
        yield
        if level is Verbosity.JSON and (result := _result.get()) is not None:
            print(json.dumps(result, default=_plain), flush=True)
    finally:
        _verbosity.reset(before)


def say(line: str = "", *, at: Verbosity = Verbosity.NORMAL) -> None:
    """Print a line if the verbosity is `at` or higher.

    Bytes that are not valid UTF-8 (lone surrogates) are escaped; a name that may hold newlines needs `printable`.
    """
    if _verbosity.get() >= at:
        print(line.encode("utf-8", "backslashreplace").decode("utf-8"), flush=True)


def detail(line: str) -> None:
    """Print a line with `--verbose` only."""
    say(line, at=Verbosity.VERBOSE)


def emit(result: Mapping[str, Any]) -> None:
    """Set the result that `--json` prints. A job that runs other jobs emits last, and so replaces their results."""
    _result.set(result)


def _plain(value: Any) -> Any:
    """Convert a NumPy number, a path or the like to what JSON can hold."""
    return value.item() if hasattr(value, "item") else printable(str(value))
