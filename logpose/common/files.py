"""Atomic, durable file writes: a reader, or a crash, sees the old file or the new one, never a part of either."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeAlias

# What a binary file can write: bytes, or a C-contiguous NumPy array.
Buffer: TypeAlias = Any

# File systems without fsync for folders answer with one of these; the rename is then as durable as it can be.
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES, errno.EISDIR)


def sync(path: Path) -> None:
    """Return once the file's bytes, or the folder's entries, are on the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """`sync` for a folder, on the file systems that can. Raises OSError where they can and it fails."""
    try:
        sync(folder)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise


@contextmanager
def atomic_writer(
    path: Path, *, shared: bool = False, before_rename: Callable[[], None] = lambda: None
) -> Iterator[IO[bytes]]:
    """Open a temporary file that takes the name `path` once the block has ended and all of it is on the disk.

    The temporary file lies in the same folder, which is made if need be, since a rename is atomic only within a file
    system. Its name is fixed, so that the next run overwrites what a killed one left, unless several writers `share`
    the destination: then each has a name of its own, ending in '.partial'. `before_rename` runs once the bytes are on
    the disk, and may raise.
    Raises OSError; on any error the temporary file is removed and `path` is as it was.
    """
    name = f"{path.name}.{os.urandom(4).hex()}.partial" if shared else f".{path.name}.tmp"
    temporary = path.with_name(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        before_rename()
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_atomically(
    path: Path,
    content: str | bytes | Iterable[Buffer],
    *,
    shared: bool = False,
    before_rename: Callable[[], None] = lambda: None,
) -> None:
    """Write text (as UTF-8, surrogates as the bytes they stand for), bytes, or an iterable of buffers to `path`.

    See `atomic_writer` for the rest.
    """
    if isinstance(content, str):
        content = content.encode("utf-8", "surrogateescape")
    pieces: Iterable[Buffer] = (content,) if isinstance(content, bytes) else content
    with atomic_writer(path, shared=shared, before_rename=before_rename) as file:
        for piece in pieces:
            file.write(piece)
