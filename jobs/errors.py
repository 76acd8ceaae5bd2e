"""Errors of the jobs."""

from logpose.common.errors import LogposeError


class JobError(LogposeError):
    """Wrong use of a job, or bad input. Nothing was changed."""


class WorkFailedError(JobError):
    """The use was right, but the work failed."""

    exit_code = 1


class Interrupted(LogposeError):
    """Ctrl-C was pressed. The work so far is saved; the message says how to resume."""

    exit_code = 130
