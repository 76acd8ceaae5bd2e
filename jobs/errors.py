"""Errors of the jobs."""

import errno

from logpose.common.errors import LogposeError

OUT_OF_MEMORY = "out of memory; use a smaller --batch-size, --ram-budget or --size, or fewer --workers"


class JobError(LogposeError):
    """Wrong use of a job, or bad input. Nothing was changed."""


class WorkFailedError(JobError):
    """The use was right, but the work failed."""

    exit_code = 1


class Interrupted(LogposeError):
    """Ctrl-C was pressed. The work so far is saved; the message says how to resume."""

    exit_code = 130


def explain(error: OSError) -> tuple[str, int]:
    """Return the message, with a remedy, and the exit code of an error of the operating system."""
    reason, where = (error.strerror or str(error)).lower(), f" at {error.filename}" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{reason}{where}; make room and run the same command again to resume (train: with --resume)", 1
    if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError | FileExistsError):
        return f"{reason}{where}; check the path", 2
    if isinstance(error, PermissionError):
        return f"{reason}{where}; check the permissions of the file and of its folder", 2
    return f"{reason}{where}; check the disk and run the same command again", 1
