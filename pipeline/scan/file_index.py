"""Background directory scan: a thread lists the files of a tree and spools the list to disk, part by part.

    walk_files ──thread, a part at a time──▶ Spool ──▶ parts()

The thread runs ahead of the consumer of the parts, so that the number of files is soon known. It releases the GIL while
it waits for the system to list a folder or to write a part.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path

from pipeline.scan.walk import FoundFile, Spool, walk_files


class FileIndexClosed(Exception):
    """Parts were requested outside the `with` block of the index."""


class FileIndex:
    """The files of a tree, or the one file given, sorted by path.

    Use it in a `with` block, during which the thread runs.

    root, scratch, exclude  as for `walk_files`; exclude is called in the thread
    part_rows               files in each part; the last may have fewer

    `found` is the number of files found so far; `complete` is True once the scan has found all.
    """

    def __init__(
        self, root: Path, scratch: Path, part_rows: int, exclude: Callable[[str], bool] = lambda name: False
    ) -> None:
        self.found = 0
        self.complete = False
        self._root = root
        self._scratch = scratch
        self._part_rows = part_rows
        self._exclude = exclude
        self._written = 0  # bytes of the spool, whole parts only
        self._error: BaseException | None = FileIndexClosed()
        self._changed = threading.Condition()  # guards found, complete, _written and _error
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="logpose-file-index", daemon=True)

    def __enter__(self) -> FileIndex:
        """Start the scan. Raises OSError where no file can be made in `scratch`."""
        self._spool = Spool(self._scratch)
        self._error = None
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Stop the thread, at the latest after its current file, and delete the spool."""
        self._stopped.set()
        self._thread.join()
        self._error = FileIndexClosed()
        self._spool.close()

    def parts(self) -> Iterator[list[FoundFile]]:
        """Yield the parts in order, each as soon as it has been found; every call starts at the first.

        Raises what `walk_files` raises, as soon as it does, before any remaining parts; FileIndexClosed outside the
        `with` block.
        """
        position = 0
        while (stop := self._wait_beyond(position)) > position:
            records = self._spool.read(position, stop)
            while part := [FoundFile.of_record(record) for record in islice(records, self._part_rows)]:
                yield part
                self._raise_if_failed()
            position = stop

    def _wait_beyond(self, position: int) -> int:
        """Wait until bytes beyond `position` can be read; return their end, or `position` if there are no more."""
        with self._changed:
            self._changed.wait_for(lambda: self._written > position or self.complete or self._error is not None)
            self._raise_if_failed()
            return self._written

    def _raise_if_failed(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            with closing(walk_files(self._root, self._scratch, self._is_excluded)) as files:
                while part := list(islice(files, self._part_rows)):
                    self._raise_if_stopped()
                    _, stop = self._spool.append(file.record for file in part)
                    with self._changed:
                        self._written = stop
                        self.found += len(part)
                        self._changed.notify_all()
        except BaseException as raised:
            error = raised
        with self._changed:
            self._error = error
            self.complete = error is None
            self._changed.notify_all()

    def _is_excluded(self, name: str) -> bool:
        # Also called while a folder of a million files is read, before the walk yields the first of them.
        self._raise_if_stopped()
        return self._exclude(name)

    def _raise_if_stopped(self) -> None:
        if self._stopped.is_set():
            raise FileIndexClosed
