"""Thread-safe progress counters of a build."""

from __future__ import annotations

import threading

import numpy as np

from logpose.common.errors import escaped
from pipeline.build.journal import NO_FILE, Failure, ShardResult
from pipeline.failure_jump import FailureJump
from pipeline.scan.source_files import Source


class BuildCancelled(Exception):
    """Raised in a task to end it: the shard that it works on is dropped."""


class BuildProgress:
    """Counters of the files tried, updated from many threads, and the cancelling of their tasks.

    done    number of files tried
    failed  the failure of each file that could not be decoded, by file number
    jump    the watch over the share of these; the order of the rows is random, so it should not change
    """

    def __init__(self, source: Source) -> None:
        self.done = 0
        self.failed: dict[int, Failure] = {}
        self.jump = FailureJump()
        self._source = source
        self._tried = np.zeros(len(source.files), dtype=np.bool_)  # (N,)
        self._lock = threading.Lock()
        self._cancelled = threading.Event()

    def count_file(self, file: int, failure: Failure | None) -> None:
        """Count a file, once even if it is tried again. Raises BuildCancelled if the task should end."""
        self._count(file, failure)
        self.raise_if_cancelled()

    def count_shard(self, result: ShardResult) -> None:
        """Count the files of a finished shard, even if the build is being cancelled."""
        reasons = {file: (kind, reason) for file, kind, reason in result.failures}
        for file in {*result.assigned, *reasons} - {NO_FILE}:
            path = escaped(self._source.files[file].path)
            self._count(file, Failure(path, *reasons[file]) if file in reasons else None)

    def _count(self, file: int, failure: Failure | None) -> None:
        with self._lock:
            if not self._tried[file]:
                self.done += 1
                self.jump.count(failure is not None)
            self._tried[file] = True
            if failure is not None:
                self.failed[file] = failure

    def failures(self) -> list[Failure]:
        """All failures, sorted by path."""
        with self._lock:
            return sorted(self.failed.values(), key=lambda failure: failure.path)

    def cancel(self) -> None:
        """End all tasks as soon as they have tried their current file."""
        self._cancelled.set()

    def raise_if_cancelled(self) -> None:
        """Raise BuildCancelled after `cancel`."""
        if self._cancelled.is_set():
            raise BuildCancelled
