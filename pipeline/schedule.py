"""Running the jobs of a build, each a Dask task: on threads here, or on a cluster.

Both ways yield each result as it comes and, several times a second, None: time for the caller to look up.
Leaving early stops what can still be stopped.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import dask

from pipeline.errors import BuildError, OptionError
from pipeline.journal import ShardResult
from pipeline.shards import ShardJob, run_shard
from pipeline.tally import Tally

POLL_SECONDS = 0.1  # how often the caller looks up while the tasks work
PATIENCE_SECONDS = 30.0  # how long a cluster may be without any worker, as when one is being started again
TASKS_PER_THREAD = 2  # on a cluster at a time: one to work on, one to go on with

Results = Generator[ShardResult | None, None, None]


def run_on_threads(jobs: Sequence[ShardJob], workers: int, tally: Tally) -> Results:
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

    Only so many are handed out at a time as keep all workers busy. A worker that vanishes has its tasks
    done by another. Raises BuildError where none is left, or a task fails on several.
    """
    client = connect(address)
    waiting = [replace(job, dataset=job.dataset.resolve(), root=job.root.resolve()) for job in reversed(jobs)]
    finished: queue.SimpleQueue[ShardResult | BaseException] = queue.SimpleQueue()
    running: set[Any] = set()
    watch = _Watch(client, address)

    def collect(future: Any) -> None:
        try:
            finished.put(future.result())
        except BaseException as error:
            finished.put(error)
        running.discard(future)

    try:
        missing = len(jobs)
        while missing:
            while waiting and len(running) < TASKS_PER_THREAD * watch.threads():
                future = client.submit(run_shard, waiting.pop(), pure=False)
                running.add(future)
                future.add_done_callback(collect)
            try:
                result = _next(finished)
            except Exception as error:
                if type(error).__module__.split(".")[0] != "distributed":
                    raise  # the work itself failed, as when the disk is full
                raise BuildError(
                    f"expected the workers of {address} to finish the shards, found one that took several of them"
                    f" down, or the connection lost ({type(error).__name__}): look at the workers' logs and"
                    " memory, then run the same build again, it goes on where it stopped"
                ) from error
            missing -= result is not None
            yield result
    finally:
        client.cancel(list(running))
        client.close()


def connect(address: str) -> Any:
    """A client of the Dask scheduler at this address. Raises OptionError where there is none."""
    try:
        from dask.distributed import Client
    except ImportError as error:
        raise OptionError(
            "expected the package distributed for --scheduler, found it is not installed: run"
            " \"pip install 'logpose[cluster]'\", or leave out --scheduler"
        ) from error
    try:
        return Client(address, timeout=10, set_as_default=False)
    except (OSError, ValueError) as error:
        raise OptionError(
            f"expected a Dask scheduler at {address}, found none ({error}): start one with"
            " 'dask scheduler', or leave out --scheduler"
        ) from error


class _Watch:
    """How many threads a cluster has, asked once a second."""

    def __init__(self, client: Any, address: str) -> None:
        self._client = client
        self._address = address
        self._threads = 0
        self._asked = 0.0
        self._alive = time.monotonic()

    def threads(self) -> int:
        """Threads of all workers. Raises BuildError where there has been none for PATIENCE_SECONDS."""
        now = time.monotonic()
        if now - self._asked >= 1.0:
            self._asked = now
            self._threads = self._count()
        if self._threads:
            self._alive = now
        elif now - self._alive > PATIENCE_SECONDS:
            raise BuildError(
                f"expected workers at {self._address}, found none for {PATIENCE_SECONDS:.0f} s: start some with"
                f" 'dask worker {self._address}' and run the same build again, it goes on where it stopped"
            )
        return self._threads

    def _count(self) -> int:
        if self._client.status != "running":
            return 0
        try:
            return sum(self._client.nthreads().values())
        except (OSError, RuntimeError, ValueError):  # it went away while we asked
            return 0


def _next(finished: queue.SimpleQueue[ShardResult | BaseException]) -> ShardResult | None:
    """The next result, or None when it is time to look up. Raises what a task raised."""
    try:
        result = finished.get(timeout=POLL_SECONDS)
    except queue.Empty:
        return None
    if isinstance(result, BaseException):
        raise result
    return result
