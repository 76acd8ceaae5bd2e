"""Notes about this machine, each said once by a process: work goes on, but not as well as it could."""

import logging
import threading

# The command line and the Python interface print what is logged here (`jobs.console.output`); a worker of a cluster
# logs it.
LOGGER = logging.getLogger("logpose")

_said: set[str] = set()
_guard = threading.Lock()


def note_once(kind: str, text: str) -> None:
    """Say a line, unless this process has said one of this kind already."""
    with _guard:
        is_new = kind not in _said
        _said.add(kind)
    if is_new:
        LOGGER.warning("%s", text)
