"""Faults of the system while something is read: told from what is wrong with a file, and tried again.

Too many open files, no memory, a failing disk or a network drive that has gone away say nothing about a file. To record
it as damaged would make a passing fault permanent.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from typing import TypeVar

from logpose.common.files import can_be_read
from pipeline.errors import AccessError, ReadError

T = TypeVar("T")

PAUSES = (0.05, 0.1, 0.2)  # seconds before each further try

# Errors that a path, what is there, or its rights cause. Every other one is a fault of the system.
_OF_THE_FILE = {
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG,
    errno.ENXIO, errno.EINVAL, errno.EILSEQ,
}  # fmt: skip
_REMEDIES = {
    errno.EMFILE: "raise the limit of open files (ulimit -n) or use fewer --workers",
    errno.ENFILE: "close other programs, or raise the system's limit of open files",
    errno.ENOMEM: "free some memory or use fewer --workers",
    errno.ENOENT: "check that its drive is mounted",
    errno.ENOTDIR: "check that its drive is mounted",
}


def fault_of_system(error: OSError, path: str | os.PathLike[str]) -> ReadError | None:
    """The error to raise for an error of the operating system that says nothing about the file; None for any other.

    A missing file is the system's fault if the whole folder is missing or empty, as when a drive goes away.
    """
    reason = (error.strerror or str(error)).lower()
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        if not _is_gone(os.path.dirname(os.path.realpath(path)) or "."):  # noqa: PTH120  # for speed
            return None
        reason = f"{reason}, nor anything else in its folder"
    elif error.errno is None or error.errno in _OF_THE_FILE:
        return None
    remedy = _REMEDIES.get(error.errno or 0, "check the disk, or the network, that it is on")
    return ReadError(os.fspath(path), reason, remedy)


def retried(read: Callable[[], T]) -> T:
    """Return what `read` does; call it again, after short pauses, if it raises ReadError. Raises the last one."""
    for pause in PAUSES:
        try:
            return read()
        except ReadError:
            time.sleep(pause)
    return read()


def read_or_retry(read: Callable[[], T], path: str | os.PathLike[str]) -> T:
    """Return what `read` does, called again after a fault of the system.

    Raises ReadError if the fault stays, and any other OSError as it is.
    """

    def attempt() -> T:
        try:
            return read()
        except OSError as error:
            if fault := fault_of_system(error, path):
                raise fault from error
            raise

    return retried(attempt)


def read_stored(read: Callable[[], T], path: str | os.PathLike[str]) -> T:
    """Return what `read` does, which reads a file of a dataset: there, a missing one is damage.

    Raises AccessError without permission, ReadError for a fault that stays, and any other OSError as it is.
    """

    def attempt() -> T:
        try:
            return read()
        except PermissionError as error:
            raise may_not_read(error, path) from error
        except (FileNotFoundError, NotADirectoryError):
            raise
        except OSError as error:
            if fault := fault_of_system(error, path):
                raise fault from error
            raise

    return retried(attempt)


def status_of(path: str | os.PathLike[str]) -> os.stat_result | None:
    """The status of a path that a user gave; None if nothing is there. Raises AccessError and ReadError."""

    def read() -> os.stat_result | None:
        try:
            return os.stat(path)  # noqa: PTH116  # Path.exists hides errors
        except (FileNotFoundError, NotADirectoryError):
            return None

    try:
        return read_or_retry(read, path)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise may_not_read(error, path) from error


def is_there(path: str | os.PathLike[str]) -> bool:
    """Whether something is at a path. Raises AccessError, ReadError; Path.exists hides errors from Python 3.14 on."""
    return status_of(path) is not None


def status_of_listed(stat: Callable[[], os.stat_result], path: str) -> os.stat_result | None:
    """The status of an entry of a folder that was just read; None for a link to nothing, and without permission.

    Raises ReadError.
    """

    def read() -> os.stat_result | None:
        try:
            return stat()
        except (FileNotFoundError, NotADirectoryError):
            if os.path.islink(path):  # noqa: PTH114  # for speed
                return None
            raise

    try:
        return read_or_retry(read, path)
    except (OSError, ValueError):
        return None


def check_reach(path: str | os.PathLike[str], reason: str) -> None:
    """Raise ReadError where this process can read a file that a worker of a cluster could not: `reason` says why."""
    if can_be_read(os.fspath(path)):
        raise ReadError(
            f"{os.fspath(path)} on each worker as on this machine", f"{reason} on one", "give all of them the same"
            " files and permissions"
        )  # fmt: skip


def may_not_read(error: OSError | ValueError, path: str | os.PathLike[str]) -> AccessError:
    """The error for what the system does not let us read."""
    reason = (getattr(error, "strerror", None) or str(error)).lower()
    return AccessError(f"expected to read {os.fspath(path)}, found {reason}: check its permissions")


def _is_gone(folder: str) -> bool:
    """Whether a folder is missing or empty."""
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is None
    except PermissionError:
        return False
    except OSError:
        return True
