"""JSON that is read back from disk: objects with a checksum, and dataclasses with the type of each value checked."""

from __future__ import annotations

import json
import math
import types
import zlib
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from logpose.common.files import TooLargeError, read_regular, write_atomically

CHECKSUM = "crc32"  # the key of the checksum in an object on disk
MAX_CLASSES = 2**20
MIN_STD = 1e-9  # of pixels, unless it is 0: far less than that of one grey pixel among all
_MAX_NAME, _MAX_TEXT = 2000, 2**15  # characters of a file name, and bytes of a path, where all are escaped
_MAX_BYTES = 2**28  # of a file, for a million classes
_MAX_INT = 2**63  # of a whole number, in absolute value

Kind = TypeVar("Kind")


class RecordError(ValueError):
    """The text is not JSON, does not match its checksum, or has other keys or types than expected."""


def parse_json(text: str | bytes) -> Any:
    """Parse JSON. Raises RecordError, also for text that is nested too deep, and for NaN and infinities."""
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecordError:
        raise
    except RecursionError:
        raise RecordError("brackets nested too deeply") from None
    except ValueError as error:
        raise RecordError(str(error).partition("\n")[0]) from None


def is_text(text: str) -> bool:
    """Whether a table can hold the text: valid Unicode, but for bytes of file names, and no longer than a path."""
    try:
        return len(text.encode("utf-8", "surrogateescape")) <= _MAX_TEXT
    except UnicodeEncodeError:
        return False


def is_name(text: str) -> bool:
    """Whether the text can be the name of a class: see `is_text`."""
    return 0 < len(text) <= _MAX_NAME and is_text(text)


def read_json(path: Path) -> Any:
    """Read a regular file as JSON: see `parse_json` and `open_regular`. Raises RecordError, OSError."""
    try:
        return parse_json(read_regular(path, _MAX_BYTES))
    except TooLargeError as error:
        raise RecordError(str(error)) from None


def checksum(values: Mapping[str, Any]) -> int:
    """CRC-32 of the JSON of an object without its checksum. Raises RecordError where it is nested too deep."""
    try:
        return zlib.crc32(json.dumps(values, sort_keys=True).encode())
    except RecursionError:
        raise RecordError("brackets nested too deeply") from None


def write_record(path: Path, values: Mapping[str, Any], *, shared: bool = False) -> None:
    """Write an object with its checksum, atomically. Raises OSError."""
    write_atomically(path, json.dumps({**values, CHECKSUM: checksum(values)}) + "\n", shared=shared)


def read_record(path: Path) -> dict[str, Any]:
    """Read what `write_record` wrote; an object without a checksum, of an older version, is returned as it is.

    Raises RecordError where it is damaged, OSError where it cannot be read.
    """
    found = read_json(path)
    if not isinstance(found, dict):
        raise RecordError(f"expected an object, found {type(found).__name__}")
    if CHECKSUM in found and found.pop(CHECKSUM) != checksum(found):
        raise RecordError("it does not match its checksum")
    return found


def parse_record(kind: type[Kind], values: Any) -> Kind:
    """Return an instance of the dataclass or NamedTuple `kind` from JSON's values, each checked against its type.

    Lists become tuples where the type is one. Raises RecordError for a missing or unknown key, a value of another type,
    and a number that is not finite.
    """
    hints, required = _fields_of(cast(Any, kind))
    if not isinstance(values, dict):
        raise RecordError(f"expected an object, found {_shown(values)}")
    missing, unknown = required - values.keys(), values.keys() - hints.keys()
    if missing or unknown:
        raise RecordError(f"expected the keys of {kind.__name__}, found {_difference(missing, unknown)}")
    return kind(**{name: _checked(name, value, hints[name]) for name, value in values.items()})


@cache
def _fields_of(kind: Any) -> tuple[dict[str, Any], frozenset[str]]:
    """The type of each field, and the names of the fields without a default."""
    hints = get_type_hints(kind)
    if is_dataclass(kind):
        required = [
            field.name for field in fields(kind) if field.default is MISSING and field.default_factory is MISSING
        ]
        return {field.name: hints[field.name] for field in fields(kind)}, frozenset(required)
    names = kind._fields
    return {name: hints[name] for name in names}, frozenset(names) - kind._field_defaults.keys()


def _checked(name: str, value: Any, hint: Any) -> Any:
    """`value` as the type `hint`. Raises RecordError."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        for member in inner:
            try:
                return _checked(name, value, member)
            except RecordError:
                continue
    elif origin is Literal and value in inner:
        return value
    elif origin is tuple and isinstance(value, list | tuple):
        kinds = [inner[0]] * len(value) if inner[1:] == (...,) else inner
        if len(kinds) == len(value):
            return tuple(_checked(name, each, kind) for each, kind in zip(value, kinds, strict=True))
    elif origin is list and isinstance(value, list):
        return [_checked(name, each, inner[0]) for each in value]
    elif origin is dict and isinstance(value, dict):
        return {key: _checked(f"{name}.{key}", each, inner[1]) for key, each in value.items()}
    elif is_dataclass(hint):
        return value if isinstance(value, hint) else parse_record(hint, value)  # type: ignore[arg-type]
    elif type(value) is hint and (hint in (str, bool) or (hint is float and math.isfinite(value))):
        return value
    elif hint in (int, float) and type(value) is int and abs(value) < _MAX_INT:
        return hint(value)
    elif hint is types.NoneType and value is None:
        return None
    raise RecordError(f"{name}: expected {getattr(hint, '__name__', hint)}, found {_shown(value)}")


def _refuse_constant(name: str) -> float:
    raise RecordError(f"expected a finite number, found {name}")


def _difference(missing: frozenset[str] | set[str], unknown: set[str]) -> str:
    parts = [f"no {', '.join(sorted(missing))}"] if missing else []
    parts += [f"also {', '.join(sorted(map(_shown, unknown)))}"] if unknown else []
    return " and ".join(parts)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
