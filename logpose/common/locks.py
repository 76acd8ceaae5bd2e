"""Locks: one process at a time works on an output."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from logpose.common.errors import BusyError


@contextmanager
def exclusive_lock(lock_file: Path, what: str) -> Iterator[None]:
    """Hold a lock while the block runs; the system releases it if the process is killed.

    `what` names the work in the message of BusyError, which is raised if another process holds the lock.
    """
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
def output_lock(path: Path, what: str) -> Iterator[None]:
    """Hold the lock of the output `path`, `.NAME.lock` next to it: see `exclusive_lock`.

    Whatever depends on what is at `path` is to be decided within. Folders above it that are missing are made, and
    removed again if they stay empty.
    """
    place = path.resolve()  # "." and ".." have no name; and a link is a second name of one output
    made = [folder for folder in place.parents if not folder.exists()]
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        with exclusive_lock(place.with_name(f".{place.name}.lock"), what):
            yield
    finally:
        for folder in made:
            with suppress(OSError):  # not empty
                folder.rmdir()
