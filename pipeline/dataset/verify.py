"""Verify a dataset: read all of it, check the checksums and report the damage."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from logpose.common.files import NotAFileError, open_regular
from pipeline.dataset.limits import MAX_REPORT_BYTES
from pipeline.dataset.schema import (
    COLUMN_CHUNK_ROWS,
    DUPLICATES_FILE,
    FAILURES_FILE,
    METADATA_FILES,
    SPLITS,
    Attributes,
    content_digest,
    shard_digest,
)
from pipeline.dataset.store import Dataset, Split
from pipeline.errors import Damage, DamageError
from pipeline.faults import read_stored


@dataclass(frozen=True)
class VerifyReport:
    """The result of a verification.

    missing          missing files outside the arrays
    damaged_reports  failures.csv, duplicates.csv and metadata, if they are not as the build wrote them
    content_matches  whether the hash of the rows is the one recorded by the build; None if damage prevents hashing
    """

    rows: dict[str, int]  # by split
    chunks: int
    damage: tuple[Damage, ...]
    missing: tuple[Path, ...]
    damaged_reports: tuple[Path, ...]
    content_matches: bool | None

    @property
    def ok(self) -> bool:
        """Whether the dataset is undamaged and complete."""
        return bool(self.content_matches) and not self.missing and not self.damaged_reports


def verify_dataset(path: Path, on_progress: Callable[[int, int], None] = lambda done, total: None) -> VerifyReport:
    """Read every chunk of a sealed dataset, check its checksum, and hash all rows.

    on_progress(done, total) counts chunks; it is called in this thread. Raises DatasetError if the dataset cannot be
    opened; damaged chunks are in the report.
    """
    dataset = Dataset.open(path)
    splits = (dataset.train, dataset.val)
    checker = _Checker(on_progress, sum(split.chunks + 2 * -(-split.rows // COLUMN_CHUNK_ROWS) for split in splits))
    digests = {split.name: checker.check(split) for split in splits}
    dataset.check_unchanged()
    return VerifyReport(
        rows={split.name: split.rows for split in splits},
        chunks=checker.total,
        damage=tuple(checker.damage),
        missing=tuple(file for file in _other_files(dataset) if not file.is_file()),
        damaged_reports=tuple(damaged_reports(path, dataset.attributes)),
        content_matches=None if checker.damage else content_digest(dataset.attributes, digests) == dataset.content_hash,
    )


class _Checker:
    """Reader of all chunks that collects the damage."""

    def __init__(self, on_progress: Callable[[int, int], None], total: int) -> None:
        self.damage: list[Damage] = []
        self.total = total
        self._done = 0
        self._on_progress = on_progress

    def check(self, split: Split) -> list[str]:
        """Read all of a split. Returns the digest of each shard; meaningless if there is damage."""
        empty = np.empty(0, dtype=np.int64)
        labels = np.concatenate([empty, *self._read(split, "labels", split.rows)])  # (N,)
        paths = [str(path) for block in self._read(split, "paths", split.rows) for path in block]
        digests = []
        for start in range(0, split.rows, split.layout.shard_rows):
            stop = min(start + split.layout.shard_rows, split.rows)
            images = self._read(split, "images", stop, start)
            digests.append(shard_digest(images, labels[start:stop], paths[start:stop]))
        return digests

    def _read(self, split: Split, array: str, stop: int, start: int = 0) -> list[npt.NDArray[Any]]:
        """The undamaged chunks of rows start..stop-1."""
        blocks = []
        rows = split.chunk_rows if array == "images" else COLUMN_CHUNK_ROWS
        for first in range(start, stop, rows):
            last = min(first + rows, stop)
            try:
                blocks.append(split.read(first, last) if array == "images" else split.read_column(array, first, last))
            except DamageError as error:
                self.damage.append(error.damage)
            self._done += 1
            self._on_progress(self._done, self.total)
        return blocks


def _other_files(dataset: Dataset) -> Iterator[Path]:
    """Files outside the arrays, whose own metadata opening has checked."""
    yield from (dataset.path / split / "zarr.json" for split in SPLITS)
    yield dataset.path / FAILURES_FILE
    if dataset.attributes.duplicates is not None:
        yield dataset.path / DUPLICATES_FILE


def damaged_reports(path: Path, attributes: Attributes) -> Iterator[Path]:
    """Reports and metadata of the dataset at `path` that do not match their checksum; older ones may have none.

    Raises AccessError and ReadError.
    """
    for name in (FAILURES_FILE, DUPLICATES_FILE, *METADATA_FILES):  # no others: a hostile file may name any
        report, crc = path / name, (attributes.reports or {}).get(name)
        with suppress(FileNotFoundError, NotAFileError):
            if crc is not None and read_stored(partial(_checksum, report), report) != crc:
                yield report


def _checksum(path: Path) -> int | None:
    """The CRC-32 of a regular file; None for one that is too large."""
    crc = 0
    with os.fdopen(open_regular(path), "rb") as file:
        if os.fstat(file.fileno()).st_size > MAX_REPORT_BYTES:
            return None
        while block := file.read(2**20):
            crc = zlib.crc32(block, crc)
    return crc
