"""Running the jobs of a build, each a Dask task: on threads here, or on a cluster.

Both ways yield each result as it comes and, several times a second, None: time for the caller to look up.
Leaving early stops what can still be stopped.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace

import dask

from pipeline.build.journal import ShardResult
from pipeline.build.progress import BuildProgress
from pipeline.build.shard_task import ShardJob, run_shard
from pipeline.parallel.cluster import Cluster

POLL_SECONDS = 0.1  # how often the caller looks up while the tasks work

Results = Generator[ShardResult | None, None, None]


def run_on_threads(jobs: Sequence[ShardJob], workers: int, tally: BuildProgress) -> Results:
    """Run the jobs on Dask's threaded scheduler. Pillow releases the GIL: processes would be no faster.

    The scheduler blocks its caller, so it gets a thread of its own and the caller's stays free.
    """
    finished: queue.SimpleQueue[ShardResult | BaseException] = queue.SimpleQueue()

    def work(number: int) -> None:
        try:
            tally.raise_if_stopped()
            finished.put(run_shard(jobs[number], tally.tick))
        except BaseException as error:  # into the caller's thread, whatever it is
            finished.put(error)
            tally.stop()

    def schedule() -> None:
        with ThreadPoolExecutor(workers, thread_name_prefix="logpose-build") as pool:
            tasks = [dask.delayed(work, pure=False)(number) for number in range(len(jobs))]
            dask.compute(*tasks, scheduler="threads", pool=pool)

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
            tally.stop()
        thread.join()


def run_on_cluster(jobs: Sequence[ShardJob], address: str) -> Results:
    """Run the jobs on a Dask cluster whose workers see the same file system.

    A worker that vanishes has its tasks done by another. Raises BuildError where none is left, or a task
    fails on several.
    """
    finished: queue.SimpleQueue[ShardResult | BaseException] = queue.SimpleQueue()
    waiting = [replace(job, dataset=job.dataset.resolve(), root=job.root.resolve()) for job in reversed(jobs)]
    missing = len(jobs)
    with closing(Cluster(address, finished)) as cluster:
        while missing:
            while cluster.has_room() and waiting:
                cluster.submit(run_shard, waiting.pop())
            result = _next(finished)
            missing -= result is not None
            yield result


def _next(finished: queue.SimpleQueue[ShardResult | BaseException]) -> ShardResult | None:
    """The next result, or None when it is time to look up. Raises what a task raised."""
    try:
        result = finished.get(timeout=POLL_SECONDS)
    except queue.Empty:
        return None
    if isinstance(result, BaseException):
        raise result
    return result
