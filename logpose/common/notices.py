"""Notes about this machine, each said once by a process: work goes on, but not as well as it could."""

import logging
from functools import cache

# The command line and the Python interface print what is logged here (`jobs.console.output`); a worker of a cluster
# logs it.
LOGGER = logging.getLogger("logpose")


@cache
def note_once(text: str) -> None:
    """Say a line, if this process has not said it yet."""
    LOGGER.warning(text)
