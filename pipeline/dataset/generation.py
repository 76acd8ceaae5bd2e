"""Notice a dataset that is replaced while it is read: its rows would be mixed with those of another.

A build changes zarr.json before anything else, and gives it the new content hash at the end. So rows that were read
before a look at it are those of the dataset that was opened.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeAlias

from logpose.common.records import read_json
from pipeline.errors import DatasetChangedError
from pipeline.faults import read_stored


class Generation(NamedTuple):
    """What identifies a sealed dataset.

    content_hash  None while it is not sealed, or cannot be parsed
    file          inode, size and times of zarr.json: a shortcut, since a copy has the same content
    """

    content_hash: str | None
    file: tuple[int, ...]


def read_generation(dataset: Path) -> Generation | None:
    """The generation that is at the path now; None if there is no dataset."""
    metadata, file = dataset / "zarr.json", tuple[int, ...]()
    try:
        file = _file(metadata)
        node = read_stored(partial(read_json, metadata), metadata)
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return Generation(None, file)
    attributes = node.get("attributes") if isinstance(node, dict) else None
    sealed = isinstance(attributes, dict) and attributes.get("sealed") is True
    return Generation(str(attributes.get("content_hash")) if sealed else None, file)  # type: ignore[union-attr]


def check_generation(dataset: Path, opened: Generation) -> None:
    """Check that the dataset at the path has the content of the one that was opened. Raises DatasetChangedError."""
    try:
        if _file(dataset / "zarr.json") == opened.file:
            return
    except OSError:
        pass  # described below
    now = read_generation(dataset)
    if now is not None and now.content_hash is not None and now.content_hash == opened.content_hash:
        return
    found = "nothing there" if now is None else "a build at work on it"
    if now is not None and now.content_hash is not None:
        found = f"another one (content {now.content_hash[:8]}, before {str(opened.content_hash)[:8]})"
    raise changed(dataset, found)


def changed(dataset: Path, found: str) -> DatasetChangedError:
    """Make the error for a dataset that holds something else now."""
    return DatasetChangedError(
        f"expected the dataset at {dataset} to stay the same while it is read, found {found} now: nothing computed from"
        " mixed rows was saved; wait until it is complete, and run the same command again"
    )


class Stamps:
    """Size and times of a dataset's files when it was opened: one that differs later may hold other rows.

    A copy of another dataset over this one changes zarr.json last, or never where it is interrupted.
    """

    def __init__(self, files: Iterable[str]) -> None:
        self._stamps: dict[str, _Stamp | None] = {}
        for file in files:
            with suppress(OSError):  # reading it tells
                self.accept(file, os.stat(file))  # noqa: PTH116  # for speed

    def fits(self, file: str, status: os.stat_result) -> bool:
        """Whether a file is as it was."""
        return self._stamps.get(file) == _stamp(status)

    def accept(self, file: str, status: os.stat_result) -> None:
        """From now on, the file is to be like this."""
        self._stamps[file] = _stamp(status)


_Stamp: TypeAlias = tuple[int, int, int]


def _stamp(status: os.stat_result) -> _Stamp:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _file(metadata: Path) -> tuple[int, ...]:
    status = read_stored(metadata.stat, metadata)
    return status.st_ino, *_stamp(status)
