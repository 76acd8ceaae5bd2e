"""Run the shard tasks of a build with Dask, on threads or on a cluster.

Both functions yield each result when it is ready and, every POLL_SECONDS without one, None, so that the caller can
report progress. Closing the generator early cancels the tasks.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from typing import TypeAlias

from pipeline.build.journal import ShardResult
from pipeline.build.progress import BuildProgress
from pipeline.build.shard_task import ShardJob, run_shard, run_shard_on_worker
from pipeline.faults import check_reach
from pipeline.parallel.cluster import Cluster

POLL_SECONDS = 0.1

Results: TypeAlias = Generator[ShardResult | None, None, None]


def run_on_threads(jobs: Sequence[ShardJob], workers: int, progress: BuildProgress) -> Results:
    """Run the jobs on Dask's threaded scheduler. Pillow releases the GIL: processes would not be faster.

    The scheduler blocks its caller, so it runs in a thread of its own. Raises what a task raised.
    """
    finished: queue.SimpleQueue[ShardResult | BaseException] = queue.SimpleQueue()

    def work(number: int) -> None:
        try:
            progress.raise_if_cancelled()
            finished.put(run_shard(jobs[number], progress.count_file))
        except BaseException as error:  # raised again in the caller's thread
            finished.put(error)
            progress.cancel()

    def schedule() -> None:
        try:
            import dask  # not before the images are listed: it takes as long as NumPy and Pillow together

            with ThreadPoolExecutor(workers, thread_name_prefix="logpose-build") as pool:
                tasks = [dask.delayed(work, pure=False)(number) for number in range(len(jobs))]
                dask.compute(*tasks, scheduler="threads", pool=pool)
        except BaseException as error:  # no thread can be started, for example; work itself raises nothing
            finished.put(error)

    thread = threading.Thread(target=schedule, name="logpose-schedule", daemon=True)
    thread.start()
    missing = len(jobs)
    try:
        while missing:
            result = _next(finished)
            missing -= result is not None
            yield result
    finally:
        if missing:
            progress.cancel()
        thread.join()


def run_on_cluster(jobs: Sequence[ShardJob], address: str) -> Results:
    """Run the jobs on a Dask cluster whose workers see the same file system.

    Tasks of a lost worker are run again by another. Raises what a task raised; ReadError if a worker could not open a
    file that this process can; and BuildError if no worker is left or a task takes several down.
    """
    finished: queue.SimpleQueue[ShardResult | BaseException] = queue.SimpleQueue()
    waiting = [replace(job, dataset=job.dataset.resolve(), root=job.root.resolve()) for job in reversed(jobs)]
    missing = len(jobs)
    by_key = {(job.split, job.shard): job for job in waiting}
    with closing(Cluster(address, finished)) as cluster:
        while missing:
            while cluster.has_room() and waiting:
                cluster.submit(run_shard_on_worker, waiting.pop())
            result = _next(finished)
            if result is not None:
                missing -= 1
                _check_reach(result, by_key[result.split, result.shard])
            yield result


def _check_reach(result: ShardResult, job: ShardJob) -> None:
    """Raise ReadError if this process can open a file that the worker could not. A rerun tries such files again."""
    files = dict(zip(job.assigned, job.files, strict=True))
    for number, kind, reason in result.failures:
        if kind == "unreadable" and number in files:
            check_reach(f"{job.root}/{files[number].path}", reason)


def _next(finished: queue.SimpleQueue[ShardResult | BaseException]) -> ShardResult | None:
    """The next result, or None after POLL_SECONDS without one. Raises what a task raised."""
    try:
        result = finished.get(timeout=POLL_SECONDS)
    except queue.Empty:
        return None
    if isinstance(result, BaseException):
        raise result
    return result
