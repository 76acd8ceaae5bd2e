"""The dataset format: names, dtypes, attributes and version. Nothing here touches the disk.

    images.zarr/            group; its attributes are `Attributes`
    ├── failures.csv          each file that could not be read, and why
    ├── duplicates.csv        each image that has near-duplicates, group by group
    ├── contact-sheet.png     a few images of each class, drawn by 'logpose info'
    ├── train/
    │   ├── images            uint8  (N, H, W, 3)  dimensions row, y, x, channel
    │   ├── labels            int64  (N,)          index into class_names
    │   └── paths             string (N,)          source file of each row, relative to the folder of images
    └── val/                  the same

Rows are stored in seeded random order, so that any run of rows mixes the classes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, astuple, dataclass
from hashlib import blake2b
from math import isqrt
from typing import Any, get_args, get_type_hints

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_128

from logpose.common.errors import shortened
from logpose.common.records import CHECKSUM, MAX_CLASSES, MIN_STD, RecordError, checksum, is_name, is_text, parse_record
from pipeline.build.options import MAX_SIDE, BuildOptions
from pipeline.errors import DatasetError, damaged_metadata

FORMAT = "logpose"
FORMAT_VERSION = 2  # since 2, near-duplicates are all in one split
SPLITS = ("train", "val")
IMAGE_DIMENSIONS = ("row", "y", "x", "channel")
FAILURES_FILE = "failures.csv"
FAILURES_HEADER = ("path", "kind", "reason")
SHEET_FILE = "contact-sheet.png"
DUPLICATES_FILE = "duplicates.csv"
# Metadata whose checksums are kept with those of the reports; the root's has its own.
METADATA_FILES = tuple(
    f"{split}/{array}zarr.json" for split in SPLITS for array in ("", "images/", "labels/", "paths/")
)
_FITS = get_args(get_args(get_type_hints(BuildOptions, include_extras=True)["fit"])[0])
DUPLICATES_HEADER = ("group", "part", "label", "path", "how", "labels")

# A chunk is the unit of reading: large enough to make the overhead per chunk negligible, small enough that a window
# of chunks shuffles well. A shard is the unit of writing: one file, written by one task.
CHUNK_BYTES = 2**20
SHARD_CHUNKS = 16
COLUMN_CHUNK_ROWS = 2**16  # labels and paths


@dataclass(frozen=True)
class Layout:
    """Rows per chunk and per shard of a split's images."""

    chunk_rows: int
    shard_rows: int

    def shards(self, rows: int) -> int:
        """Number of shards for this many rows."""
        return -(-rows // self.shard_rows)


def layout(rows: int, size: tuple[int, int]) -> Layout:
    """Choose the layout for a number of rows of images of `size` (H, W).

    A chunk holds a power of two of rows, at most CHUNK_BYTES where more than one fits. A shard holds at most
    SHARD_CHUNKS, spread evenly (17 chunks become 9 + 8, not 16 + 1): tasks take equally long, and less is padded.
    """
    fitting = max(1, CHUNK_BYTES // (size[0] * size[1] * 3))
    chunk_rows = 1 << min(fitting.bit_length() - 1, max(0, rows - 1).bit_length())
    chunks = max(1, -(-rows // chunk_rows))
    shards = -(-chunks // SHARD_CHUNKS)
    return Layout(chunk_rows, chunk_rows * -(-chunks // shards))


@dataclass(frozen=True)
class DuplicateCounts:
    """Counts of near-duplicates; `duplicates.csv` lists them.

    groups         groups of near-duplicates
    images         images in these groups; named `pictures` on disk
    labels_differ  groups whose images have more than one label
    leaks          validation images with a near-duplicate in the training split
    """

    groups: int
    images: int
    labels_differ: int
    leaks: int

    def to_json(self) -> dict[str, int]:
        """The counts by their names on disk."""
        counts = asdict(self)
        return {"groups": counts.pop("groups"), "pictures": counts.pop("images"), **counts}

    @classmethod
    def from_json(cls, counts: Any) -> DuplicateCounts:
        """Inverse of `to_json`. Raises RecordError."""
        if isinstance(counts, dict):
            counts = {"images" if key == "pictures" else key: value for key, value in counts.items()}
        return parse_record(cls, counts)


@dataclass(frozen=True)
class Attributes:
    """Metadata of a dataset. What depends on the rows is None until the dataset is sealed."""

    class_names: tuple[str, ...]
    size: tuple[int, int]  # (H, W)
    fit: str
    seed: int
    source: str  # the folder it was built from
    build_hash: str  # of the source files and the options: equal if the same build would be run again
    duplicates: DuplicateCounts | None = None  # None if not searched for; named `copies` on disk
    mean: tuple[float, float, float] | None = None  # per channel, of the training split, in 0..255
    std: tuple[float, float, float] | None = None
    content_hash: str | None = None  # of the rows: equal if the datasets hold the same
    reports: dict[str, int] | None = None  # CRC-32 of each file beside the chunks, by name; None in older datasets
    sealed: bool = False
    depth: tuple[float, float] | None = None  # values of black and white of deep grey; absent on disk if None

    def to_json(self) -> dict[str, Any]:
        """The attributes of the dataset's Zarr group, with a checksum."""
        values = asdict(self) | {"duplicates": self.duplicates and self.duplicates.to_json()}
        renamed = {"copies" if name == "duplicates" else name: value for name, value in values.items()}
        if self.depth is None:
            del renamed["depth"]
        attributes = {"format": FORMAT, "format_version": FORMAT_VERSION} | renamed
        return attributes | {CHECKSUM: checksum(attributes)}

    @classmethod
    def from_json(cls, found: Any, where: str) -> Attributes:
        """Parse the attributes of the group at `where`. Raises DatasetError."""
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise DatasetError(f"expected a logpose dataset, found something else at {where}: check the path")
        if found.get("format_version") != FORMAT_VERSION:
            version = shortened(repr(found.get("format_version")), 60)
            raise DatasetError(
                f"expected format version {FORMAT_VERSION}, found {version} in {where}:"
                " build the dataset again with this logpose"
            )
        try:
            rest = {name: value for name, value in found.items() if name != CHECKSUM}
            if CHECKSUM in found and found[CHECKSUM] != checksum(rest):
                raise damaged_metadata("attributes that match their checksum", "others", where)
            values = {name: found[key] for name, key in _keys(found)}
            values["duplicates"] = values["duplicates"] and DuplicateCounts.from_json(values["duplicates"])
            attributes = parse_record(cls, values)
            attributes.check()
        except (KeyError, RecordError) as error:
            reason = f"no {error.args[0]}" if isinstance(error, KeyError) else error
            raise damaged_metadata("complete attributes", reason, where) from error
        return attributes

    def check(self) -> None:
        """Raise RecordError where a value is out of its range. Types are not checked: see `parse_record`."""
        names, counts = self.class_names, self.duplicates
        texts = (self.source, self.build_hash, self.content_hash or "")
        problems = {
            "class_names": not 0 < len({*names}) == len(names) <= MAX_CLASSES or not all(map(is_name, names)),
            "size": not all(0 < side <= MAX_SIDE for side in self.size),
            "fit": self.fit not in _FITS,
            "source, build_hash or content_hash": not all(map(is_text, texts)),
            "duplicates": counts is not None and min(astuple(counts)) < 0,
            "mean": not all(0 <= value <= 255 for value in self.mean or ()),
            "std": not all(value == 0 or MIN_STD <= value <= 255 for value in self.std or ()),
            "depth": self.depth is not None and not self.depth[0] < self.depth[1],
        }  # fmt: skip
        for name in (name for name, is_wrong in problems.items() if is_wrong):
            raise RecordError(f"a {name} out of range")


def _keys(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The name and the key on disk of each attribute; older datasets have no reports and depth. Others are ignored."""
    for name in Attributes.__dataclass_fields__:
        if name in found or name not in ("reports", "depth"):
            yield name, "copies" if name == "duplicates" else name


def colour_statistics(
    pixels: int, sums: Sequence[int], squares: Sequence[int]
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation per channel, from exact integer sums over `pixels` values and their squares.

    Integer sums do not depend on the order in which shards finish, and n·Σx² − (Σx)² suffers no cancellation, as it
    would in floating point.
    """
    mean = tuple(total / pixels for total in sums)
    std = tuple(
        isqrt((pixels * square - total * total) << 64) / 2**32 / pixels
        for total, square in zip(sums, squares, strict=True)
    )
    return mean, std  # type: ignore[return-value]


def shard_digest(images: Iterable[npt.NDArray[np.uint8]], labels: npt.NDArray[np.int64], paths: Iterable[str]) -> str:
    """Hash the rows of one shard: images in blocks of (n, H, W, 3), all labels (N,), all N paths."""
    digest = xxh3_128()  # detects accidents, not attacks: a cryptographic hash takes 20 times as long
    for block in images:
        digest.update(np.ascontiguousarray(block).data)
    digest.update(labels.astype("<i8").tobytes())
    digest.update("\0".join(paths).encode())
    return digest.hexdigest()


def build_hash(identity: dict[str, Any]) -> str:
    """Hash everything that determines the bytes of a dataset: its source files and options."""
    return blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=16).hexdigest()


def content_digest(attributes: Attributes, shard_digests: dict[str, list[str]]) -> str:
    """Hash a whole dataset: its attributes, and the digests of the shards of each split, in order."""
    content = {key: value for key, value in attributes.to_json().items() if key not in _NOT_CONTENT}
    text = json.dumps([content, [shard_digests[split] for split in SPLITS]], sort_keys=True)
    return blake2b(text.encode(), digest_size=16).hexdigest()


# The same images in another folder have the same content, although path, file times and so the build hash differ.
_NOT_CONTENT = {"source", "build_hash", "content_hash", "reports", "sealed", CHECKSUM}
