"""Files that are either whole or not there, and on the disk when we say so."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeAlias

import numpy.typing as npt

Buffer: TypeAlias = bytes | npt.NDArray[Any]


def sync(path: Path) -> None:
    """Return once the file's bytes, or the folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(
    path: Path, content: str | bytes | Iterable[Buffer], still_wanted: Callable[[], None] = lambda: None
) -> None:
    """Write a file so that a reader, or a crash, sees the old one or the new one, never half of it.

    content is text, which becomes UTF-8, or bytes, or pieces of it: bytes or arrays, which may be made meanwhile.
    still_wanted() is asked once the bytes are on the disk, before they get the file's name, and may raise.
    A temporary file that a kill leaves behind ends in '.partial'; two writers never share one.
    """
    temporary = path.with_name(f"{path.name}.{os.urandom(4).hex()}.partial")
    try:
        with temporary.open("wb") as file:
            if isinstance(content, str):
                content = content.encode()
            for piece in (content,) if isinstance(content, bytes) else content:
                file.write(piece)  # type: ignore[arg-type]  # mypy does not know that arrays are buffers
            file.flush()
            os.fsync(file.fileno())
        still_wanted()
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)
