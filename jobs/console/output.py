"""Messages of a job: how much a person wants to read (-q, -v), or one JSON object for a program (--json)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import IntEnum
from typing import Any

from logpose.common.errors import printable


class Verbosity(IntEnum):
    """How much is printed; errors always are."""

    JSON = -2  # one JSON object at the end, for a program
    QUIET = -1
    NORMAL = 0
    VERBOSE = 1


_verbosity = Verbosity.NORMAL


def verbosity() -> Verbosity:
    """Return how much is printed now."""
    return _verbosity


@contextmanager
def verbosity_of(level: Verbosity) -> Iterator[None]:
    """Print so much while the block runs."""
    global _verbosity
    before, _verbosity = _verbosity, level
    try:
        yield
    finally:
        _verbosity = before


def say(line: str = "", *, at: Verbosity = Verbosity.NORMAL) -> None:
    """Print a line, unless less is wanted than `at`. The caller escapes names with `printable` where they need it."""
    if _verbosity >= at:
        print(line, flush=True)


def detail(line: str) -> None:
    """Print a line that only `--verbose` shows."""
    say(line, at=Verbosity.VERBOSE)


def emit(result: Mapping[str, Any]) -> None:
    """Print the job's result as one line of JSON, with `--json` only."""
    if _verbosity is Verbosity.JSON:
        print(json.dumps(result, default=lambda value: printable(str(value))), flush=True)
