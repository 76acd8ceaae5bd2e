"""Checks of what a Python caller passes, against the types, ranges and choices that the options describe.

The command line needs none of this: Typer reads the same descriptions.
"""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from jobs.console.output import Verbosity, verbosity_of
from jobs.errors import NO_THREADS, JobError, WorkFailedError, explain, gpu_errors, out_of_memory
from logpose.common.errors import is_thread_limit, suggest
from logpose.common.limits import check_address_space
from logpose.common.options import Option
from logpose.common.outputs import local_path

Options = TypeVar("Options")

_KINDS = {int: "a whole number", float: "a number", str: "text", bool: "True or False", NoneType: "None"}


def checked_options(kind: type[Options], **values: Any) -> Options:
    """Build an options object; NumPy numbers become Python's, text is read as on the command line.

    Raises JobError for a value of another type or out of its range, and what an option's `parse` raises.
    """
    hints = get_type_hints(kind, include_extras=True)
    return kind(**{name: _checked(name, value, *get_args(hints[name])) for name, value in values.items()})


def checked_path(name: str, value: Any) -> Path:
    """The value as a path. Raises JobError for other types, empty text, and a null byte; PathError for a URL."""
    if isinstance(value, str | os.PathLike):
        text = os.fspath(value)
        if isinstance(text, str) and text and "\0" not in text:
            return local_path(Path(text))
    remedy = "write Path(...)"
    if isinstance(value, bytes):
        remedy = "write os.fsdecode(...)"
    elif isinstance(getattr(value, "path", None), Path):
        remedy = f"give its path, {value.path}"
    raise JobError(f"{name}: expected a path, as text or pathlib.Path, found {_found(value)}; {remedy}")


def checked_text(name: str, value: Any, choices: Iterable[str]) -> str:
    """The value, which must be one of the choices. Raises JobError."""
    if not isinstance(value, str):
        raise JobError(f"{name}: expected text, found {_found(value)}; choose one of: {', '.join(choices)}")
    if value not in choices:
        raise JobError(f"no {name} is called '{value}'; {suggest(value, choices)}")
    return str(value)


def checked_number(name: str, value: Any, minimum: int, maximum: int) -> int:
    """The value as an int of minimum to maximum. Raises JobError."""
    return int(_checked(name, value, int, Option("", minimum=minimum, maximum=maximum)))


@contextmanager
def running(quiet: Any) -> Iterator[None]:
    """Run a job: print or not, and turn errors of the system and of a GPU into a LogposeError with a remedy."""
    quiet = _checked("quiet", quiet, bool, Option(""))
    try:
        with verbosity_of(Verbosity.QUIET if quiet else Verbosity.NORMAL), gpu_errors():
            check_address_space()
            yield
    except OSError as error:
        message, code = explain(error)
        raise (JobError if code == JobError.exit_code else WorkFailedError)(message) from error
    except MemoryError as error:
        raise WorkFailedError(out_of_memory(error)) from error
    except RuntimeError as error:
        if is_thread_limit(error):
            raise WorkFailedError(NO_THREADS) from error
        raise


def _checked(name: str, value: Any, hint: Any, option: Option) -> Any:
    if option.parse and isinstance(value, str):
        return option.parse(value)
    members = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if value is None and NoneType in members:
        return None
    for member in members:
        try:
            found = _converted(name, value, member)
        except TypeError:
            continue
        low = -math.inf if option.minimum is None else option.minimum
        high = math.inf if option.maximum is None else option.maximum
        if isinstance(found, int | float) and not low <= found <= high:
            expected = f"{low:g} or more" if high == math.inf else f"{low:g} to {high:g}"
            raise JobError(f"{name}: expected {expected}, found {value!r}; choose another value")
        return found
    expected = " or ".join(_KINDS.get(member, "two whole numbers") for member in members)
    raise JobError(f"{name}: expected {expected}, found {_found(value)}; correct the value")


def _converted(name: str, value: Any, hint: Any) -> Any:
    """`value` as the type `hint`. Raises TypeError where it is another, JobError for a name that is no choice."""
    if get_origin(hint) is Literal:
        return checked_text(name, value, get_args(hint))
    if hint is Path:
        return checked_path(name, value)
    if get_origin(hint) is tuple:
        if get_args(hint)[1:] == (...,):
            return tuple(value)
        if isinstance(value, list | tuple | np.ndarray) and np.shape(value) == (len(get_args(hint)),):
            return tuple(_converted(name, item, int) for item in value)
    elif isinstance(value, bool | np.bool_):
        if hint is bool:
            return bool(value)
    elif hint is int:
        return operator.index(value)
    elif (hint is float and isinstance(value, Real) and math.isfinite(value)) or (
        hint is str and isinstance(value, str) and value
    ):
        return hint(value)
    raise TypeError


def _found(value: Any) -> str:
    """The value, in few characters, and its type."""
    text = " ".join(repr(value).split())
    return f"{text if len(text) <= 40 else text[:37] + '...'} ({type(value).__name__})"
