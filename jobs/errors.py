"""What can be wrong with the use of a job. One line each: what, where, and what to do about it."""

from logpose.common.errors import LogposeError


class JobError(LogposeError):
    """Wrong use or bad input: nothing was done."""


class WorkFailedError(JobError):
    """The use was right, the work failed."""

    exit_code = 1


class Interrupted(Exception):
    """Ctrl-C came and what was done so far is saved; the message says how to go on."""

    exit_code = 130
