"""listing -> split -> shards, one Dask task per shard -> a sealed dataset.

Rounds: assign files to rows, have every shard written that does not hold its files yet, and, if some
files turned out unreadable, assign again without them. The second round writes few shards, a third none.
"""

from __future__ import annotations

import csv
import errno
import io
import os
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import dask
import numpy as np

from pipeline.codecs import chunk_codecs
from pipeline.decode import FITS
from pipeline.errors import BuildError, ListingError, OptionError, TooManyFailures, printable
from pipeline.journal import Failure, Journal, ShardResult, write_atomically
from pipeline.listing import list_pictures
from pipeline.place import check_place, make_way
from pipeline.schema import (
    FAILURES_FILE,
    FAILURES_HEADER,
    FORMAT_VERSION,
    PARTS,
    Attributes,
    colour_statistics,
    content_digest,
    layout,
)
from pipeline.shards import ShardJob, assign, cut, run_shard
from pipeline.source import Source, survey
from pipeline.store import create, seal, shard_file
from pipeline.tally import Tally

POLL_SECONDS = 0.1  # how often the main thread looks up while the tasks work

Progress = Callable[[int, int, int], None]
ShardKey = tuple[str, int]  # part, number


@dataclass(frozen=True)
class BuildOptions:
    """How to build.

    size          (H, W) of the stored pictures
    fit           'pad', 'crop' or 'squash', see `decode_picture`
    val           fraction of each class for validation; unused where the folders say train and val
    seed          of the split and of the order of rows
    workers       threads that decode, here; a scheduler has its own workers
    scheduler     address of a Dask scheduler, whose workers see the same file system; None: this machine
    max_failures  how many unreadable files to accept: a count (int) or a fraction of all (float); None: any
    overwrite     replace a finished dataset, or one that was begun from something else
    codec         a name out of `pipeline.codecs.CODECS`
    """

    size: tuple[int, int] = (128, 128)
    fit: str = "pad"
    val: float = 0.1
    seed: int = 0
    workers: int = field(default_factory=lambda: os.cpu_count() or 1)
    scheduler: str | None = None
    max_failures: int | float | None = None
    overwrite: bool = False
    codec: str = "none"


@dataclass(frozen=True)
class BuildReport:
    """What a build has made."""

    path: Path
    rows: dict[str, int]  # by part
    class_names: tuple[str, ...]
    failures: tuple[Failure, ...]  # sorted by path; the same as in failures.csv
    skipped: tuple[str, ...]  # files and folders in the root that belong to no class
    content_hash: str
    resumed: bool
    seconds: float


def build_dataset(
    root: Path,
    dest: Path,
    options: BuildOptions | None = None,
    on_progress: Progress = lambda done, total, failed: None,
) -> BuildReport:
    """Build the dataset `dest` from the pictures in `root`.

    on_progress(done, total, failed) counts files; it is called in this thread, several times a second.
    A build that was killed goes on, if pictures and options are the same, and ends with the same content.
    Raises PipelineError: ListingError, OptionError, OutputExistsError; BuildError where the dataset cannot
    be written, as when the disk is full; TooManyFailures. After these two and after KeyboardInterrupt, what
    is done stays for the next try, and is not taken for whole.
    """
    began = time.monotonic()
    root, dest, options = Path(root), Path(dest), options or BuildOptions()
    _check_options(options)
    source = survey(list_pictures(root), options.val, options.seed)
    check_place(root, dest)
    try:
        resumed = make_way(dest, _identity(source, options), options.overwrite)
        if not resumed:
            _start(dest, source, options)
        shards, failures = _write_shards(dest, source, options, on_progress)
        attributes = _finish(dest, source, options, shards, failures)
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
    return BuildReport(
        path=dest,
        rows={part: sum(len(result.wanted) for result in shards[part]) for part in PARTS},
        class_names=attributes.class_names,
        failures=tuple(failures),
        skipped=source.skipped,
        content_hash=attributes.content_hash or "",
        resumed=resumed,
        seconds=time.monotonic() - began,
    )


def _check_options(options: BuildOptions) -> None:
    height, width = options.size
    if height < 1 or width < 1:
        raise OptionError(f"expected a picture size of at least 1x1, found {height}x{width}")
    if options.fit not in FITS:
        raise OptionError(f"expected a fit out of {', '.join(FITS)}, found {options.fit!r}")
    if options.workers < 1:
        raise OptionError(f"expected at least one worker, found {options.workers}")
    if options.max_failures is not None and options.max_failures < 0:
        raise OptionError(f"expected max_failures of 0 or more, found {options.max_failures}")
    chunk_codecs(options.codec)


