"""Directory traversal: the visible entries of a folder, and the descent into the folders below it."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import ListingError, ReadError
from pipeline.faults import fault_of_system, read_or_retry

# Left behind by file managers, archivers, file systems and servers. All names that begin with a dot, such as
# .ipynb_checkpoints, are skipped as well.
CLUTTER = {
    "thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "#recycle", "#snapshot", "$recycle.bin",
    "system volume information", "lost+found",
}  # fmt: skip


def visible_entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Yield the entries of a folder, in the system's order, without hidden ones and clutter.

    Raises ListingError where the folder may not be read, ReadError where the system fails to.
    """
    try:
        with read_or_retry(lambda: os.scandir(folder), folder) as entries:
            for entry in entries:
                if not entry.name.startswith(".") and entry.name.lower() not in CLUTTER:
                    yield entry
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            raise ReadError(str(folder), f"{reason}, although it was listed", "restore it") from error
        if fault := fault_of_system(error, folder):
            raise fault from error
        message = f"expected a readable folder, found {reason} at {folder}: check its permissions"
        raise ListingError(message) from error


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether this is a folder or a link to one. A broken link counts as a file: decoding reports it.

    Raises ReadError.
    """
    try:
        return read_or_retry(entry.is_dir, entry.path)
    except OSError:  # a link to itself, for example
        return False


MAX_REPEATED = 1000  # links to folders that others lead to as well, in one tree


class _Level(NamedTuple):
    """A folder on the way to the current file."""

    prefix: str  # its path relative to the root, with a '/' at the end; '' for the root
    real: str  # its path with all links resolved
    entries: Generator[str, None, None]  # the ones to come


def descend(root: Path, entries: Callable[[Path, str], Generator[str, None, None]]) -> Generator[str, None, None]:
    """Yield every entry of a tree that is not a folder, prefixed with the path of its folder relative to the root.

    entries  called with each folder and its prefix, '' or 'a/b/'; yields text that begins with the entry's name, and
             `name/` for a folder

    Depth first, in the order of `entries`. Follows links, but not in cycles. Raises ListingError where links list the
    same folders again and again: two links in each of 14 folders to the next make 16,384 paths to the last.
    """
    # An explicit stack: folders may be nested deeper than Python's recursion limit.
    linked: set[str] = set()  # folders that links have led to
    repeated = 0  # links that led to one of these again
    levels = [_Level("", os.path.realpath(root), entries(root, ""))]
    try:
        while levels:
            level = levels[-1]
            for entry in level.entries:
                prefix = level.prefix + entry
                if not entry.endswith("/"):
                    yield prefix
                    continue
                folder = root / prefix
                # Only a link can lead back up, and resolving every folder would be slow.
                if folder.is_symlink():
                    real = os.path.realpath(folder)
                    if any(above.real == real for above in levels):
                        continue
                    repeated += real in linked
                    linked.add(real)
                    if repeated > MAX_REPEATED:
                        raise ListingError(
                            f"expected a tree of folders, found links to the same folders again and again in {root}:"
                            f" remove some, such as {prefix.removesuffix('/')}"
                        )
                else:
                    real = f"{level.real}/{folder.name}"
                levels.append(_Level(prefix, real, entries(folder, prefix)))
                break
            else:
                levels.pop()
    finally:
        for level in levels:
            level.entries.close()
