"""List the files of a tree of any size, sorted by path, in constant memory (external merge sort).

    folder ──scandir──▶ run of records, sorted ──┬── the only one ──▶ files and folders, sorted
                                                 └── one of many ──▶ Spool ──merge──▶ the same

A record is a string: `name NUL size NUL time` for a file, `name/` for a folder. If the records of each folder are
sorted as strings, a depth-first walk yields all paths sorted:

-   NUL occurs in no name and is less than every character, so records sort as names do. '/' occurs in no name, so no
    folder's record is a prefix of another record.
-   Compare two paths at their first components that differ, with the '/' of a folder. If these differ in a character,
    so do the paths. Otherwise one is a prefix of the other: it is a file, its path ends there, and is the lesser one.
"""

from __future__ import annotations

import heapq
import os
import stat
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from logpose.common.files import errors_at
from pipeline.errors import ListingError
from pipeline.faults import status_of, status_of_listed
from pipeline.scan.tree import descend, is_folder, visible_entries

# Entries of a folder that are sorted in memory, about 2 MB of them.
RUN_ENTRIES = 16_384
# Bytes of a run that the merge reads at a time. Even with the 62 runs of a million files, the merge takes less memory
# than sorting one run: the peak is 3 MB.
BLOCK_BYTES = 8 * 1024

_RECORD_END = "\0\0"  # in a spool; no record contains two adjacent NULs


class FoundFile(NamedTuple):
    """A file of a tree, with its status at the time its folder was read.

    A folder below the root that may not be read is a file too, whose name ends in '/': only its files are lost.
    """

    name: str  # relative to the root, with '/' on every system; bytes that are not valid UTF-8 as lone surrogates
    size: int  # bytes; -1 where the file has no readable status
    mtime_ns: int  # 0 then

    @property
    def record(self) -> str:
        """The file as a record of a spool."""
        return f"{self.name}\0{self.size}\0{self.mtime_ns}"

    @classmethod
    def of_record(cls, record: str) -> FoundFile:
        """The inverse of `record`."""
        name, size, mtime_ns = record.split("\0")
        return cls(name, int(size), int(mtime_ns))


class Spool:
    """Records on disk, in an unnamed file in the folder `scratch`.

    One thread appends; any thread may read what has been appended, since reads share no file position.
    Raises OSError where the file cannot be made.
    """

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        # On a system without unnamed files it has a name for a moment: a hidden one, which no walk lists.
        self._file = tempfile.TemporaryFile(dir=scratch, prefix=".logpose-", buffering=0)  # noqa: SIM115
        self._size = 0

    def append(self, records: Iterable[str]) -> tuple[int, int]:
        """Write one or more records; return the span of bytes they take, (start, stop). Raises OSError."""
        # Names may hold lone surrogates.
        left = memoryview((_RECORD_END.join(records) + _RECORD_END).encode("utf-8", "surrogatepass"))
        start = self._size
        while left:
            with errors_at(self._scratch):  # so that the message tells which disk is full
                written = os.pwrite(self._file.fileno(), left, self._size)
            self._size += written
            left = left[written:]
        return start, self._size

    def read(self, start: int, stop: int) -> Iterator[str]:
        """Yield the records in a span of bytes, with one block of it in memory at a time. Raises OSError."""
        rest = b""
        while start < stop:
            with errors_at(self._scratch):
                block = os.pread(self._file.fileno(), min(BLOCK_BYTES, stop - start), start)
            start += len(block)
            whole, end, rest = (rest + block).rpartition(_RECORD_END.encode())
            if end:
                yield from whole.decode("utf-8", "surrogatepass").split(_RECORD_END)

    def close(self) -> None:
        """Free the disk space. Raises OSError."""
        with errors_at(self._scratch):
            self._file.close()


def walk_files(
    root: Path, scratch: Path, exclude: Callable[[str], bool] = lambda name: False
) -> Generator[FoundFile, None, None]:
    """Yield the files of a tree, or the one file given, sorted by path as Python sorts strings.

    scratch   a folder for unnamed temporary files; used where a folder holds RUN_ENTRIES or more
    exclude   called once with the path of each file and folder relative to the root; True leaves it out, with all below

    Leaves out hidden files and folders, and clutter. Follows links, but not in cycles. Holds in memory at most
    RUN_ENTRIES entries of each folder on the way to the current file.

    Raises ListingError where nothing is found or the root may not be read; AccessError; ReadError where the system
    fails to read a folder; OSError where `scratch` cannot be written.
    """
    status = status_of(root)
    if status is None and not root.is_symlink():
        raise ListingError(f"expected images, found nothing at {root}: check the path")
    if status is not None and not (stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode)):
        raise ListingError(f"expected a folder or an image, found a pipe, socket or device at {root}: check the path")
    empty = True
    is_tree = status is not None and stat.S_ISDIR(status.st_mode)
    with closing(_walk_tree(root, scratch, exclude) if is_tree else _single_file(root, exclude)) as files:
        for file in files:
            empty = False
            yield file
    if empty:
        raise ListingError(f"expected a folder with images, found no file in {root}: check the path")


def _single_file(root: Path, exclude: Callable[[str], bool]) -> Generator[FoundFile, None, None]:
    if not exclude(root.name):
        yield _stat_file(root.name, root.stat, str(root))


def _walk_tree(root: Path, scratch: Path, exclude: Callable[[str], bool]) -> Generator[FoundFile, None, None]:
    with closing(descend(root, lambda folder, prefix: _sorted_records(folder, prefix, scratch, exclude))) as records:
        yield from map(FoundFile.of_record, records)


def _sorted_records(
    folder: Path, prefix: str, scratch: Path, exclude: Callable[[str], bool]
) -> Generator[str, None, None]:
    with closing(_records(folder, prefix, exclude)) as records:
        run = sorted(islice(records, RUN_ENTRIES))
        if len(run) < RUN_ENTRIES:
            yield from run
            return
        with closing(Spool(scratch)) as spool:
            runs: list[tuple[int, int]] = []
            while run:
                runs.append(spool.append(run))
                run.clear()  # free it before reading the next
                run = sorted(islice(records, RUN_ENTRIES))
            yield from heapq.merge(*(spool.read(start, stop) for start, stop in runs))


def _records(folder: Path, prefix: str, exclude: Callable[[str], bool]) -> Generator[str, None, None]:
    """Yield the records of a folder, in the system's order.

    Sizes and times are read here rather than when a file is yielded. On a local disk that costs the same; a file server
    sends them along with the names and soon forgets them, and `is_folder` has cached the status behind a link.
    """
    try:
        for entry in visible_entries(folder):
            if not exclude(prefix + entry.name):
                yield f"{entry.name}/" if is_folder(entry) else _stat_file(entry.name, entry.stat, entry.path).record
    except ListingError:
        if not prefix:
            raise
        yield FoundFile("", -1, 0).record  # the folder itself: its name is the prefix


def _stat_file(name: str, stat: Callable[[], os.stat_result], path: str) -> FoundFile:
    status = status_of_listed(stat, path)
    if status is None:  # decoding fails too, and reports it
        return FoundFile(name, -1, 0)
    return FoundFile(name, status.st_size, status.st_mtime_ns)