def _identity(source: Source, options: BuildOptions) -> dict[str, Any]:
    """What must be the same for a build to go on; it decides every byte of the outcome."""
    return {
        "pictures": source.hash,
        "format version": FORMAT_VERSION,
        "--size": list(options.size),
        "--fit": options.fit,
        "--val": options.val,
        "--seed": options.seed,
        "--codec": options.codec,
    }


def _start(dest: Path, source: Source, options: BuildOptions) -> None:
    dest.mkdir(parents=True, exist_ok=True)
    attributes = Attributes(source.class_names, options.size, options.fit, options.seed, source.hash)
    create(dest, attributes, {part: len(source.files[part]) for part in PARTS}, options.codec)
    Journal(dest).begin(_identity(source, options))  # last: without it there is nothing to go on with


# The rounds -------------------------------------------------------------------------------------------


def _write_shards(
    dest: Path, source: Source, options: BuildOptions, on_progress: Progress
) -> tuple[dict[str, list[ShardResult]], list[Failure]]:
    """Rounds of tasks until every row shows its file. Returns the shards of each part, and the failures."""
    journal, tally = Journal(dest), Tally(source)
    done = {key: result for key, result in journal.results().items() if shard_file(dest, *key).is_file()}
    for result in done.values():
        tally.add(result)
    while True:
        wanted = {(part, shard): files for part in PARTS for shard, files in _shards(source, part, options, tally)}
        stale = [key for key, files in wanted.items() if key not in done or done[key].files != files]
        _look_up(dest, source, options, tally, on_progress)
        if not stale:
            shards = {part: [done[key] for key in wanted if key[0] == part] for part in PARTS}
            return shards, tally.failures()
        jobs = [_job(dest, source, options, key, wanted[key], done.get(key)) for key in stale]
        with closing(_run(jobs, options, tally)) as finished:
            for new in finished:
                if new is not None:
                    key = new.part, new.shard
                    if key in done:  # what failed here before is not asked for again, but must be remembered
                        new = replace(new, failures=done[key].failures + new.failures)
                    tally.add(new)
                    journal.add(new)
                    done[key] = new
                _look_up(dest, source, options, tally, on_progress)


def _shards(source: Source, part: str, options: BuildOptions, tally: Tally) -> Iterator[tuple[int, tuple[int, ...]]]:
    count = len(source.files[part])
    return cut(assign(count, tally.failed_in(part)), layout(count, options.size).shard_rows)


def _job(
    dest: Path, source: Source, options: BuildOptions, key: ShardKey, wanted: tuple[int, ...], done: ShardResult | None
) -> ShardJob:
    part, shard = key
    files = tuple(source.files[part][index] for index in wanted)
    before = done.files if done is not None else ()
    return ShardJob(dest, source.root, part, shard, wanted, files, before, options.size, options.fit)


def _look_up(dest: Path, source: Source, options: BuildOptions, tally: Tally, on_progress: Progress) -> None:
    """What the main thread does between waits: show the progress, and see that not too much has failed."""
    failed, limit = len(tally.failed), options.max_failures
    on_progress(tally.done, source.count, failed)
    if limit is None or failed <= (limit * source.count if isinstance(limit, float) else limit):
        return
    failures = tally.failures()
    _write_failures(dest, failures)
    first = ", ".join(f"{failure.path} ({failure.kind})" for failure in failures[:3])
    allowed = f"{limit:.1%} of {source.count}" if isinstance(limit, float) else str(limit)
    raise TooManyFailures(
        f"expected at most {allowed} unreadable files, found {failed}: {first}{', …' if failed > 3 else ''};"
        f" see {dest / FAILURES_FILE}, then repair or remove them, or allow more with --max-failures"
    )


