"""Atomic, durable file writes: a reader, or a crash, sees the old file or the new one, never a part of either."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TypeAlias

from logpose.common.notices import note_once
from logpose.common.outputs import output_file

# What a binary file can write: bytes, or a C-contiguous NumPy array.
Buffer: TypeAlias = Any

# Of file systems that cannot sync a folder (SMB, some FUSE); and of Windows, which cannot even open one.
_NO_FOLDER_SYNC = (
    (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS) if os.name != "nt" else (errno.EACCES, errno.EBADF, errno.EISDIR)
)

# So that opening a pipe does not wait for a writer. For a regular file it changes nothing.
_READ_ONLY = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)


class NotAFileError(OSError):
    """A regular file was expected at a path, and something else is there."""


def open_regular(path: str | Path) -> int:
    """Open a regular file for reading; return its descriptor. Raises OSError; NotAFileError for a pipe or the like."""
    descriptor = os.open(path, _READ_ONLY)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise NotAFileError(errno.EINVAL, "not a regular file", str(path))


def read_regular(path: str | Path) -> bytes:
    """Read a whole regular file: see `open_regular`."""
    with os.fdopen(open_regular(path), "rb") as file:
        return file.read()


def open_text(path: Path) -> IO[str]:
    """Open a regular file as UTF-8, with its own line ends: see `open_regular`."""
    return os.fdopen(open_regular(path), encoding="utf-8", newline="")


def sync(path: Path) -> None:
    """Flush a file's bytes, or a folder's entries, to the disk (fsync). Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        error.filename = str(path)  # so that the message tells which disk fails
        raise
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """`sync` for a folder. Where the file system has no such thing, say so and go on. Raises OSError."""
    try:
        sync(folder)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
        if os.name != "nt":
            note_once(
                "folders are not synced",
                f"the file system of {folder} cannot sync folders ({os.strerror(error.errno or 0).lower()}): after a"
                " power cut, files that were written may lack their names"
            )


def make_folder(folder: Path) -> None:
    """Create a folder and its missing parents, and sync each new name. Raises OSError."""
    missing = []
    for level in (folder, *folder.parents):
        if level.is_dir():
            break
        missing.append(level)
    folder.mkdir(parents=True, exist_ok=True)
    for level in reversed(missing):
        sync_folder(level.parent)


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
    make_folder(path.parent)
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        before_rename()
        temporary.replace(path)
    except BaseException as error:
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(path)  # so that the message tells which disk is full
        with suppress(OSError):
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
