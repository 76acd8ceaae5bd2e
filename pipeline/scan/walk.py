"""A tree of files, of any number, sorted by path, in memory that does not grow with it.

    folder ──scandir──▶ run of records, sorted ──┬── the only one ──▶ files and folders, sorted
                                                 └── one of many ──▶ Spool ──merge──▶ the same

A record is a string: `name NUL size NUL time` of a file, `name/` of a folder. Sorted as strings, the records of a
folder are in the order in which a walk through it, down each folder as it comes, has all paths sorted:

-   NUL is in no name and is less than every character, so `a NUL …` is less than `ab NUL …` just as 'a' is less
    than 'ab', and '/' is in no name, so no folder's record is the beginning of another record.
-   Of two paths, take the first components that differ, each with its '/' if it is a folder. Either they differ in
    a character: then so do the paths, there. Or one is the beginning of the other: then it is that of a file, where
    its path ends, and the shorter path is the lesser one.
"""

from __future__ import annotations

import heapq
import os
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import ListingError
from pipeline.scan.class_folders import is_folder, visible_entries

# Entries of a folder that are sorted in memory, about 2 MB of them.
RUN_ENTRIES = 16_384
# What a merge reads of a run at a time. With the 62 runs of a million files it takes less memory than sorting one did:
# the peak is 3 MB, as with 60 thousand files.
BLOCK_BYTES = 8 * 1024

_END = "\0\0"  # of a record in a spool; in a record, no two NULs are side by side


class FoundFile(NamedTuple):
    """A file of a tree, as it was when its folder was read."""

    name: str  # relative to the root, with '/' on every system; bytes that are no text as lone surrogates
    size: int  # bytes; -1 where it could not be asked
    mtime_ns: int  # 0 then

    @property
    def record(self) -> str:
        """The file in one string, for a spool."""
        return f"{self.name}\0{self.size}\0{self.mtime_ns}"

    @classmethod
    def of_record(cls, record: str) -> FoundFile:
        """The file that a record was made of."""
        name, size, mtime_ns = record.split("\0")
        return cls(name, int(size), int(mtime_ns))


class Spool:
    """Records on the disk, in a file without a name in the folder `scratch`.

    One thread appends, and any may read what has been appended: reading has no position that it would share.
    """

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        # Where the system knows no files without names it has one for a moment: a hidden one, that no walk lists.
        self._file = tempfile.TemporaryFile(dir=scratch, prefix=".logpose-", buffering=0)  # noqa: SIM115
        self._size = 0

    def append(self, records: Iterable[str]) -> tuple[int, int]:
        """Write some records, at least one; returns the bytes they take, (start, stop). Raises OSError."""
        # Names may hold lone surrogates.
        left = memoryview((_END.join(records) + _END).encode("utf-8", "surrogatepass"))
        start = self._size
        while left:
            try:
                written = os.pwrite(self._file.fileno(), left, self._size)
            except OSError as error:
                error.filename = str(self._scratch)  # for the message: which disk is full
                raise
            self._size += written
            left = left[written:]
        return start, self._size

    def read(self, start: int, stop: int) -> Iterator[str]:
        """The records in these bytes, of which a block is in memory. Raises OSError."""
        rest = b""
        while start < stop:
            block = os.pread(self._file.fileno(), min(BLOCK_BYTES, stop - start), start)
            start += len(block)
            whole, end, rest = (rest + block).rpartition(_END.encode())
            if end:
                yield from whole.decode("utf-8", "surrogatepass").split(_END)

    def close(self) -> None:
        """Give the room on the disk back."""
        self._file.close()


def walk_files(
    root: Path, scratch: Path, is_own: Callable[[str], bool] = lambda name: False
) -> Generator[FoundFile, None, None]:
    """The files of a tree, or the one file given, sorted by path as Python sorts strings, as they are asked for.

    scratch   a folder for temporary files, which have no names; needed where a folder holds RUN_ENTRIES or more
    is_own    says of a file or folder, by its path relative to the root, that it is to be left out, with all that is
              below it; asked once for each

    Hidden files and folders, and clutter, are left out. Links are followed, but not in circles. In memory are the
    entries of the folders on the way to the current file, and of each of them RUN_ENTRIES at most.

    Raises ListingError if there is nothing, or a folder that cannot be read; OSError if `scratch` cannot be written.
    """
    if not os.path.lexists(root):
        raise ListingError(f"expected images, found nothing at {root}: check the path")
    nothing_yet = True
    with closing(_below(root, scratch, is_own) if root.is_dir() else _alone(root, is_own)) as files:
        for file in files:
            nothing_yet = False
            yield file
    if nothing_yet:
        raise ListingError(f"expected a folder with images, found no file in {root}: check the path")


def _alone(root: Path, is_own: Callable[[str], bool]) -> Generator[FoundFile, None, None]:
    if not is_own(root.name):
        yield _look_at(root.name, root.stat)


class _Level(NamedTuple):
    """A folder on the way to the current file."""

    prefix: str  # its path relative to the root and '/'; '' for the root
    real: str  # its path without any links
    records: Generator[str, None, None]  # those that are still to come


def _below(root: Path, scratch: Path, is_own: Callable[[str], bool]) -> Generator[FoundFile, None, None]:
    # A stack of our own: folders may be nested deeper than Python's calls.
    levels = [_Level("", os.path.realpath(root), _sorted_records(root, "", scratch, is_own))]
    try:
        while levels:
            level = levels[-1]
            for record in level.records:
                if not record.endswith("/"):
                    yield FoundFile.of_record(level.prefix + record)
                    continue
                folder = root / level.prefix / record
                # Only a link can lead back up, and asking for the real path of every folder would take long.
                if folder.is_symlink():
                    real = os.path.realpath(folder)
                    if any(above.real == real for above in levels):
                        continue
                else:
                    real = f"{level.real}/{folder.name}"
                prefix = level.prefix + record
                levels.append(_Level(prefix, real, _sorted_records(folder, prefix, scratch, is_own)))
                break
            else:
                levels.pop()
    finally:
        for level in levels:
            level.records.close()


def _sorted_records(
    folder: Path, prefix: str, scratch: Path, is_own: Callable[[str], bool]
) -> Generator[str, None, None]:
    with closing(_records(folder, prefix, is_own)) as records:
        run = sorted(islice(records, RUN_ENTRIES))
        if len(run) < RUN_ENTRIES:
            yield from run
            return
        with closing(Spool(scratch)) as spool:
            runs: list[tuple[int, int]] = []
            while run:
                runs.append(spool.append(run))
                run.clear()  # else it would be there beside the next
                run = sorted(islice(records, RUN_ENTRIES))
            yield from heapq.merge(*(spool.read(start, stop) for start, stop in runs))


def _records(folder: Path, prefix: str, is_own: Callable[[str], bool]) -> Generator[str, None, None]:
    """The records of a folder, as the system lists it.

    Sizes and times are asked for here rather than when a file's turn comes. On a local disk that costs the same, but
    file servers send them along with the names and soon forget them, and whoever has asked what a link leads to need
    not ask again.
    """
    for entry in visible_entries(folder):
        if not is_own(prefix + entry.name):
            yield f"{entry.name}/" if is_folder(entry) else _look_at(entry.name, entry.stat).record


def _look_at(name: str, stat: Callable[[], os.stat_result]) -> FoundFile:
    try:
        status = stat()
    except OSError:  # it will fail again when it is to be decoded, and be accounted for
        return FoundFile(name, -1, 0)
    return FoundFile(name, status.st_size, status.st_mtime_ns)
