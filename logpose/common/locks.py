"""Locks: one process at a time works on an output."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from logpose.common.errors import BusyError
from logpose.common.files import errors_at, make_folder
from logpose.common.notices import note_once
from logpose.common.outputs import check_name

# What flock answers on file systems without locks: some NFS, Lustre and FUSE.
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)

_POLL_SECONDS = 0.05
_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)


@contextmanager
def exclusive_lock(lock_file: Path, what: str) -> Iterator[None]:
    """Hold a lock while the block runs; the system releases it if the process is killed.

    `what` names the work in the message of BusyError, which is raised if another process holds the lock. Raises OSError
    where the system fails to lock the file.
    """
    descriptor = None
    try:
        with errors_at(lock_file):
            descriptor = _acquire(lock_file)
    except BlockingIOError:
        raise BusyError(
            f"expected to be the only {what}, found another process at work on it: wait until that has finished, or"
            " choose another path"
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        with suppress(OSError):
            lock_file.unlink()
        note_once(
            "no locks",
            f"the file system of {lock_file.parent} has no locks ({os.strerror(error.errno).lower()}): do not start a"
            f" second {what} while this one runs",
        )
    try:
        yield
    finally:
        if descriptor is not None:
            with suppress(OSError):  # Windows does not delete open files: the lock file stays
                lock_file.unlink()  # before it is released: see `_acquire`
            with suppress(OSError):
                os.close(descriptor)


@contextmanager
def waiting_lock(lock_file: Path, patience: float) -> Iterator[None]:
    """Wait for a lock, at most `patience` seconds, and hold it while the block runs; the file stays.

    For work that another process makes unnecessary, but not wrong: after that time, or where the file system has no
    locks, the block runs without.
    """
    descriptor, until = None, time.monotonic() + patience
    with suppress(OSError):
        while descriptor is None and time.monotonic() < until:
            try:
                descriptor = _acquire(lock_file)
            except BlockingIOError:
                time.sleep(_POLL_SECONDS)
    try:
        yield
    finally:
        if descriptor is not None:
            with suppress(OSError):
                os.close(descriptor)


@contextmanager
def output_lock(path: Path, what: str) -> Iterator[None]:
    """Hold the lock of the output `path`, `.NAME.lock` next to it: see `exclusive_lock`.

    Whatever depends on what is at `path` is to be decided within. Folders above it that are missing are made, and
    removed again if they stay empty.
    """
    check_name(path)
    place = path.resolve()  # "." and ".." have no name; and a link is a second name of one output
    made = [folder for folder in place.parents if not folder.exists()]
    try:
        with exclusive_lock(place.with_name(f".{place.name}.lock"), what):
            yield
    finally:
        for folder in made:
            with suppress(OSError):  # not empty
                folder.rmdir()


def _acquire(lock_file: Path) -> int:
    """Lock a file, made if it is missing, in folders that are made too; return its descriptor.

    A process that releases a lock deletes the file, which another may have opened already, to lock it a moment later. A
    third one would then lock a new file. So a lock counts only while its file still has its name.
    Raises BlockingIOError if another process holds the lock, and other OSErrors.
    """
    while True:
        make_folder(lock_file.parent)
        try:
            descriptor = os.open(lock_file, _FLAGS, 0o644)
        except FileNotFoundError:
            if lock_file.parent.is_dir():  # no file can be made in it
                raise
            continue  # the folder was removed again, by `output_lock` in another process
        try:
            _lock(descriptor)
            if os.name == "nt" or _has_name(descriptor, lock_file):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    """Lock an open file. Raises BlockingIOError if another process has, and other OSErrors."""
    try:
        import fcntl
    except ImportError:  # Windows, which has locks everywhere
        import msvcrt

        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined, unused-ignore]
        except PermissionError as error:
            raise BlockingIOError(*error.args) from None
    else:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _has_name(descriptor: int, path: Path) -> bool:
    """Whether the open file is the one at the path."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False
