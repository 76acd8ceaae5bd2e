"""What can be wrong with the use of a job. One line each: what, where, and what to do about it."""

from collections.abc import Iterable
from difflib import get_close_matches


class JobError(Exception):
    """Wrong use or bad input: nothing was done."""

    exit_code = 2


class WorkFailedError(JobError):
    """The use was right, the work failed."""

    exit_code = 1


class Interrupted(Exception):
    """Ctrl-C came and what was done so far is saved; the message says how to go on."""

    exit_code = 130


def nearest(name: str, known: Iterable[str]) -> str:
    """The remedy for an unknown name: the one probably meant, or all there are."""
    names = sorted(known)
    matches = get_close_matches(name.lower(), [candidate.lower() for candidate in names], n=1, cutoff=0.6)
    if matches:
        meant = next(candidate for candidate in names if candidate.lower() == matches[0])
        return f"did you mean '{meant}'?"
    return f"known are {', '.join(names)}"
