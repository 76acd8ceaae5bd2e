"""Build a dataset: list the images, split them, write the shards, seal.

    folder ──list, stat──▶ Source ──split──▶ rows ──Rounds: a task per shard──▶ shards ──seal──▶ dataset
"""

from __future__ import annotations

import errno
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from logpose.common.errors import escaped, printable
from logpose.common.files import make_folder
from logpose.common.locks import exclusive_lock
from logpose.common.options import MAX_WORKERS
from pipeline.build.depth import find_depth
from pipeline.build.destination import LOCK_FILE, ExistingBuild, check_destination, prepare_destination
from pipeline.build.journal import Failure, Journal, ShardResult
from pipeline.build.options import MAX_SIDE, BuildOptions
from pipeline.build.reports import read_failures, write_duplicates, write_failures
from pipeline.build.rounds import OnProgress, Rounds
from pipeline.dataset.codecs import chunk_codecs
from pipeline.dataset.schema import (
    DUPLICATES_FILE,
    FAILURES_FILE,
    FORMAT_VERSION,
    SPLITS,
    Attributes,
    DuplicateCounts,
    build_hash,
    colour_statistics,
    content_digest,
)
from pipeline.dataset.store import Dataset, read_attributes
from pipeline.dataset.writer import create_dataset, seal
from pipeline.errors import BuildError, DatasetError, ListingError, OptionError
from pipeline.images.decode import check_frame
from pipeline.images.flatness import count_flat
from pipeline.images.options import MAX_PIXELS, DecodeOptions, Depth
from pipeline.scan.class_folders import deep_classes, list_images
from pipeline.scan.source_files import Source

FLATNESS_BYTES = 2**24  # of the images looked at for whether they show anything


@dataclass(frozen=True)
class BuildReport:
    """The result of a build.

    rows        number of rows by split
    failures    files that could not be read, as in failures.csv: sorted by path
    duplicates  None if near-duplicates were not searched for
    skipped     files and folders in the root that are not in a class folder
    counts      images of each class by split, in the order of class_names
    deep        classes whose folder holds only folders
    jump        a note on a share of failures that jumped; None without one
    depth       values of black and white of deep grey; None if no image of the sample was deep
    flat        of some training images, how many are flat, and how many were looked at
    existing    whether the build was new, resumed, or finished before
    damaged     shards of an interrupted build that had changed, and were made again
    """

    path: Path
    rows: dict[str, int]
    class_names: tuple[str, ...]
    failures: tuple[Failure, ...]
    duplicates: DuplicateCounts | None
    skipped: tuple[str, ...]
    counts: dict[str, tuple[int, ...]]
    deep: tuple[str, ...]
    jump: str | None
    content_hash: str
    depth: Depth | None
    flat: tuple[int, int]
    existing: ExistingBuild
    damaged: int
    seconds: float


def build_dataset(
    root: Path,
    dest: Path,
    options: BuildOptions | None = None,
    on_progress: OnProgress = lambda done, total, what, failed: None,
) -> BuildReport:
    """Build the dataset `dest` from the images in `root`.

    on_progress is called in this thread, several times a second. A build that was killed or failed resumes if images
    and options are the same, and ends with the same content; a finished one stays as it is.
    Raises PipelineError: ListingError, OptionError, OutputExistsError, BusyError; ReadError if the system fails to read
    an image; BuildError if the dataset cannot be written, for example if the disk is full; TooManyFailures. After the
    last three and KeyboardInterrupt, the dataset is unsealed, and a rerun resumes.
    """
    began = time.monotonic()
    root, dest, options = Path(root), Path(dest), options or BuildOptions()
    _check_options(options)
    source = list_images(root)
    check_destination(root, dest)
    identity, rounds = _identity(source, options), Rounds(dest, source, options, on_progress)
    try:
        make_folder(dest)
        with exclusive_lock(dest / LOCK_FILE, f"build of {dest}"):
            check_destination(root, dest)  # again: another process may have been there meanwhile
            existing = prepare_destination(dest, identity, source, options.overwrite)
            if existing is not ExistingBuild.FINISHED:
                _write_dataset(rounds, identity, is_new=existing is ExistingBuild.NONE)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        remedy = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "fix the cause"
        raise BuildError(
            f"expected to write the dataset, found {reason} at {error.filename or dest}: {remedy} and run the"
            " same build again, it resumes where it stopped"
        ) from error
    except MemoryError as error:
        raise BuildError(
            f"expected memory for a shard per worker, found too little for {dest}: use a smaller --size or"
            " fewer --workers"
        ) from error
    dataset = Dataset.open(dest)
    return BuildReport(
        path=dest,
        rows={split: dataset[split].rows for split in SPLITS},
        class_names=dataset.class_names,
        failures=tuple(read_failures(dest)),
        duplicates=dataset.attributes.duplicates,
        skipped=source.skipped,
        counts={
            split: tuple(np.bincount(dataset[split].labels, minlength=len(dataset.class_names)).tolist())
            for split in SPLITS
        },
        deep=tuple(deep_classes(source)),
        jump=rounds.progress.jump.note,
        content_hash=dataset.content_hash,
        depth=dataset.attributes.depth,
        flat=_count_flat(dataset),
        existing=existing,
        damaged=rounds.damaged,
        seconds=time.monotonic() - began,
    )


