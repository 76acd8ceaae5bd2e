"""The source files of a build: their classes and splits, and their sizes and times when it began."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from logpose.common.errors import printable

SplitName = Literal["train", "val"]


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file in a class folder; only decoding shows whether it is an image."""

    path: str  # relative to the root, with '/' on every system
    label: int
    split: SplitName | None  # None if the folders do not define splits
    bytes: int  # -1 if os.stat failed
    mtime_ns: int

    @property
    def line(self) -> str:
        """The file in one line, equal as long as the file is unchanged."""
        return f"{self.bytes} {self.mtime_ns} {self.label} {self.split} {printable(self.path)}"


@dataclass(frozen=True)
class Source:
    """Everything that a build reads. The number of a file is its index in `files`."""

    root: Path
    class_names: tuple[str, ...]  # sorted; a label is an index into it
    files: tuple[SourceFile, ...]  # sorted by path
    skipped: tuple[str, ...]  # files and folders directly in the root that belong to no class

    @property
    def has_splits(self) -> bool:
        """Whether the folders define the splits."""
        return self.files[0].split is not None

    @cached_property
    def labels(self) -> npt.NDArray[np.int64]:
        """The class index of each file, (N,)."""
        return np.array([file.label for file in self.files], dtype=np.int64)

    def lines(self) -> Iterator[str]:
        """A line for each file: see `SourceFile.line`."""
        return (file.line for file in self.files)

    @cached_property
    def hash(self) -> str:
        """Hash of paths, sizes, times, classes and splits: equal as long as the folder is unchanged."""
        digest = blake2b(digest_size=16)
        digest.update("\0".join(self.class_names).encode())
        for line in self.lines():
            digest.update(b"\n" + line.encode())
        return digest.hexdigest()


def describe_changes(before: Iterable[str], now: Iterable[str]) -> str:
    """Summarise the differences of two listings of a folder: `1 changed, 2 missing, 1 new (first dogs/3.jpg)`."""
    old = {line.split(" ", 4)[4]: line for line in before}
    new = {line.split(" ", 4)[4]: line for line in now}
    missing = [path for path in old if path not in new]
    added = [path for path in new if path not in old]
    changed = [path for path, line in new.items() if path in old and old[path] != line]
    kinds = ((changed, "changed"), (missing, "missing"), (added, "new"))
    counts = [f"{len(paths):,} {kind}" for paths, kind in kinds if paths]
    if not counts:
        return "other class names"
    return f"{', '.join(counts)} (first {min([*missing, *added, *changed])})"
