"""Rounds of shard tasks: assign files to rows, write the shards that do not have their files yet, repeat.

The first round decodes everything. It finds the files that cannot be read and, by their fingerprints, the
near-duplicates. Files then leave or change splits, and a second round writes the affected shards. A third finds nothing
to do.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from logpose.common.cpus import available_cpus
from pipeline.build.journal import NO_FILE, Journal, ShardResult
from pipeline.build.options import BuildOptions
from pipeline.build.progress import BuildProgress
from pipeline.build.reports import write_failures
from pipeline.build.row_assignment import assign_rows, by_shard, initial_orders, joining_files
from pipeline.build.scheduler import POLL_SECONDS, run_on_cluster, run_on_threads
from pipeline.build.shard_task import ShardJob, digest_on_disk
from pipeline.build.split import split_files, split_groups
from pipeline.build.warm_up import load_kernels
from pipeline.dataset.schema import FAILURES_FILE, SPLITS, layout
from pipeline.dataset.store import open_split, read_attributes, shard_file
from pipeline.dataset.writer import ensure_rows
from pipeline.duplicates.find import find_duplicates
from pipeline.duplicates.groups import DuplicateGroups
from pipeline.errors import BuildError, TooManyFailures
from pipeline.images.options import DecodeOptions
from pipeline.parallel.ordered import in_order_on_threads
from pipeline.scan.source_files import Source

# (done, total, what, failed): 'images' decoded, 'comparisons' made, or (0) 'kernels' while some are compiled before the
# first image; and the number of files that cannot be read.
OnProgress: TypeAlias = Callable[[int, int, str, int], None]
ShardKey: TypeAlias = tuple[str, int]  # split, number


class Rounds:
    """The shards of a build in progress.

    progress    counters of the files tried
    duplicates  groups of near-duplicates; None until they are known, or if they are not searched for
    decoding    depth and limit of pixels; to be set before `run` where the depth is not an option
    rows        rows of each split in the first round
    damaged     shards that an earlier run finished, and that have changed since: they are made again
    """

    def __init__(self, dest: Path, source: Source, options: BuildOptions, on_progress: OnProgress) -> None:
        self.progress = BuildProgress(source)
        self.duplicates: DuplicateGroups | None = None
        self.dest, self.source, self.options = dest, source, options
        self.decoding = DecodeOptions(options.depth, options.max_pixels)
        self._on_progress = on_progress
        self._workers = available_cpus() if options.workers is None else options.workers
        self._journal = Journal(dest)
        self._run_id = f"{socket.gethostname()} {os.getpid()} {os.urandom(8).hex()}"
        self._orders = initial_orders(self.validation_mask(), options.seed)
        self.rows = {split: len(self._orders[split]) for split in SPLITS}
        self._layouts = {split: layout(self.rows[split], options.size) for split in SPLITS}
        self._written: dict[ShardKey, ShardResult] = {}
        self.damaged = 0
        self._kernels_loaded = False

    def run(self) -> dict[str, list[ShardResult]]:
        """Write all shards that the journal does not have; returns those of each split, in order.

        Files that an earlier run could not open are tried again. Raises TooManyFailures, and what tasks raise.
        """
        self._journal.claim(self._run_id)
        count = len(self.source.files)
        written = self._undamaged(self._journal.results(count))
        tried_again = {key: each.without_unreadable() for key, each in written.items()}
        if tried_again == written:  # a file that can be read now may be a near-duplicate
            self.duplicates = self._journal.duplicates(count)
        needs_prints = self.options.group_copies and self.duplicates is None
        have = self._journal.fingerprinted(count) if needs_prints else np.ones(count, dtype=np.bool_)  # (N,)
        for result in tried_again.values():
            decoded = [file for file in result.files if file != NO_FILE]
            if have[decoded].all():
                self._add(result)
        while True:
            assigned = self._assign()
            outdated = [
                key for key, files in assigned.items() if key not in self._written or self._written[key].files != files
            ]
            if outdated:
                self._load_kernels()
            self._check_progress()
            if not outdated:
                return {split: [self._written[key] for key in assigned if key[0] == split] for split in SPLITS}
            self._write([self._job(key, assigned[key]) for key in outdated])

    def _undamaged(self, results: dict[ShardKey, ShardResult]) -> dict[ShardKey, ShardResult]:
        """Those of the finished shards whose file holds what the journal says. Raises ReadError, AccessError."""
        there = {key: each for key, each in results.items() if shard_file(self.dest, *key).is_file()}
        if not there:
            return there
        attributes = read_attributes(self.dest)
        splits = {split: open_split(self.dest, split, attributes) for split in SPLITS}

        def is_whole(result: ShardResult) -> bool:
            return digest_on_disk(splits[result.split], result, self.source) == result.digest

        whole = in_order_on_threads(is_whole, there.values(), self._workers)
        undamaged = {key: each for (key, each), same in zip(there.items(), whole, strict=True) if same}
        self.damaged = len(there) - len(undamaged)
        return undamaged

    def validation_mask(self) -> npt.NDArray[np.bool_]:
        """Validation mask of the files, (N,). Divides no group of near-duplicates, once these are known."""
        if self.source.has_splits:
            return np.array([file.split == "val" for file in self.source.files], dtype=np.bool_)  # (N,)
        labels, fraction, seed = self.source.labels, self.options.val, self.options.seed
        if self.duplicates is None:
            return split_files(labels, fraction, seed)
        return split_groups(labels, self.duplicates.representative, fraction, seed)

    def _assign(self) -> dict[ShardKey, tuple[int, ...]]:
        """The files of each shard, given the failures and near-duplicates known by now."""
        failed, joining = set(self.progress.failed), {split: list[int]() for split in SPLITS}
        if self.options.group_copies and self.duplicates is None and self.progress.done == len(self.source.files):
            self.duplicates = self._find_duplicates()
            self._journal.save_duplicates(self.duplicates)
        if self.duplicates is not None:
            moving = joining_files(self._orders, self.validation_mask())
            joining = {split: [file for file in moving[split] if file not in failed] for split in SPLITS}
        assigned: dict[ShardKey, tuple[int, ...]] = {}
        for split in SPLITS:
            leaving = failed.union(*(joining[other] for other in SPLITS if other != split))
            files = assign_rows(self._orders[split], leaving, joining[split])
            ensure_rows(self.dest, split, len(files))
            assigned |= {(split, shard): row for shard, row in by_shard(files, self._layouts[split].shard_rows)}
        return assigned

    def _find_duplicates(self) -> DuplicateGroups:
        """Find near-duplicates among the readable images."""
        count, failed = len(self.source.files), self.progress.failed
        readable = np.array([file for file in range(count) if file not in failed], dtype=np.int64)  # (n,)
        groups = DuplicateGroups(np.arange(count, dtype=np.int64), [""] * count)
        if not len(readable):
            return groups
        if not self._journal.fingerprinted(count)[readable].all():
            raise BuildError(
                f"expected a fingerprint of each image, found some damaged in {self.dest}: run the same build again, it"
                " makes them again"
            )
        prints = self._journal.fingerprints(count)  # (N, FINGERPRINT_BYTES)
        if failed:
            prints = prints[readable]  # (n, FINGERPRINT_BYTES)

        def on_progress(done: int, total: int) -> None:
            self._on_progress(done, total, "comparisons", len(failed))

        found = find_duplicates(prints, self._workers, on_progress)
        groups.representative[readable] = readable[found.representative]
        for file, how in zip(readable.tolist(), found.transforms, strict=True):
            groups.transforms[file] = how
        return groups

    def _job(self, key: ShardKey, assigned: tuple[int, ...]) -> ShardJob:
        split, shard = key
        return ShardJob(
            dataset=self.dest,
            root=self.source.root,
            run_id=self._run_id,
            split=split,
            shard=shard,
            assigned=assigned,
            files=tuple(self.source.files[file] for file in assigned),
            previous=self._written.get(key),
            size=self.options.size,
            fit=self.options.fit,
            fingerprint=self.options.group_copies and self.duplicates is None,
            decoding=self.decoding,
        )

    def _write(self, jobs: list[ShardJob]) -> None:
        if self.options.scheduler is None:
            results = run_on_threads(jobs, self._workers, self.progress)
        else:
            results = run_on_cluster(jobs, self.options.scheduler)
        with closing(results):
            for result in results:
                if result is not None:
                    self._add(result)
                self._check_progress()

    def _load_kernels(self) -> None:
        """Load what the tasks compute with, once. A cluster's workers do that with their first image."""
        if self._kernels_loaded or self.options.scheduler is not None:
            return
        self._kernels_loaded = True
        compiling = threading.Event()

        def load() -> None:
            with suppress(Exception):  # the first task raises it again
                load_kernels(self.options.size, self.options.fit, self.options.group_copies, compiling.set)

        thread = threading.Thread(target=load, name="logpose-kernels", daemon=True)
        with suppress(RuntimeError):  # no thread can be started: the tasks say so
            thread.start()
        while thread.is_alive():  # Ctrl-C does not interrupt compiling
            thread.join(POLL_SECONDS)
            if compiling.is_set():
                self._on_progress(0, len(self.source.files), "kernels", 0)

    def _add(self, result: ShardResult) -> None:
        self.progress.count_shard(result)
        self._written[result.split, result.shard] = result

    def _check_progress(self) -> None:
        """Report progress and enforce `max_failures`; called while waiting for tasks."""
        failed, total, limit = len(self.progress.failed), len(self.source.files), self.options.max_failures
        self._on_progress(self.progress.done, total, "images", failed)
        if limit is None or failed <= (limit * total if isinstance(limit, float) else limit):
            return
        failures = self.progress.failures()
        write_failures(self.dest, failures)
        first = ", ".join(f"{failure.path} ({failure.kind})" for failure in failures[:3])
        allowed = str(limit) if isinstance(limit, int) else f"{limit:.2%} of {total}"
        raise TooManyFailures(
            f"expected at most {allowed} unreadable files, found {failed}: {first}{', …' if failed > 3 else ''};"
            f" see {self.dest / FAILURES_FILE}, then repair or remove them, or allow more with --max-failures"
        )
