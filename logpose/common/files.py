"""Atomic, durable file writes: a reader, or a crash, sees the old file or the new one, never a part of either."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TypeAlias

from logpose.common.notices import note_once
from logpose.common.outputs import output_file, replaceable_file

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


class TooLargeError(ValueError):
    """A file is larger than what logpose writes there."""


@contextmanager
def errors_at(path: str | Path) -> Iterator[None]:
    """Have each OSError of the block name a path, which those of reads, writes and syncs do not."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def open_regular(path: str | Path) -> int:
    """Open a regular file for reading; return its descriptor. Raises OSError; NotAFileError for a pipe or the like."""
    try:
        descriptor = os.open(path, _READ_ONLY)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket
            raise NotAFileError(errno.EINVAL, "not a regular file", str(path)) from None
        raise
    try:
        with errors_at(path):
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise NotAFileError(errno.EINVAL, "not a regular file", str(path))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def read_regular(path: str | Path, most: int | None = None) -> bytes:
    """Read a whole regular file: see `open_regular`. Raises TooLargeError where it has more than `most` bytes."""
    with errors_at(path), os.fdopen(open_regular(path), "rb") as file:
        if most is not None and (size := os.fstat(file.fileno()).st_size) > most:
            raise TooLargeError(f"{size} bytes, at most {most} are read")
        return file.read()


def can_be_read(path: str | Path) -> bool:
    """Whether a path is a regular file whose bytes the system gives."""
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            file.read(1)
    except (OSError, ValueError):
        return False
    return True


def open_text(path: Path) -> IO[str]:
    """Open a regular file as UTF-8, with its own line ends: see `open_regular`."""
    return os.fdopen(open_regular(path), encoding="utf-8", newline="")


def sync(path: Path) -> None:
    """Flush a file's bytes, or a folder's entries, to the disk (fsync). Raises OSError."""
    with errors_at(path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
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


def remove_folder(folder: Path) -> None:
    """Delete a folder and all that is in it, if it exists. Raises OSError."""
    for tries_left in (2, 1, 0):  # a task that outlives its build may still write into it
        try:
            shutil.rmtree(folder)
            return
        except OSError as error:
            if isinstance(error, FileNotFoundError) and not os.path.lexists(folder):
                return
            if error.errno not in (errno.ENOENT, errno.ENOTEMPTY) or not tries_left:
                error.filename = str(folder)  # it may name what is inside by its last part alone
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
    make_folder(path.parent)
    try:
        with errors_at(path):  # so that the message tells which disk is full
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            before_rename()
            temporary.replace(path)
    except BaseException:
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


def write_replaceable(path: Path, content: str | bytes, mark: bytes, what: str) -> None:
    """`write_atomically` for an output without a lock, where `replaceable_file` still allows it.

    Two processes may write it at the same time: the later one's file stays. Raises OSError and PathError.
    """

    def check() -> None:
        replaceable_file(path, mark, what)

    write_atomically(path, content, shared=True, before_rename=check)
