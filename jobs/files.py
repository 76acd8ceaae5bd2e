"""Files that are either whole or not there."""

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def written_atomically(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to that takes the name `path` only when all of it is on the disk.

    The temporary file lies in the same folder, because a rename is atomic only within a file system.
    Its name is always the same: what a killed run left is written over by the next one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def write_text_atomically(path: Path, text: str) -> None:
    """Write `text` in UTF-8 so that a reader sees the old file or the new one, never a part."""
    with written_atomically(path) as file:
        file.write(text.encode("utf-8", "surrogateescape"))


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable, on the systems that let a folder be opened."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
