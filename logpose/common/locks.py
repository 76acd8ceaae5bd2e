"""Locks: one process at a time works on an output."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from logpose.common.errors import BusyError
from logpose.common.files import make_folder
from logpose.common.notices import note_once

# What flock answers on file systems without locks: some NFS, Lustre and FUSE.
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)


@contextmanager
def exclusive_lock(lock_file: Path, what: str) -> Iterator[None]:
    """Hold a lock while the block runs; the system releases it if the process is killed.

    `what` names the work in the message of BusyError, which is raised if another process holds the lock.
    """
    if (reason := _why_no_locks(lock_file)) is not None:
        note_once(
            "no locks",
            f"the file system of {lock_file.parent} has no locks ({reason}): do not start a second {what} while this"
            " one runs",
        )
        yield
        return
    lock = FileLock(lock_file, blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise BusyError(
            f"expected to be the only {what}, found another process at work on it: wait until that has finished, or"
            " choose another path"
        ) from None
    try:
        yield
    finally:
        # Unlink before releasing. Safe, because no process waits for the lock: none can acquire the deleted file.
        with suppress(OSError):  # Windows does not delete open files: the lock file stays
            lock_file.unlink()
        lock.release()


@contextmanager
def waiting_lock(lock_file: Path, patience: float) -> Iterator[None]:
    """Wait for a lock, at most `patience` seconds, and hold it while the block runs; the file stays.

    For work that another process makes unnecessary, but not wrong: after that time, or where the file system has no
    locks, the block runs without.
    """
    if _why_no_locks(lock_file) is not None:
        yield
        return
    lock, until = FileLock(lock_file), time.monotonic() + patience
    with suppress(OSError, NotImplementedError):
        while not lock.is_locked and time.monotonic() < until:
            with suppress(Timeout):  # short waits, which Ctrl-C can end on every system
                lock.acquire(timeout=0.2, poll_interval=0.05)
    try:
        yield
    finally:
        lock.release()


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


def _why_no_locks(lock_file: Path) -> str | None:
    """Why no file can be locked here, as the system says it; None where locks work.

    Versions of the library that takes the lock differ in what they do then: they say that another process has it, or
    make a file instead, which a kill leaves behind.
    """
    try:
        import fcntl
    except ImportError:  # Windows, which has locks everywhere
        return None
    try:
        descriptor = os.open(lock_file, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            with suppress(OSError):
                lock_file.unlink()
            return os.strerror(error.errno).lower()
    finally:
        os.close(descriptor)
    return None
