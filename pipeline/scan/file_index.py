"""The files of a tree, found by a thread of its own and kept on disk, part by part.

    walk_files ──thread, a part at a time──▶ Spool ──▶ parts()

The thread runs ahead of whoever works through the parts, so that soon it is known how many files there are. It asks
the system about every file, and writes every part, without the interpreter's lock, which others can then have.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from types import TracebackType

from pipeline.scan.walk import FoundFile, Spool, walk_files


class FileIndexClosed(Exception):
    """Files were asked for outside the roll's `with`."""


class FileIndex:
    """The files of a tree, or the one file given, sorted by path. To be used in a `with`, where the thread runs.

    root, scratch, is_own  as for `walk_files`; is_own is called in the thread
    part_rows              files in each part, but the last

    `found` is the number of files found so far, `complete` whether these are all.
    """

    def __init__(
        self, root: Path, scratch: Path, part_rows: int, is_own: Callable[[str], bool] = lambda name: False
    ) -> None:
        self.found = 0
        self.complete = False
        self._root = root
        self._scratch = scratch
        self._part_rows = part_rows
        self._is_own = is_own
        self._written = 0  # bytes of the spool; whole parts
        self._error: BaseException | None = FileIndexClosed()
        self._grown = threading.Condition()  # of the five above that change
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="logpose-roll", daemon=True)

    def __enter__(self) -> FileIndex:
        """Begin. Raises OSError where no file can be made in `scratch`."""
        self._spool = Spool(self._scratch)
        self._error = None
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the thread, at the latest after the file it is asking the system about, and delete the spool."""
        self._stopped.set()
        self._thread.join()
        self._error = FileIndexClosed()
        self._spool.close()

    def parts(self) -> Iterator[list[FoundFile]]:
        """The parts in order, each as soon as it has been found; every call begins with the first.

        Raises ListingError or OSError, as `walk_files` does, as soon as the thread has met with it, whatever parts
        are still to come; FileIndexClosed outside the `with`.
        """
        place = 0
        while (stop := self._wait_beyond(place)) > place:
            records = self._spool.read(place, stop)
            while part := [FoundFile.of_record(record) for record in islice(records, self._part_rows)]:
                yield part
                self._raise_if_failed()
            place = stop

    def _wait_beyond(self, place: int) -> int:
        """The bytes that can be read, once they are more than `place`; `place` again if these are all."""
        with self._grown:
            self._grown.wait_for(lambda: self._written > place or self.complete or self._error is not None)
            self._raise_if_failed()
            return self._written

    def _raise_if_failed(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            with closing(walk_files(self._root, self._scratch, self._is_left_out)) as files:
                while part := list(islice(files, self._part_rows)):
                    self._raise_if_stopped()
                    _, stop = self._spool.append(file.record for file in part)
                    with self._grown:
                        self._written = stop
                        self.found += len(part)
                        self._grown.notify_all()
        except BaseException as raised:
            error = raised
        with self._grown:
            self._error = error
            self.complete = error is None
            self._grown.notify_all()

    def _is_left_out(self, name: str) -> bool:
        # A folder of a million files is read before the first of them comes out of the walk; this is asked meanwhile.
        self._raise_if_stopped()
        return self._is_own(name)

    def _raise_if_stopped(self) -> None:
        if self._stopped.is_set():
            raise FileIndexClosed
