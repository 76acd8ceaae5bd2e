"""Locks: one process at a time works on an output."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout

from logpose.common.errors import BusyError
from logpose.common.files import errors_at, make_folder
from logpose.common.notices import note_once

# What flock answers on file systems without locks: some NFS, Lustre and FUSE.
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)


@contextmanager
def exclusive_lock(lock_file: Path, what: str) -> Iterator[None]:
    """Hold a lock while the block runs; the system releases it if the process is killed.

    `what` names the work in the message of BusyError, which is raised if another process holds the lock. Raises OSError
    where the system fails to lock the file.
    """
    with errors_at(lock_file):
        release = _lock(lock_file, what)
    try:
        yield
    finally:
        # Unlink before releasing: see `_same_file`.
        with suppress(OSError):  # Windows does not delete open files: the lock file stays
            lock_file.unlink()
        with suppress(OSError):
            release()


@contextmanager
def output_lock(path: Path, what: str) -> Iterator[None]:
    """Hold the lock of the output `path`, `.NAME.lock` next to it: see `exclusive_lock`.

    Whatever depends on what is at `path` is to be decided within. Folders above it that are missing are made, and
    removed again if they stay empty.
    """
    place = path.resolve()  # "." and ".." have no name; and a link is a second name of one output
    made = [folder for folder in place.parents if not folder.exists()]
    make_folder(place.parent)
    try:
        with exclusive_lock(place.with_name(f".{place.name}.lock"), what):
            yield
    finally:
        for folder in made:
            with suppress(OSError):  # not empty
                folder.rmdir()


def _lock(lock_file: Path, what: str) -> Callable[[], None]:
    """Lock a file, which is made if it is missing; return what releases it. Raises BusyError, OSError."""
    busy = BusyError(
        f"expected to be the only {what}, found another process at work on it: wait until that has finished, or choose"
        " another path"
    )
    try:
        import fcntl
    except ImportError:
        lock = FileLock(lock_file, blocking=False)
        try:
            lock.acquire()
        except Timeout:
            raise busy from None
        return lock.release
    while True:
        descriptor = os.open(lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _same_file(descriptor, lock_file):
                return partial(os.close, descriptor)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(descriptor)
                if isinstance(error, BlockingIOError):
                    raise busy from None
                raise
            note_once(
                "no locks",
                f"the file system of {lock_file.parent} has no locks ({os.strerror(error.errno).lower()}): do not start"
                f" a second {what} while this one runs",
            )
            return partial(os.close, descriptor)
        os.close(descriptor)


def _same_file(descriptor: int, lock_file: Path) -> bool:
    """Whether a file that was just locked still has its name: the process that held it before may have removed it."""
    try:
        return os.path.samestat(os.fstat(descriptor), lock_file.stat())
    except FileNotFoundError:
        return False
