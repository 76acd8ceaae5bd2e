"""Notice a dataset that is replaced while it is read: its rows would be mixed with those of another.

A build changes zarr.json before anything else, and gives it the new content hash at the end. So rows that were read
before a look at it are those of the dataset that was opened.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import NamedTuple

from logpose.common.records import read_json
from pipeline.errors import DatasetChangedError
from pipeline.faults import read_stored


class Generation(NamedTuple):
    """What identifies a sealed dataset.

    content_hash  None while it is not sealed, or cannot be parsed
    file          inode, size and modification time of zarr.json: a shortcut, since a copy has the same content
    """

    content_hash: str | None
    file: tuple[int, int, int]


def read_generation(dataset: Path) -> Generation | None:
    """The generation that is at the path now; None if there is no dataset."""
    metadata, file = dataset / "zarr.json", (0, 0, 0)
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
    raise DatasetChangedError(
        f"expected the dataset at {dataset} to stay the same while it is read, found {found} now: nothing computed from"
        " mixed rows was saved; wait until it is complete, and run the same command again"
    )


def _file(metadata: Path) -> tuple[int, int, int]:
    status = read_stored(metadata.stat, metadata)
    return status.st_ino, status.st_size, status.st_mtime_ns
