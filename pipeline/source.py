"""What a dataset is built from: the listed files, as they are now, in the order of the rows."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np

from pipeline.errors import printable
from pipeline.listing import Listing
from pipeline.plan import permutation
from pipeline.schema import PARTS
from pipeline.split import split


@dataclass(frozen=True)
class SourceFile:
    """A file as it was when the build began."""

    path: str  # relative to the root, with '/'
    label: int
    bytes: int
    mtime_ns: int


@dataclass(frozen=True)
class Source:
    """All that a build reads.

    files  by part, in the seeded random order in which they will be stored
    hash   of paths, sizes, times, classes and parts: the same folder gives the same
    """

    root: Path
    class_names: tuple[str, ...]
    files: dict[str, list[SourceFile]]
    skipped: tuple[str, ...]
    hash: str

    @property
    def count(self) -> int:
        return sum(map(len, self.files.values()))


def survey(listing: Listing, val: float, seed: int) -> Source:
    """Look at each listed file, and decide who goes where.

    val is the fraction for validation; where the folders say train and val, they decide.
    """
    labels = np.array([picture.class_index for picture in listing.pictures], dtype=np.int64)  # (N,)
    in_val = split(labels, val, seed)  # (N,)
    if listing.has_parts:
        in_val = np.array([picture.part == "val" for picture in listing.pictures], dtype=np.bool_)  # (N,)
    files = [_look_at(listing.root, picture.path, picture.class_index) for picture in listing.pictures]
    digest = blake2b(digest_size=16)
    digest.update("\0".join(listing.classes).encode("utf-8", "backslashreplace"))
    for file, picture in zip(files, listing.pictures, strict=True):
        row = f"{printable(file.path)}\0{file.bytes}\0{file.mtime_ns}\0{file.label}\0{picture.part}\n"
        digest.update(row.encode())
    ordered = {}
    for number, part in enumerate(PARTS):
        members = np.flatnonzero(in_val if part == "val" else ~in_val)  # (n,)
        ordered[part] = [files[index] for index in members[permutation(len(members), seed, number)]]
    names = tuple(printable(name) for name in listing.classes)
    return Source(listing.root, names, ordered, listing.skipped, digest.hexdigest())


def _look_at(root: Path, path: str, label: int) -> SourceFile:
    try:
        status = (root / path).stat()
    except (OSError, ValueError):  # it will fail again when it is to be decoded, and be accounted for
        return SourceFile(path, label, -1, -1)
    return SourceFile(path, label, status.st_size, status.st_mtime_ns)
