"""listing -> split -> shards, one Dask task per shard -> a sealed dataset.

Rounds: assign files to rows, and have every shard written that does not hold its files yet. Only the first
decodes everything. It brings to light which files cannot be read, and which images are copies of one
another; these then leave or change sides, and a second round writes the shards that this touches. A third
finds nothing to do.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from logpose.common.cpus import available_cpus
from logpose.common.errors import printable
from pipeline.build.destination import DestinationState, check_place, lock_destination, prepare_destination
from pipeline.build.journal import Failure, Journal, ShardResult
from pipeline.build.options import BuildOptions as BuildOptions
from pipeline.build.progress import BuildProgress
from pipeline.build.reports import read_failures, write_duplicates, write_failures
from pipeline.build.row_assignment import assign, cut, first_orders, moved
from pipeline.build.scheduler import run_on_cluster, run_on_threads
from pipeline.build.shard_task import ShardJob
from pipeline.build.source_files import Source, survey
from pipeline.build.split import split, split_by_groups
from pipeline.dataset.codecs import chunk_codecs
from pipeline.dataset.schema import (
    FAILURES_FILE,
    FORMAT_VERSION,
    SPLITS,
    Attributes,
    DuplicateCounts,
    build_hash,
    colour_statistics,
    content_digest,
    layout,
)
from pipeline.dataset.store import Dataset, create, make_room, seal, shard_file
from pipeline.duplicates.find import DuplicateGroups, find_duplicates
from pipeline.errors import BuildError, ListingError, OptionError, TooManyFailures
from pipeline.images.decode import FITS
from pipeline.scan.class_folders import list_images

# done, of total, what: 'images' read or 'comparisons' made; and how many files could not be read.
Progress = Callable[[int, int, str, int], None]
ShardKey = tuple[str, int]  # part, number


@dataclass(frozen=True)
class BuildReport:
    """What a build has made.

    failures    sorted by path; the same as in failures.csv
    copies      None where nobody looked for them
    has_splits   whether the folders said who is for training and who for validation
    skipped     files and folders in the root that belong to no class
    found       what there was before: nothing, the same build begun, or the same build finished
    """

    path: Path
    rows: dict[str, int]  # by part
    class_names: tuple[str, ...]
    failures: tuple[Failure, ...]
    copies: DuplicateCounts | None
    has_splits: bool
    skipped: tuple[str, ...]
    content_hash: str
    found: DestinationState
    seconds: float


def build_dataset(
    root: Path,
    dest: Path,
    options: BuildOptions | None = None,
    on_progress: Progress = lambda done, total, what, failed: None,
) -> BuildReport:
    """Build the dataset `dest` from the images in `root`.

    on_progress is called in this thread, several times a second. A build that was killed goes on, if
    images and options are the same, and ends with the same content; one that is finished stays as it is.
    Raises PipelineError: ListingError, OptionError, OutputExistsError, BusyError; BuildError where the
    dataset cannot be written, as when the disk is full; TooManyFailures. After these two and after
    KeyboardInterrupt, what is done stays for the next try, and is not taken for whole.
    """
    began = time.monotonic()
    root, dest, options = Path(root), Path(dest), options or BuildOptions()
    _check_options(options)
    source = survey(list_images(root))
    check_place(root, dest)
    try:
        with lock_destination(dest):
            build = _Build(dest, source, options, on_progress)
            found = prepare_destination(dest, build.identity, source, options.overwrite)
            if found is not DestinationState.FINISHED:
                build.run(resumed=found is DestinationState.BEGUN)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        remedy = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "put that right"
        raise BuildError(
            f"expected to write the dataset, found {reason} at {error.filename or dest}: {remedy} and run the"
            " same build again, it goes on where it stopped"
        ) from error
    except MemoryError as error:
        raise BuildError(
            f"expected memory for a shard per worker, found too little for {dest}: give a smaller --size or"
            " fewer --workers"
        ) from error
    dataset = Dataset.open(dest)
    return BuildReport(
        path=dest,
        rows={part.name: part.rows for part in (dataset.train, dataset.val)},
        class_names=dataset.class_names,
        failures=tuple(read_failures(dest)),
        copies=dataset.attributes.copies,
        has_splits=source.has_splits,
        skipped=source.skipped,
        content_hash=dataset.content_hash,
        found=found,
        seconds=time.monotonic() - began,
    )


def _check_options(options: BuildOptions) -> None:
    height, width = options.size
    if height < 1 or width < 1:
        raise OptionError(f"expected an image size of at least 1x1, found {height}x{width}")
    if options.fit not in FITS:
        raise OptionError(f"expected a fit out of {', '.join(FITS)}, found {options.fit!r}")
    if options.workers is not None and options.workers < 1:
        raise OptionError(f"expected at least one worker, found {options.workers}")
    if options.max_failures is not None and options.max_failures < 0:
        raise OptionError(f"expected max_failures of 0 or more, found {options.max_failures}")
    chunk_codecs(options.codec)


class _Build:
    """One build, while it runs."""

    def __init__(self, dest: Path, source: Source, options: BuildOptions, on_progress: Progress) -> None:
        self.dest, self.source, self.options = dest, source, options
        self.tally = BuildProgress(source)
        # What must be the same for a build to go on; it decides every byte of the outcome.
        self.identity: dict[str, Any] = {
            "pictures": source.hash,  # the name on disk since version 1: renaming it would change every build_hash
            "format version": FORMAT_VERSION,
            "--size": list(options.size),
            "--fit": options.fit,
            "--val": options.val,
            "--seed": options.seed,
            "--codec": options.codec,
            "--group-copies": options.group_copies,
        }
        self._journal = Journal(dest)
        self._run = f"{socket.gethostname()} {os.getpid()} {os.urandom(8).hex()}"
        self._on_progress = on_progress
        self._copies: DuplicateGroups | None = None
        self._orders = first_orders(self._validation_mask(), options.seed)
        self._layouts = {part: layout(len(self._orders[part]), options.size) for part in SPLITS}
        self._done: dict[ShardKey, ShardResult] = {}

    def run(self, *, resumed: bool) -> None:
        """Write the dataset, or the rest of it, and seal it."""
        attributes = Attributes(
            self.source.class_names, self.options.size, self.options.fit, self.options.seed,
            printable(str(self.source.root.resolve())), build_hash(self.identity),
        )  # fmt: skip
        if not resumed:
            create(self.dest, attributes, {part: len(self._orders[part]) for part in SPLITS}, self.options.codec)
            self._journal.begin(self.identity, self.source.lines())  # last: without it there is nothing to go on with
        self._journal.take_over(self._run)
        self._copies = self._journal.copies()
        for key, result in self._journal.results().items():
            if shard_file(self.dest, *key).is_file():
                self._done[key] = result
                self.tally.add(result)
        while True:
            wanted = self._wanted()
            stale = [key for key, files in wanted.items() if key not in self._done or self._done[key].files != files]
            self._look_up()
            if not stale:
                break
            self._write([self._job(key, wanted[key]) for key in stale])
        self._finish(attributes, {part: [self._done[key] for key in wanted if key[0] == part] for part in SPLITS})

    # The rounds ---------------------------------------------------------------------------------------

    def _validation_mask(self) -> npt.NDArray[np.bool_]:
        """Who is for validation, (N,), as far as is known now."""
        if self.source.has_splits:
            return np.array([file.part == "val" for file in self.source.files], dtype=np.bool_)  # (N,)
        if self._copies is None:
            return split(self.source.labels, self.options.val, self.options.seed)
        return split_by_groups(self.source.labels, self._copies.lead, self.options.val, self.options.seed)

    def _wanted(self) -> dict[ShardKey, tuple[int, ...]]:
        """The files of each shard, as far as is known now."""
        gone, joining = set(self.tally.failed), {part: list[int]() for part in SPLITS}
        if self.options.group_copies and self._copies is None and self.tally.done == self.source.count:
            self._copies = self._find_copies()
        if self._copies is not None:
            moving = moved(self._orders, self._validation_mask())
            joining = {part: [file for file in moving[part] if file not in gone] for part in SPLITS}
        wanted: dict[ShardKey, tuple[int, ...]] = {}
        for part in SPLITS:
            leaving = gone.union(*(joining[other] for other in SPLITS if other != part))
            files = assign(self._orders[part], leaving, joining[part])
            make_room(self.dest, part, len(files))
            wanted |= {(part, shard): row for shard, row in cut(files, self._layouts[part].shard_rows)}
        return wanted

    def _find_copies(self) -> DuplicateGroups:
        """Compare all images that could be read, and note the outcome for good."""
        good = np.array([file for file in range(self.source.count) if file not in self.tally.failed], dtype=np.int64)
        copies = DuplicateGroups(np.arange(self.source.count, dtype=np.int64), [""] * self.source.count)
        if len(good):
            prints = self._journal.fingerprints(self.source.count)  # (N, FINGERPRINT_BYTES)
            if len(good) < len(prints):
                prints = prints[good]  # (n, FINGERPRINT_BYTES)

            def progress(done: int, total: int) -> None:
                self._on_progress(done, total, "comparisons", len(self.tally.failed))

            found = find_duplicates(prints, self.options.workers or available_cpus(), progress)
            copies.lead[good] = good[found.lead]
            for file, how in zip(good.tolist(), found.how, strict=True):
                copies.how[file] = how
        self._journal.save_duplicates(copies)
        return copies

    def _job(self, key: ShardKey, wanted: tuple[int, ...]) -> ShardJob:
        part, shard = key
        return ShardJob(
            dataset=self.dest,
            root=self.source.root,
            run=self._run,
            part=part,
            shard=shard,
            wanted=wanted,
            files=tuple(self.source.files[file] for file in wanted),
            former=self._done.get(key),
            size=self.options.size,
            fit=self.options.fit,
            printing=self.options.group_copies and self._copies is None,
        )

    def _write(self, jobs: list[ShardJob]) -> None:
        if self.options.scheduler is None:
            results = run_on_threads(jobs, self.options.workers or available_cpus(), self.tally)
        else:
            results = run_on_cluster(jobs, self.options.scheduler)
        with closing(results):
            for result in results:
                if result is not None:
                    self.tally.add(result)
                    self._done[result.part, result.shard] = result
                self._look_up()

    def _look_up(self) -> None:
        """What the main thread does between waits: show the progress, and see that not too much has failed."""
        failed, limit = len(self.tally.failed), self.options.max_failures
        self._on_progress(self.tally.done, self.source.count, "images", failed)
        if limit is None or failed <= (limit * self.source.count if isinstance(limit, float) else limit):
            return
        failures = self.tally.failures()
        write_failures(self.dest, failures)
        first = ", ".join(f"{failure.path} ({failure.kind})" for failure in failures[:3])
        allowed = str(limit) if isinstance(limit, int) else f"{limit:.2%} of {self.source.count}"
        raise TooManyFailures(
            f"expected at most {allowed} unreadable files, found {failed}: {first}{', …' if failed > 3 else ''};"
            f" see {self.dest / FAILURES_FILE}, then repair or remove them, or allow more with --max-failures"
        )

    # The end ------------------------------------------------------------------------------------------

    def _finish(self, attributes: Attributes, shards: dict[str, list[ShardResult]]) -> None:
        """Account for every file, check that there is enough to learn from, and seal."""
        write_failures(self.dest, self.tally.failures())
        numbers = {part: [file for result in shards[part] for file in result.wanted] for part in SPLITS}
        labels = {part: self.source.labels[np.array(numbers[part], dtype=np.int64)] for part in SPLITS}  # (n,) each
        paths = {part: [printable(self.source.files[file].path) for file in numbers[part]] for part in SPLITS}
        for index, name in enumerate(self.source.class_names):
            if index not in labels["train"]:
                raise ListingError(
                    f"expected a readable image to train on in every class, found none in {name} of"
                    f" {self.source.root}: see {self.dest / FAILURES_FILE}, then repair them or remove the class"
                )
        copies = None
        if self._copies is not None:
            copies = write_duplicates(self.dest, self.source, self._copies, self._validation_mask())
        pixels = len(labels["train"]) * self.options.size[0] * self.options.size[1]
        sums = [sum(result.sums[channel] for result in shards["train"]) for channel in range(3)]
        squares = [sum(result.squares[channel] for result in shards["train"]) for channel in range(3)]
        mean, std = colour_statistics(pixels, sums, squares)
        attributes = replace(attributes, copies=copies, mean=mean, std=std, sealed=True)
        digests = {part: [result.digest for result in shards[part]] for part in SPLITS}
        attributes = replace(attributes, content_hash=content_digest(attributes, digests))
        seal(self.dest, attributes, labels, paths)
        self._journal.end()
