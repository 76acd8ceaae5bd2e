"""The Dask cluster of a training: started here for `--ranks`, or found at an address for `--scheduler`."""

from __future__ import annotations

import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import closing, contextmanager, suppress
from multiprocessing import resource_tracker
from pkgutil import resolve_name
from typing import Any, TypeVar

import dask
from distributed import Client, Nanny, Scheduler, SpecCluster
from distributed.utils import LoopRunner

from jobs.console.interrupts import DeferredInterrupt
from jobs.errors import JobError, WorkFailedError
from logpose.common.cpus import available_cpus
from logpose.common.errors import LogposeError
from pipeline.parallel.cluster import connect

R = TypeVar("R")

POLL_SECONDS = 0.5  # between requests for the list of workers
ANSWER_SECONDS = 0.1  # between looks whether a worker that has not answered yet is still there
RESUME = "run the same command again with --resume"


class WorkerLostError(Exception):
    """A worker does not answer."""


class Task:
    """A task on a worker. Its result is fetched once."""

    def __init__(self, cluster: RankCluster, worker: str, future: Any) -> None:
        self.future, self._cluster, self._worker = future, cluster, worker
        self._request: Future[Any] | None = None

    def done(self) -> bool:
        """Whether it has ended; also where it failed."""
        return bool(self.future.done())

    @property
    def has_failed(self) -> bool:
        """Whether it ended without a result."""
        return self.done() and self.future.status != "finished"

    def result(self) -> Any:
        """Return the result. Raises what the task raises, and WorkerLostError where the worker took it with it."""
        if self._request is None:
            self._request = _in_thread(self.future.result)
        self._cluster.wait(self._worker, self._request)
        return self._request.result()


