"""Which file goes into which row, and the work of one shard: decode its files, write it whole."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.decode import decode_picture
from pipeline.errors import DatasetError, DecodeError, FailureKind, printable
from pipeline.journal import HOLE, Failure, ShardResult
from pipeline.schema import shard_digest
from pipeline.source import SourceFile
from pipeline.store import open_part, read_attributes, write_shard

# Called for each file tried, with its part, its index there, and its failure if it has one. May raise,
# to stop: the shard in hand is then dropped.
Tick = Callable[[str, int, Failure | None], None]


def assign(count: int, failed: Collection[int]) -> list[int]:
    """Which of the files 0..count-1 goes into each row, given those that failed.

    Rows have no holes: a failed file's row gets the last good file that has no row of its own. All
    other rows keep their file, so little is written anew; and the outcome depends on which files
    failed, not on when that came to light.
    """
    rows = count - len(failed)
    spare = (file for file in range(count - 1, rows - 1, -1) if file not in failed)
    return [next(spare) if file in failed else file for file in range(rows)]


def cut(files: list[int], shard_rows: int) -> Iterator[tuple[int, tuple[int, ...]]]:
    """(number, files) of each shard."""
    for start in range(0, len(files), shard_rows):
        yield start // shard_rows, tuple(files[start : start + shard_rows])


@dataclass(frozen=True)
class ShardJob:
    """The work of one task. Can be sent to another machine that sees the same file system.

    wanted  for each row the file to show, as an index for `result.files`
    files   the source file of each row
    before  the files the shard shows already, from a former round; empty if it was never written
    """

    dataset: Path
    root: Path
    part: str
    shard: int
    wanted: tuple[int, ...]
    files: tuple[SourceFile, ...]
    before: tuple[int, ...]
    size: tuple[int, int]
    fit: str


def run_shard(job: ShardJob, tick: Tick | None = None) -> ShardResult:
    """Decode what the shard does not hold yet, and write it whole.

    Raises OSError where writing fails. What fails in decoding is in the result.
    """
    images = np.zeros((len(job.wanted), *job.size, 3), dtype=np.uint8)  # (n, H, W, 3)
    kept = _copy_kept(job, images)
    failures: list[tuple[int, FailureKind, str]] = []
    for row, (index, file) in enumerate(zip(job.wanted, job.files, strict=True)):
        if row in kept:
            continue
        failure = None
        try:
            images[row] = _decode_unchanged(job, file)
        except DecodeError as error:
            failures.append((index, error.kind, error.reason))
            failure = Failure(printable(file.path), error.kind, error.reason)
        if tick is not None:
            tick(job.part, index, failure)
    write_shard(job.dataset, job.part, job.shard, images)
    labels = np.array([file.label for file in job.files], dtype=np.int64)  # (n,)
    sums, squares = _sums(images)
    digest = shard_digest([images], labels, [printable(file.path) for file in job.files])
    return ShardResult(job.part, job.shard, job.wanted, tuple(failures), sums, squares, digest)


def _copy_kept(job: ShardJob, images: npt.NDArray[np.uint8]) -> set[int]:
    """Copy the rows that the shard on disk has already. Returns which."""
    kept = {
        row for row, (old, new) in enumerate(zip(job.before, job.wanted, strict=False)) if old == new and old != HOLE
    }
    if not kept:
        return kept
    try:
        part = open_part(job.dataset, job.part, read_attributes(job.dataset))
        start = job.shard * part.layout.shard_rows
        written = part.read(start, start + min(len(job.before), len(job.wanted)))  # (n, H, W, 3)
    except DatasetError:  # damaged since: decode all of it again
        return set()
    rows = sorted(kept)
    images[rows] = written[rows]
    return kept


def _decode_unchanged(job: ShardJob, file: SourceFile) -> npt.NDArray[np.uint8]:
    path = job.root / file.path
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DecodeError("unreadable", reason.lower()) from error
    if (status.st_size, status.st_mtime_ns) != (file.bytes, file.mtime_ns):
        raise DecodeError("changed", "the file is not the one that was there when the build began")
    return decode_picture(path, job.size, job.fit)


_VALUES = np.arange(256, dtype=np.int64)


def _sums(images: npt.NDArray[np.uint8]) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Σx and Σx² a channel over (n, H, W, 3): exact, a picture at a time to stay within the cache."""
    sums = np.zeros(3, dtype=np.int64)
    squares = np.zeros(3, dtype=np.int64)
    for image in images:
        for channel in range(3):
            counts = np.bincount(image[..., channel].ravel(), minlength=256)  # (256,)
            sums[channel] += counts @ _VALUES
            squares[channel] += counts @ _VALUES**2
    return _triple(sums), _triple(squares)


def _triple(values: npt.NDArray[np.int64]) -> tuple[int, int, int]:
    red, green, blue = (int(value) for value in values)
    return red, green, blue
