"""Names, dtypes, attributes and version of the dataset; nothing here touches a disk.

    images.zarr/            group; its attributes are `Attributes`
    ├── failures.csv          each file that is not in here, and why
    ├── duplicates.csv        each image of which there are copies, group by group
    ├── contact-sheet.png     a few images of each class, if 'logpose info' has drawn it
    ├── train/
    │   ├── images            uint8  (N, H, W, 3)  dimensions row, y, x, channel
    │   ├── labels            int64  (N,)          index into class_names
    │   └── paths             string (N,)          where each row came from, relative to the folder
    └── val/                  the same

Rows lie in seeded random order, so that any run of them mixes the classes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from math import isqrt
from typing import Any

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_128

from pipeline.errors import DatasetError

FORMAT = "logpose"
FORMAT_VERSION = 2  # since 2 copies of an image are kept on one side
SPLITS = ("train", "val")
IMAGE_DIMENSIONS = ("row", "y", "x", "channel")
FAILURES_FILE = "failures.csv"
FAILURES_HEADER = ("path", "kind", "reason")
SHEET_FILE = "contact-sheet.png"  # made on demand
DUPLICATES_FILE = "duplicates.csv"
DUPLICATES_HEADER = ("group", "part", "label", "path", "how", "labels")

# A chunk is what is read at once: big enough that zarr's 0.5 ms a chunk do not count, small enough that
# a window of them shuffles well. A shard is what is written at once, by one task, and is one file.
CHUNK_BYTES = 2**20
SHARD_CHUNKS = 16
COLUMN_CHUNK_ROWS = 2**16  # labels and paths


@dataclass(frozen=True)
class Layout:
    """How the rows of a part are cut into chunks, and these into shards."""

    chunk_rows: int
    shard_rows: int

    def shards(self, rows: int) -> int:
        return -(-rows // self.shard_rows)


def layout(rows: int, size: tuple[int, int]) -> Layout:
    """The layout of a part with so many rows of images of size (H, W).

    A chunk holds a power of two of rows, at most CHUNK_BYTES. A shard holds at most SHARD_CHUNKS, evenly
    spread: 17 chunks become 9 + 8, not 16 + 1, for the workers' sake and because shards are padded.
    """
    fitting = max(1, CHUNK_BYTES // (size[0] * size[1] * 3))
    chunk_rows = 1 << min(fitting.bit_length() - 1, max(0, rows - 1).bit_length())
    chunks = max(1, -(-rows // chunk_rows))
    shards = -(-chunks // SHARD_CHUNKS)
    return Layout(chunk_rows, chunk_rows * -(-chunks // shards))


@dataclass(frozen=True)
class DuplicateCounts:
    """What is known of near-copies among the images; `duplicates.csv` has them one by one.

    groups         groups of near-duplicates
    images         images in them; called `pictures` on disk since version 1
    labels_differ  groups whose images do not all have one label
    leaks          validation images with a copy in the training part
    """

    groups: int
    images: int
    labels_differ: int
    leaks: int

    def to_json(self) -> dict[str, int]:
        found = asdict(self)
        return {"groups": found.pop("groups"), "pictures": found.pop("images"), **found}

    @classmethod
    def from_json(cls, found: dict[str, int]) -> DuplicateCounts:
        return cls(found["groups"], found["pictures"], found["labels_differ"], found["leaks"])


@dataclass(frozen=True)
class Attributes:
    """What the dataset says of itself. Before sealing, what only the end can tell is None."""

    class_names: tuple[str, ...]
    size: tuple[int, int]  # (H, W)
    fit: str
    seed: int
    source: str  # the folder it was built from
    build_hash: str  # of the files as they were then and of the options: would the same build give the same?
    copies: DuplicateCounts | None = None  # None where nobody has looked for them
    mean: tuple[float, float, float] | None = None  # of the training part, in 0..255
    std: tuple[float, float, float] | None = None
    content_hash: str | None = None  # of the rows: is it still the same dataset?
    sealed: bool = False

    def to_json(self) -> dict[str, Any]:
        copies = self.copies.to_json() if self.copies else None
        return {"format": FORMAT, "format_version": FORMAT_VERSION} | asdict(self) | {"copies": copies}

    @classmethod
    def from_json(cls, found: Any, where: str) -> Attributes:
        """Parse the attributes of the group at `where`. Raises DatasetError, naming what does not fit."""
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise DatasetError(f"expected a logpose dataset, found something else at {where}: check the path")
        if found.get("format_version") != FORMAT_VERSION:
            raise DatasetError(
                f"expected format version {FORMAT_VERSION}, found {found.get('format_version')!r} in {where}:"
                " build the dataset again with this logpose"
            )
        try:
            attributes = cls(
                class_names=tuple(str(name) for name in found["class_names"]),
                size=_pair(found["size"]),
                fit=str(found["fit"]),
                seed=int(found["seed"]),
                source=str(found["source"]),
                build_hash=str(found["build_hash"]),
                copies=None if found["copies"] is None else DuplicateCounts.from_json(found["copies"]),
                mean=_colour(found["mean"]),
                std=_colour(found["std"]),
                content_hash=found["content_hash"],
                sealed=bool(found["sealed"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DatasetError(
                f"expected complete attributes, found {type(error).__name__} {error} in {where}: the metadata"
                " is damaged, build the dataset again with --overwrite"
            ) from error
        return attributes


def _pair(found: Any) -> tuple[int, int]:
    height, width = found
    return int(height), int(width)


def _colour(found: Any) -> tuple[float, float, float] | None:
    if found is None:
        return None
    red, green, blue = found
    return float(red), float(green), float(blue)


def colour_statistics(
    pixels: int, sums: Sequence[int], squares: Sequence[int]
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation a channel, from exact integer sums of values and of their squares.

    Integers add up to the same in any order, so the figures do not depend on who finished first; and
    n·Σx² − (Σx)² loses nothing to rounding, as it would in floating point.
    """
    mean = tuple(total / pixels for total in sums)
    std = tuple(
        isqrt((pixels * square - total * total) << 64) / 2**32 / pixels
        for total, square in zip(sums, squares, strict=True)
    )
    return mean, std  # type: ignore[return-value]


def shard_digest(images: Iterable[npt.NDArray[np.uint8]], labels: npt.NDArray[np.int64], paths: Iterable[str]) -> str:
    """Hash of the rows of one shard: images in blocks of (n, H, W, 3), all labels (N,), all N paths."""
    digest = xxh3_128()  # against accidents, not against an adversary: a cryptographic hash takes 20 times as long
    for block in images:
        digest.update(np.ascontiguousarray(block).data)
    digest.update(labels.astype("<i8").tobytes())
    digest.update("\0".join(paths).encode())
    return digest.hexdigest()


def build_hash(identity: dict[str, Any]) -> str:
    """Hash of what decides every byte of a dataset: its files and options."""
    return blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=16).hexdigest()


def content_digest(attributes: Attributes, shard_digests: dict[str, list[str]]) -> str:
    """Hash of a whole dataset: what it says of itself, and the digests of its shards, by part, in order."""
    said = {key: value for key, value in attributes.to_json().items() if key not in _NOT_CONTENT}
    text = json.dumps([said, [shard_digests[part] for part in SPLITS]], sort_keys=True)
    return blake2b(text.encode(), digest_size=16).hexdigest()


# The same images copied elsewhere give the same content, though their times and so the build differ.
_NOT_CONTENT = {"source", "build_hash", "content_hash", "sealed"}
