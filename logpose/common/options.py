"""Descriptions of command-line options, attached to the fields of dataclasses.

    @dataclass(frozen=True)
    class ReportOptions:
        out: Annotated[Path | None, Option("Where to write; default: in RUN_DIR.", "FILE.html")] = None

`jobs.commands` builds the command line from the fields, their types, defaults and descriptions, and passes the options
object on to the job.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# Threads, or processes, that a user can ask for: more are a typing error, and would fill the memory before they work.
MAX_WORKERS = 1024


@dataclass(frozen=True)
class Option:
    """One option of the command line.

    help      one sentence: what the option does, and the unit of its value
    metavar   placeholder for the value
    minimum, maximum  range of a number, both ends included
    flag      name, such as '--format'; default: from the field's name
    group     heading in the help
    recipe    the recipe value that it sets, such as 'optimizer.lr'
    parse     converts the text to the field's value; raises LogposeError
    default   the default as text, for the help of an option with `parse`
    """

    help: str
    metavar: str = ""
    minimum: float | None = None
    maximum: float | None = None
    flag: str = ""
    group: str = "Options"
    recipe: str = ""
    parse: Callable[[str], Any] | None = None
    default: str = ""
