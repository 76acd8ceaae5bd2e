"""What a dataset is built from: the listed files, as they are now."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path

import numpy as np
import numpy.typing as npt

from logpose.common.errors import printable
from pipeline.scan.class_folders import Listing, SplitName


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file as it was when the build began."""

    path: str  # relative to the root, with '/'
    label: int
    part: SplitName | None  # None where the folders do not say
    bytes: int  # -1 where it could not be asked
    mtime_ns: int

    @property
    def line(self) -> str:
        """The file in one line, by which a later listing can tell whether it is still the same."""
        return f"{self.bytes} {self.mtime_ns} {self.label} {self.part} {printable(self.path)}"


@dataclass(frozen=True)
class Source:
    """All that a build reads. A file's number is its place in `files`, which are sorted by path."""

    root: Path
    class_names: tuple[str, ...]
    files: tuple[SourceFile, ...]
    skipped: tuple[str, ...]

    @property
    def count(self) -> int:
        return len(self.files)

    @property
    def has_splits(self) -> bool:
        """Whether the folders say which image is for training and which for validation."""
        return self.files[0].part is not None

    @cached_property
    def labels(self) -> npt.NDArray[np.int64]:
        """(N,)"""
        return np.array([file.label for file in self.files], dtype=np.int64)

    def lines(self) -> Iterator[str]:
        """A line for each file; see `SourceFile.line`."""
        return (file.line for file in self.files)

    @cached_property
    def hash(self) -> str:
        """Of paths, sizes, times, classes and parts: the same folder gives the same."""
        digest = blake2b(digest_size=16)
        digest.update("\0".join(self.class_names).encode())
        for line in self.lines():
            digest.update(b"\n" + line.encode())
        return digest.hexdigest()


def survey(listing: Listing) -> Source:
    """Look at each listed file."""
    files = tuple(
        _look_at(listing.root, image.path, image.class_index, image.split) for image in listing.images
    )
    return Source(listing.root, tuple(map(printable, listing.classes)), files, listing.skipped)


def _look_at(root: Path, path: str, label: int, part: SplitName | None) -> SourceFile:
    try:
        status = os.stat(f"{root}/{path}")  # noqa: PTH116  # in half the time of pathlib's
    except (OSError, ValueError):  # it will fail again when it is to be decoded, and be accounted for
        return SourceFile(path, label, part, -1, -1)
    return SourceFile(path, label, part, status.st_size, status.st_mtime_ns)


def what_changed(before: Iterable[str], now: Iterable[str]) -> str:
    """How two listings of a folder differ, for a person: `1 changed, 2 gone, 1 new (first dogs/3.jpg)`."""
    old = {line.split(" ", 4)[4]: line for line in before}
    new = {line.split(" ", 4)[4]: line for line in now}
    gone = [path for path in old if path not in new]
    added = [path for path in new if path not in old]
    changed = [path for path, line in new.items() if path in old and old[path] != line]
    said = [f"{len(paths):,} {what}" for paths, what in ((changed, "changed"), (gone, "gone"), (added, "new")) if paths]
    if not said:
        return "other names of classes"
    return f"{', '.join(said)} (first {min([*gone, *added, *changed])})"
