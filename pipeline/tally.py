"""How far a build is: files tried and failed, counted from many threads."""

from __future__ import annotations

import threading

import numpy as np

from pipeline.errors import printable
from pipeline.journal import Failure, ShardResult
from pipeline.source import Source


class Stopped(Exception):
    """The build is being stopped; the shard in hand is dropped."""


class Tally:
    """Counts the files tried, from many threads, and stops these when told to."""

    def __init__(self, source: Source) -> None:
        self.done = 0
        self.failed: dict[tuple[str, int], Failure] = {}  # by part and index
        self._source = source
        self._tried = {part: np.zeros(len(files), dtype=np.bool_) for part, files in source.files.items()}
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def tick(self, part: str, index: int, failure: Failure | None) -> None:
        """Count one file, once, however often it is tried. Raises Stopped in a task that should end."""
        self._count(part, index, failure)
        self.raise_if_stopped()

    def add(self, result: ShardResult) -> None:
        """Count a whole shard: one from a former run, or from another machine. Never raises Stopped: what is
        finished is finished, whatever has stopped the others meanwhile.
        """
        reasons = {index: (kind, reason) for index, kind, reason in result.failures}
        for index in {*result.wanted, *reasons}:
            path = printable(self._source.files[result.part][index].path)
            self._count(result.part, index, Failure(path, *reasons[index]) if index in reasons else None)

    def _count(self, part: str, index: int, failure: Failure | None) -> None:
        with self._lock:
            self.done += not self._tried[part][index]
            self._tried[part][index] = True
            if failure is not None:
                self.failed[part, index] = failure

    def failed_in(self, part: str) -> set[int]:
        return {index for name, index in self.failed if name == part}

    def failures(self) -> list[Failure]:
        with self._lock:
            return sorted(self.failed.values(), key=lambda failure: failure.path)

    def stop(self) -> None:
        self._stopped.set()

    def raise_if_stopped(self) -> None:
        if self._stopped.is_set():
            raise Stopped