def _check_options(options: BuildOptions) -> None:
    check_frame(options.size, options.fit)
    if max(options.size) > MAX_SIDE:
        height, width = options.size
        raise OptionError(f"expected an image size of at most {MAX_SIDE} a side, found {height}x{width}: lower it")
    if options.workers is not None and not 1 <= options.workers <= MAX_WORKERS:
        raise OptionError(f"expected 1 to {MAX_WORKERS} workers, found {options.workers}: None is one per CPU")
    if options.max_failures is not None and options.max_failures < 0:
        raise OptionError(f"expected max_failures of 0 or more, found {options.max_failures}: None is no limit")
    chunk_codecs(options.codec)


def _identity(source: Source, options: BuildOptions) -> dict[str, Any]:
    """Everything that determines the bytes of the dataset; a build resumes only if it is the same."""
    identity = {
        "pictures": source.hash,  # the name on disk since version 1: another would change every build_hash
        "format version": FORMAT_VERSION,
        "--size": list(options.size),
        "--fit": options.fit,
        "--val": options.val,
        "--seed": options.seed,
        "--codec": options.codec,
        "--group-copies": options.group_copies,
    }
    # Newer options only where they are given, so that a build_hash stays as it is.
    if options.depth is not None:
        identity["--depth"] = list(options.depth)
    if options.max_pixels != MAX_PIXELS:
        identity["--max-pixels"] = options.max_pixels
    return identity


def _write_dataset(rounds: Rounds, identity: dict[str, Any], *, is_new: bool) -> None:
    """Write the dataset, or the rest of it, and seal it."""
    dest, source, options, journal = rounds.dest, rounds.source, rounds.options, Journal(rounds.dest)
    # A rerun takes no sample again: that would be another one if a file cannot be read this time.
    depth = (options.depth or find_depth(source, options.max_pixels)) if is_new else read_attributes(dest).depth
    rounds.decoding = DecodeOptions(depth, options.max_pixels)
    attributes = Attributes(
        source.class_names, options.size, options.fit, options.seed,
        printable(str(source.root.resolve())), build_hash(identity), depth=depth,
    )  # fmt: skip
    if is_new:
        create_dataset(dest, attributes, rounds.rows, options.codec)
        journal.begin(identity, source.lines())  # last: without a journal, a rerun starts again
    _finish(rounds, attributes, rounds.run())
    journal.end()


def _finish(rounds: Rounds, attributes: Attributes, shards: dict[str, list[ShardResult]]) -> None:
    """Write the reports, check that each class has training images, compute the statistics, and seal."""
    dest, source = rounds.dest, rounds.source
    reports = {FAILURES_FILE: write_failures(dest, rounds.progress.failures())}
    files = {split: [file for shard in shards[split] for file in shard.assigned] for split in SPLITS}
    labels = {split: source.labels[np.array(files[split], dtype=np.int64)] for split in SPLITS}  # (n,) each
    paths = {split: [escaped(source.files[file].path) for file in files[split]] for split in SPLITS}
    for index, name in enumerate(source.class_names):
        if index not in labels["train"]:
            raise ListingError(
                f"expected a readable training image in every class, found none in {name} of {source.root}: see"
                f" {dest / FAILURES_FILE}, then repair the images or remove the class"
            )
    duplicates = None
    if rounds.duplicates is not None:
        duplicates, crc = write_duplicates(dest, source, rounds.duplicates, rounds.validation_mask())
        reports[DUPLICATES_FILE] = crc
    pixels = len(labels["train"]) * attributes.size[0] * attributes.size[1]
    sums = [sum(shard.sums[channel] for shard in shards["train"]) for channel in range(3)]
    squares = [sum(shard.squares[channel] for shard in shards["train"]) for channel in range(3)]
    mean, std = colour_statistics(pixels, sums, squares)
    attributes = replace(attributes, duplicates=duplicates, mean=mean, std=std, reports=reports, sealed=True)
    digests = {split: [shard.digest for shard in shards[split]] for split in SPLITS}
    attributes = replace(attributes, content_hash=content_digest(attributes, digests))
    seal(dest, attributes, labels, paths)


def _count_flat(dataset: Dataset) -> tuple[int, int]:
    """Of the first training rows, which are in random order: how many are flat, and how many there are."""
    height, width = dataset.size
    rows = min(len(dataset.train), max(16, min(256, FLATNESS_BYTES // (height * width * 3))))
    with suppress(DatasetError):  # of a finished dataset that has been damaged since: 'verify' says so
        return count_flat(dataset.train.read(0, rows)), rows
    return 0, 0
