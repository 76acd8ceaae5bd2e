"""Files that are either whole or not there, and on the disk when we say so."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def sync(path: Path) -> None:
    """Return once the file's bytes, or the folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(
    path: Path, content: str | bytes | memoryview[Any], still_wanted: Callable[[], None] = lambda: None
) -> None:
    """Write a file so that a reader, or a crash, sees the old one or the new one, never half of it. Text is UTF-8.

    still_wanted() is asked once the bytes are on the disk, before they get the file's name, and may raise.
    A temporary file that a kill leaves behind ends in '.partial'; two writers never share one.
    """
    temporary = path.with_name(f"{path.name}.{os.urandom(4).hex()}.partial")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        still_wanted()
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)
