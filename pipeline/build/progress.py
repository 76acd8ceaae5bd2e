"""How far a build is: files tried and failed, counted from many threads."""

from __future__ import annotations

import threading

import numpy as np

from logpose.common.errors import printable
from pipeline.build.journal import Failure, ShardResult
from pipeline.build.source_files import Source


class Stopped(Exception):
    """The build is being stopped; the shard in hand is dropped."""


class BuildProgress:
    """Counts the files tried, from many threads, and stops these when told to.

    done    files tried
    failed  why those failed that did, by number
    """

    def __init__(self, source: Source) -> None:
        self.done = 0
        self.failed: dict[int, Failure] = {}
        self._source = source
        self._tried = np.zeros(source.count, dtype=np.bool_)  # (N,)
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def tick(self, file: int, failure: Failure | None) -> None:
        """Count one file, once, however often it is tried. Raises Stopped in a task that should end."""
        self._count(file, failure)
        self.raise_if_stopped()

    def add(self, result: ShardResult) -> None:
        """Count a whole shard: one from a former run, or from another machine. Never raises Stopped: what is
        finished is finished, whatever has stopped the others meanwhile.
        """
        reasons = {file: (kind, reason) for file, kind, reason in result.failures}
        for file in {*result.wanted, *reasons}:
            path = printable(self._source.files[file].path)
            self._count(file, Failure(path, *reasons[file]) if file in reasons else None)

    def _count(self, file: int, failure: Failure | None) -> None:
        with self._lock:
            self.done += not self._tried[file]
            self._tried[file] = True
            if failure is not None:
                self.failed[file] = failure

    def failures(self) -> list[Failure]:
        """Sorted by path."""
        with self._lock:
            return sorted(self.failed.values(), key=lambda failure: failure.path)

    def stop(self) -> None:
        self._stopped.set()

    def raise_if_stopped(self) -> None:
        if self._stopped.is_set():
            raise Stopped
