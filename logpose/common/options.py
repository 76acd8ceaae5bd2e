"""Descriptions of options, attached to the fields of options dataclasses.

    @dataclass(frozen=True)
    class ReportOptions:
        out: Annotated[Path | None, Option("Where to write; default: in RUN_DIR.", "FILE.html")] = None

Each option stands once: `jobs.commands` makes the command line from the fields, their types, defaults and
descriptions, and the same object goes through to the job.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Option:
    """One option of the command line.

    help      one sentence; what it does, and its unit
    metavar   what to write as its value
    minimum, maximum  the range of a number, both included
    flag      its name, such as '--format'; by default that of the field
    recipe    the value of the recipe that it sets, such as 'optimizer.lr'
    parse     makes the field's value from the text; raises LogposeError
    default   how the help shows the default, where `parse` is given
    """

    help: str
    metavar: str = ""
    minimum: float | None = None
    maximum: float | None = None
    flag: str = ""
    recipe: str = ""
    parse: Callable[[str], Any] | None = None
    default: str = ""
