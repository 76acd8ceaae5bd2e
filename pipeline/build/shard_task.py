"""The task of one shard: decode its files, take their fingerprints, write it as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from logpose.common.errors import BusyError, escaped
from pipeline.build.journal import NO_FILE, Failure, Journal, ShardResult
from pipeline.dataset.schema import shard_digest
from pipeline.dataset.store import Split, open_split, read_attributes
from pipeline.dataset.writer import write_shard
from pipeline.duplicates.fingerprint import fingerprints
from pipeline.errors import DamageError, DatasetError, DecodeError, FailureKind, ReadError
from pipeline.images.decode import decode_image
from pipeline.images.opening import quiet_pillow
from pipeline.images.options import DecodeOptions
from pipeline.parallel.cluster import worker_address
from pipeline.scan.source_files import Source, SourceFile

# Called after each file with its number and its failure, if it has one. May raise to cancel the task: its shard is
# then not written.
OnFile: TypeAlias = Callable[[int, Failure | None], None]


@dataclass(frozen=True)
class ShardJob:
    """The input of a task. It can be sent to another machine that sees the same file system.

    run_id       of the build's run
    assigned     the number of the file assigned to each row
    files        the source file of each row
    previous     the shard as an earlier round wrote it, or None
    fingerprint  whether to take fingerprints
    decoding     depth and limit of pixels
    """

    dataset: Path
    root: Path
    run_id: str
    split: str
    shard: int
    assigned: tuple[int, ...]
    files: tuple[SourceFile, ...]
    previous: ShardResult | None
    size: tuple[int, int]
    fit: str
    fingerprint: bool
    decoding: DecodeOptions


def run_shard(job: ShardJob, on_file: OnFile | None = None) -> ShardResult:
    """Decode the files that the shard does not have yet, write it as a whole, and record it in the journal.

    Files that cannot be decoded are in the result. Raises ReadError if the system fails to read one; OSError if writing
    fails; BusyError if another run of the build has claimed the journal. The shard is then not recorded.
    """
    images = np.zeros((len(job.assigned), *job.size, 3), dtype=np.uint8)  # (n, H, W, 3)
    reused = _reuse_rows(job, images)
    failures = list(job.previous.failures) if job.previous else list[tuple[int, FailureKind, str]]()
    inner = {}  # row -> where in its frame the image is
    root = str(job.root)
    with quiet_pillow(job.decoding.max_pixels):
        for row, (number, file) in enumerate(zip(job.assigned, job.files, strict=True)):
            if row in reused:
                continue
            failure = None
            try:
                path, unchanged = f"{root}/{file.path}", (file.bytes, file.mtime_ns)
                inner[row] = decode_image(path, job.size, job.fit, images[row], unchanged, job.decoding).inner
            except DecodeError as error:
                failures.append((number, error.kind, error.reason))
                failure = Failure(escaped(file.path), error.kind, error.reason)
            if on_file is not None:
                on_file(number, failure)
    sums, squares = _sums(images)
    digest = _digest([images], job.files)
    journal = Journal(job.dataset)

    def check_run() -> None:
        # The workers of a cluster may keep running for a while after their build was killed: their rows are outdated.
        if not journal.is_claimed_by(job.run_id):
            raise BusyError(
                f"expected to be the only build of {job.dataset}, found that another run has claimed it: wait until"
                " that has finished"
            )

    write_shard(job.dataset, job.split, job.shard, images, check_run)
    result = ShardResult(job.split, job.shard, job.assigned, tuple(failures), sums, squares, digest)
    decoded = inner if job.fingerprint else {}
    journal.add(result, [job.assigned[row] for row in decoded], fingerprints(images, decoded))
    return result


def run_shard_on_worker(job: ShardJob) -> ShardResult:
    """`run_shard` on a worker of a cluster, which a ReadError names: another may well read the file."""
    try:
        return run_shard(job)
    except ReadError as error:
        raise ReadError(f"{error.path} on worker {worker_address()}", error.reason, error.remedy) from error


def digest_on_disk(split: Split, result: ShardResult, source: Source) -> str:
    """The digest of a finished shard as it is on the disk now; empty where it is damaged. Raises ReadError."""
    start = result.shard * split.layout.shard_rows
    stop = start + len(result.assigned)
    split = replace(split, rows=max(split.rows, stop))  # the end of a build may have been interrupted, which trims them
    blocks = (
        split.read(first, min(first + split.chunk_rows, stop)) for first in range(start, stop, split.chunk_rows)
    )  # (n, H, W, 3) each
    try:
        return _digest(blocks, [source.files[file] for file in result.assigned])
    except DamageError:
        return ""


def _digest(images: Iterable[npt.NDArray[np.uint8]], files: Sequence[SourceFile]) -> str:
    labels = np.array([file.label for file in files], dtype=np.int64)  # (n,)
    return shard_digest(images, labels, [escaped(file.path) for file in files])


def _reuse_rows(job: ShardJob, images: npt.NDArray[np.uint8]) -> set[int]:
    """Copy the rows that the shard on disk already has into images (n, H, W, 3); return their numbers."""
    before = job.previous.files if job.previous else ()
    pairs = enumerate(zip(before, job.assigned, strict=False))
    rows = [row for row, (old, new) in pairs if old == new and old != NO_FILE]
    if not rows:
        return set()
    try:
        split = open_split(job.dataset, job.split, read_attributes(job.dataset))
        start = job.shard * split.layout.shard_rows
        written = split.read(start, start + min(len(before), len(job.assigned)))  # (n, H, W, 3)
    except DatasetError:  # damaged meanwhile: decode everything again
        return set()
    images[rows] = written[rows]
    return set(rows)


def _sums(images: npt.NDArray[np.uint8]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Σx and Σx² per channel over (n, H, W, 3), exact."""
    from pipeline.images.pixel_sums import add_colours  # imports Numba, for which the start of a build need not wait

    sums, squares = np.zeros(3, np.uint64), np.zeros(3, np.uint64)  # (3,)
    for image in images:
        add_colours(image, sums, squares)
    return tuple(sums.tolist()), tuple(squares.tolist())