def _run(jobs: list[ShardJob], options: BuildOptions, tally: Tally) -> Generator[ShardResult | None, None, None]:
    """Run the jobs, each a Dask task. Yields each result as it comes, and None when it is time to look up."""
    finished: queue.SimpleQueue[ShardResult | BaseException] = queue.SimpleQueue()
    start = _on_threads if options.scheduler is None else _on_scheduler
    stop = start(jobs, options, tally, finished)
    missing = len(jobs)
    try:
        while missing:
            try:
                result = finished.get(timeout=POLL_SECONDS)
            except queue.Empty:
                yield None
                continue
            if isinstance(result, BaseException):
                raise result
            missing -= 1
            yield result
    finally:
        if missing:
            tally.stop()
        stop()


def _on_threads(
    jobs: list[ShardJob], options: BuildOptions, tally: Tally, finished: queue.SimpleQueue[Any]
) -> Callable[[], None]:
    """Start the jobs on Dask's threaded scheduler. Pillow releases the GIL: processes would be no faster.

    The scheduler blocks its caller, so it gets a thread of its own and the main thread stays free.
    Returns a function that waits for the end.
    """

    def work(number: int) -> None:
        try:
            tally.raise_if_stopped()
            finished.put(run_shard(jobs[number], tally.tick))
        except BaseException as error:  # into the main thread, whatever it is
            finished.put(error)
            tally.stop()

    def schedule() -> None:
        with ThreadPoolExecutor(options.workers, thread_name_prefix="logpose-build") as pool:
            tasks = [dask.delayed(work, pure=False)(number) for number in range(len(jobs))]
            dask.compute(*tasks, scheduler="threads", pool=pool)

    thread = threading.Thread(target=schedule, name="logpose-schedule", daemon=True)
    thread.start()
    return thread.join


def _on_scheduler(
    jobs: list[ShardJob], options: BuildOptions, tally: Tally, finished: queue.SimpleQueue[Any]
) -> Callable[[], None]:
    """Start the jobs on a distributed scheduler. Returns a function that cancels what still runs."""
    try:
        from dask.distributed import Client
    except ImportError as error:
        raise OptionError(
            "expected the package distributed for --scheduler, found it is not installed: run"
            " 'pip install distributed', or leave out --scheduler"
        ) from error
    try:
        client = Client(options.scheduler, timeout=10, set_as_default=False)
    except (OSError, ValueError) as error:
        raise OptionError(
            f"expected a Dask scheduler at {options.scheduler}, found none ({error}): start one with"
            " 'dask scheduler', or leave out --scheduler"
        ) from error
    absolute = [replace(job, dataset=job.dataset.resolve(), root=job.root.resolve()) for job in jobs]
    futures = client.map(run_shard, absolute, pure=False)
    for future in futures:
        future.add_done_callback(lambda done: finished.put(done.exception() or done.result()))

    def stop() -> None:
        client.cancel(futures)
        client.close()

    return stop


# The end ----------------------------------------------------------------------------------------------


def _finish(
    dest: Path, source: Source, options: BuildOptions, shards: dict[str, list[ShardResult]], failures: list[Failure]
) -> Attributes:
    """Check that there is enough to learn from, and seal."""
    _write_failures(dest, failures)
    files = {part: [source.files[part][index] for result in shards[part] for index in result.wanted] for part in PARTS}
    labels = {part: np.array([file.label for file in files[part]], dtype=np.int64) for part in PARTS}  # (N,)
    paths = {part: [printable(file.path) for file in files[part]] for part in PARTS}
    for index, name in enumerate(source.class_names):
        if index not in labels["train"]:
            raise ListingError(
                f"expected a readable picture to train on in every class, found none in {name} of {source.root}:"
                f" see {dest / FAILURES_FILE}, then repair them or remove the class"
            )
    pixels = len(labels["train"]) * options.size[0] * options.size[1]
    sums = [sum(result.sums[channel] for result in shards["train"]) for channel in range(3)]
    squares = [sum(result.squares[channel] for result in shards["train"]) for channel in range(3)]
    mean, std = colour_statistics(pixels, sums, squares)
    attributes = Attributes(
        source.class_names, options.size, options.fit, options.seed, source.hash, mean, std, sealed=True
    )
    digests = {part: [result.digest for result in shards[part]] for part in PARTS}
    attributes = replace(attributes, content_hash=content_digest(attributes, digests))
    seal(dest, attributes, labels, paths)
    Journal(dest).end()
    return attributes


def _write_failures(dest: Path, failures: list[Failure]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(FAILURES_HEADER)
    writer.writerows((failure.path, failure.kind, failure.reason) for failure in failures)
    write_atomically(dest / FAILURES_FILE, text.getvalue())