class RankCluster:
    """A connection to a Dask cluster, whose tasks are bound to workers."""

    def __init__(self, client: Any, name: str) -> None:
        self._client, self.name = client, name
        self._workers: dict[str, int] = {}
        self._polled_at = 0.0

    @property
    def dashboard(self) -> str:
        """Address of the cluster's dashboard; empty without one."""
        from importlib.util import find_spec

        return str(self._client.dashboard_link) if find_spec("bokeh") else ""

    def workers(self, fresh: bool = False) -> dict[str, int]:
        """Threads of each worker, by address, polled at most once per POLL_SECONDS unless `fresh`.

        Raises WorkFailedError where the connection to the scheduler is lost.
        """
        if self._client.status != "running":
            raise WorkFailedError(
                f"expected a connection to the Dask scheduler at {self.name}, found the connection lost: check that it"
                f" is running, and {RESUME}"
            )
        if fresh or time.monotonic() - self._polled_at >= POLL_SECONDS:
            self._polled_at = time.monotonic()
            try:
                self._workers = dict(self._client.nthreads())
            except (OSError, RuntimeError, ValueError):  # the connection was lost during the request
                self._workers = {}
        return self._workers

    def ask(self, worker: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a coroutine function of `worker.py` on a worker. Raises WorkerLostError, and what it raises of ours."""
        return self._answer(worker, self._request(worker, function, *arguments))

    def without_package(self, workers: list[str], module: str) -> dict[str, Exception]:
        """Have workers import a module of ours; return the JobErrors and WorkerLostErrors of those that do not.

        A task that cannot be imported would make a worker break its connection, and come back, again and again.
        """
        requests = {worker: self._request(worker, resolve_name, f"{module}:__name__") for worker in workers}
        errors: dict[str, Exception] = {}
        for worker, request in requests.items():
            try:
                self._answer(worker, request)
            except WorkerLostError as lost:
                errors[worker] = lost
                if isinstance(lost.__cause__, ImportError):
                    errors[worker] = JobError(
                        f"expected logpose, the same version as here, on all workers, found: {lost.__cause__};"
                        " install it"
                    )
        return errors

    def tell(self, workers: list[str], function: Callable[..., Any], *arguments: Any) -> None:
        """Call a coroutine function on workers at a time; those that are gone are left out."""
        alive = self.workers(fresh=True)
        requests = {worker: self._request(worker, function, *arguments) for worker in workers if worker in alive}
        for worker, request in requests.items():
            with suppress(WorkerLostError):
                self._answer(worker, request)

    def wait(self, worker: str, request: Future[Any]) -> None:
        """Wait for something from a worker. Raises WorkerLostError where it will not come."""
        while not wait([request], ANSWER_SECONDS).done:
            if worker not in self.workers():
                raise WorkerLostError(worker)

    def _request(self, worker: str, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Call a function on a worker."""
        return _in_thread(lambda: self._client.run(function, *arguments, workers=[worker])[worker])

    def _answer(self, worker: str, request: Future[Any]) -> Any:
        self.wait(worker, request)
        try:
            return request.result()
        except LogposeError:
            raise
        except Exception as error:  # Dask raises many kinds for a worker that is gone, or about to go
            raise WorkerLostError(worker) from error

    def submit(self, key: str, worker: str, function: Callable[..., R], *arguments: Any) -> Task:
        """Start a task on one worker; no other one may run it."""
        future = self._client.submit(
            function, *arguments, key=key, workers=[worker], allow_other_workers=False, pure=False, retries=0
        )
        return Task(self, worker, future)

    def cancel(self, tasks: list[Task]) -> None:
        """Give up tasks; running ones finish."""
        if tasks and self._client.status == "running":
            self._client.cancel([task.future for task in tasks], force=True)


def _in_thread(call: Callable[[], R]) -> Future[R]:
    """Call a function in a thread: Dask takes half a minute to give up a worker that is gone, or waits for ever."""
    request: Future[R] = Future()

    def run() -> None:
        try:
            request.set_result(call())
        except BaseException as error:
            request.set_exception(error)

    threading.Thread(target=run, name="logpose-request", daemon=True).start()
    return request


@contextmanager
def existing_cluster(address: str) -> Iterator[RankCluster]:
    """Connect to a scheduler. Raises OptionError if there is none."""
    with closing(connect(address)) as client:
        yield RankCluster(client, address)


@contextmanager
def local_cluster(ranks: int, threads: int | None, gpus: int) -> Iterator[RankCluster]:
    """Start a cluster of processes on this machine, which share its CPUs, and its GPUs if there are any."""
    for name in ("distributed", "distributed.nanny", "distributed.scheduler", "distributed.client"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    options = {"nthreads": threads or max(1, available_cpus() // ranks), "memory_limit": None, "silence_logs": 50}
    workers = {}
    for rank in range(ranks):
        env = {"env": {"CUDA_VISIBLE_DEVICES": _cards(rank, gpus)}} if gpus else {}
        workers[rank] = {"cls": Nanny, "options": options | env}
    scheduler = {"cls": Scheduler, "options": {"host": "127.0.0.1", "dashboard": True, "dashboard_address": ":0"}}
    # Dask gives a worker that it starts again this long; on a busy machine it needs more than the default of 15 s.
    # Its profiler looks at all threads a hundred times a second.
    settings = dask.config.set(
        {"distributed.deploy.lost-worker-timeout": "1 day", "distributed.worker.profile.enabled": False}
    )
    starting = DeferredInterrupt()  # Dask's start cannot be interrupted without leaving processes behind
    with settings, _script_hidden(), _loop_without_interrupts() as loop:
        with starting:
            cluster = SpecCluster(workers, scheduler, loop=loop, silence_logs=50)
            client = Client(cluster, set_as_default=False)
        try:
            if starting.requested:
                raise KeyboardInterrupt
            yield RankCluster(client, "this machine")
        finally:
            with DeferredInterrupt():
                client.close()
                cluster.close()


@contextmanager
def _loop_without_interrupts() -> Iterator[Any]:
    """A running event loop. The processes that are started in it do not get Ctrl-C, which a terminal sends to all.

    They inherit that from its thread. Python's resource tracker, a process, must be there before: the thread that
    starts it gets Ctrl-C again.
    """
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        runner = LoopRunner()
        runner.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        yield runner.loop
    finally:
        runner.stop()


@contextmanager
def _script_hidden() -> Iterator[None]:
    """Keep new processes from running the user's script again, which would train in each: ranks need nothing of it."""
    main = sys.modules["__main__"]
    spec, file = main.__spec__, vars(main).pop("__file__", None)
    main.__spec__ = None
    try:
        yield
    finally:
        main.__spec__ = spec
        if file:
            main.__file__ = file


def _cards(rank: int, gpus: int) -> str:
    """The cards that a rank sees, its own first, as dask-cuda sets them."""
    return ",".join(str((rank + offset) % gpus) for offset in range(gpus))
