"""Atomic, durable file writes: a reader, or a crash, sees the old file or the new one, never a part of either."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TypeAlias

from logpose.common.outputs import output_file

# What a binary file can write: bytes, or a C-contiguous NumPy array.
Buffer: TypeAlias = Any

# Errors of file systems without fsync for folders.
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES, errno.EISDIR)


def sync(path: Path) -> None:
    """Flush a file's bytes, or a folder's entries, to the disk (fsync). Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """`sync` for a folder; does nothing on file systems without fsync for folders. Raises OSError."""
    try:
        sync(folder)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise


@contextmanager
def atomic_writer(
    path: Path, *, shared: bool = False, before_rename: Callable[[], None] = lambda: None
) -> Iterator[IO[bytes]]:
    """Open a temporary file, which is synced and renamed to `path` when the block ends.

    The temporary file is in the same folder, since a rename is atomic only within a file system; the folder is created
    if missing. The temporary name is fixed, so that a run overwrites what a killed one left. With `shared`, for several
    writers of one path, it is random and ends in '.partial'. `before_rename` runs after the sync, and may raise to
    prevent the rename. Where `path` is a link, the file that it points to is replaced. Raises PathError where something
    else than a plain file is there, OSError; on any error the temporary file is removed and `path` is unchanged.
    """
    path = output_file(path)
    name = f"{path.name}.{os.urandom(4).hex()}.partial" if shared else f".{path.name}.tmp"
    temporary = path.with_name(name)
    with suppress(FileNotFoundError):
        temporary.unlink()  # rather than write into it: it might be a link or a pipe
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with temporary.open("xb") as file:
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
