"""Read all of a dataset, and name what is damaged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.dataset.schema import (
    COLUMN_CHUNK_ROWS,
    DUPLICATES_FILE,
    FAILURES_FILE,
    SPLITS,
    content_digest,
    shard_digest,
)
from pipeline.dataset.store import Dataset, Split
from pipeline.errors import Damage, DamageError


@dataclass(frozen=True)
class VerifyReport:
    """What a dataset holds, and what is wrong with it.

    missing          files that belong to it, chunks apart, and are not there
    content_matches  whether the rows are those that were built: their hash is the one that was recorded;
                     None where damage keeps it from being known
    """

    rows: dict[str, int]
    chunks: int
    damage: tuple[Damage, ...]
    missing: tuple[Path, ...]
    content_matches: bool | None

    @property
    def ok(self) -> bool:
        return bool(self.content_matches) and not self.missing


def verify_dataset(path: Path, on_progress: Callable[[int, int], None] = lambda done, total: None) -> VerifyReport:
    """Read every chunk of a sealed dataset, check its checksum, and hash all rows.

    on_progress(done, total) counts chunks; it is called in this thread. Raises DatasetError if the
    dataset cannot be opened at all; damage in chunks is in the report.
    """
    dataset = Dataset.open(path)
    checker = _Checker(on_progress, sum(_count_chunks(part) for part in (dataset.train, dataset.val)))
    digests = {part.name: checker.check(part) for part in (dataset.train, dataset.val)}
    return VerifyReport(
        rows={"train": dataset.train.rows, "val": dataset.val.rows},
        chunks=checker.total,
        damage=tuple(checker.damage),
        missing=tuple(file for file in _other_files(dataset) if not file.is_file()),
        content_matches=None if checker.damage else content_digest(dataset.attributes, digests) == dataset.content_hash,
    )


class _Checker:
    """Reads chunk by chunk, and keeps what could not be read."""

    def __init__(self, on_progress: Callable[[int, int], None], total: int) -> None:
        self.damage: list[Damage] = []
        self.total = total
        self._done = 0
        self._on_progress = on_progress

    def check(self, part: Split) -> list[str]:
        """Read all of a part. Returns the digest of each shard: to be trusted if there is no damage."""
        empty = np.empty(0, dtype=np.int64)
        labels = np.concatenate([empty, *self._read(part, "labels", part.rows)])  # (N,)
        paths = [str(path) for block in self._read(part, "paths", part.rows) for path in block]
        digests = []
        for start in range(0, part.rows, part.layout.shard_rows):
            stop = min(start + part.layout.shard_rows, part.rows)
            images = self._read(part, "images", stop, start)
            digests.append(shard_digest(images, labels[start:stop], paths[start:stop]))
        return digests

    def _read(self, part: Split, array: str, stop: int, start: int = 0) -> list[npt.NDArray[Any]]:
        """The blocks of rows start..stop-1 that could be read, a chunk each."""
        blocks = []
        rows = part.chunk_rows if array == "images" else COLUMN_CHUNK_ROWS
        for first in range(start, stop, rows):
            last = min(first + rows, stop)
            try:
                blocks.append(part.read(first, last) if array == "images" else part.read_column(array, first, last))
            except DamageError as error:
                self.damage.append(error.damage)
            self._done += 1
            self._on_progress(self._done, self.total)
        return blocks


def _other_files(dataset: Dataset) -> Iterator[Path]:
    """What lies beside the arrays, which could not have been opened without theirs."""
    yield from (dataset.path / part / "zarr.json" for part in SPLITS)
    yield dataset.path / FAILURES_FILE
    if dataset.attributes.copies is not None:
        yield dataset.path / DUPLICATES_FILE


def _count_chunks(part: Split) -> int:
    return -(-part.rows // part.chunk_rows) + 2 * -(-part.rows // COLUMN_CHUNK_ROWS)
