"""The work of one shard: decode its files, take their fingerprints, write it whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from logpose.common.errors import printable
from pipeline.build.journal import HOLE, Failure, Journal, ShardResult
from pipeline.build.source_files import SourceFile
from pipeline.dataset.schema import shard_digest
from pipeline.dataset.store import open_split, read_attributes, write_shard
from pipeline.duplicates.fingerprint import fingerprints
from pipeline.errors import BusyError, DatasetError, DecodeError, FailureKind
from pipeline.images.decode import decode_image, quiet_pillow
from pipeline.images.pixel_sums import add_colours

# Called for each file tried, with its number, and its failure if it has one. May raise, to stop: the
# shard in hand is then dropped.
Tick = Callable[[int, Failure | None], None]


@dataclass(frozen=True)
class ShardJob:
    """The work of one task. Can be sent to another machine that sees the same file system.

    run       which run of the build it belongs to
    wanted    for each row the number of the file to show
    files     the source file of each row
    former    what a former round has written; None if the shard was never written
    printing  whether to take fingerprints
    """

    dataset: Path
    root: Path
    run: str
    part: str
    shard: int
    wanted: tuple[int, ...]
    files: tuple[SourceFile, ...]
    former: ShardResult | None
    size: tuple[int, int]
    fit: str
    printing: bool


def run_shard(job: ShardJob, tick: Tick | None = None) -> ShardResult:
    """Decode what the shard does not hold yet, write it whole, and note that in the journal.

    Raises OSError where writing fails, BusyError where another run of the build has taken over. What fails in decoding
    is in the result.
    """
    images = np.zeros((len(job.wanted), *job.size, 3), dtype=np.uint8)  # (n, H, W, 3)
    kept = _copy_kept(job, images)
    # What failed here before is not asked for again, but must be remembered.
    failures = list(job.former.failures) if job.former else list[tuple[int, FailureKind, str]]()
    inner = {}  # where in its frame the image of a row is
    root = str(job.root)
    with quiet_pillow():
        for row, (number, file) in enumerate(zip(job.wanted, job.files, strict=True)):
            if row in kept:
                continue
            failure = None
            try:
                path, unchanged = f"{root}/{file.path}", (file.bytes, file.mtime_ns)
                inner[row] = decode_image(path, job.size, job.fit, images[row], unchanged).inner
            except DecodeError as error:
                failures.append((number, error.kind, error.reason))
                failure = Failure(printable(file.path), error.kind, error.reason)
            if tick is not None:
                tick(number, failure)
    labels = np.array([file.label for file in job.files], dtype=np.int64)  # (n,)
    sums, squares = _sums(images)
    digest = shard_digest([images], labels, [printable(file.path) for file in job.files])

    journal = Journal(job.dataset)

    def still_wanted() -> None:
        # A task of a killed build may go on for a while on a cluster's worker: its rows are of the past.
        if not journal.is_run_by(job.run):
            raise BusyError(
                f"expected to be the only build of {job.dataset}, found that another run has taken over: wait for"
                " that one"
            )

    write_shard(job.dataset, job.part, job.shard, images, still_wanted)
    result = ShardResult(job.part, job.shard, job.wanted, tuple(failures), sums, squares, digest)
    decoded = inner if job.printing else {}
    journal.add(result, [job.wanted[row] for row in decoded], fingerprints(images, decoded))
    return result


def _copy_kept(job: ShardJob, images: npt.NDArray[np.uint8]) -> set[int]:
    """Copy the rows that the shard on disk has already. Returns which."""
    before = job.former.files if job.former else ()
    kept = {row for row, (old, new) in enumerate(zip(before, job.wanted, strict=False)) if old == new and old != HOLE}
    if not kept:
        return kept
    try:
        part = open_split(job.dataset, job.part, read_attributes(job.dataset))
        start = job.shard * part.layout.shard_rows
        written = part.read(start, start + min(len(before), len(job.wanted)))  # (n, H, W, 3)
    except DatasetError:  # damaged since: decode all of it again
        return set()
    rows = sorted(kept)
    images[rows] = written[rows]
    return kept


def _sums(images: npt.NDArray[np.uint8]) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Σx and Σx² a channel over (n, H, W, 3), exact."""
    sums, squares = np.zeros(3, np.uint64), np.zeros(3, np.uint64)  # (3,)
    for image in images:
        add_colours(image, sums, squares)
    return _triple(sums), _triple(squares)


def _triple(values: npt.NDArray[np.uint64]) -> tuple[int, int, int]:
    red, green, blue = (int(value) for value in values)
    return red, green, blue
