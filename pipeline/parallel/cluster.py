"""Run tasks on a Dask cluster: submit them, collect their results, and detect a lost cluster."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from pipeline.errors import BuildError, OptionError

NO_WORKERS_TIMEOUT = 30.0  # seconds that a cluster may be without any worker, as while one restarts
TASKS_PER_THREAD = 2  # submitted at a time: one to run, one to run next
WORKER_POLL_SECONDS = 1.0  # between requests for the number of workers
CLOSE_TIMEOUT = 10.0  # seconds that closing waits for a result that is being fetched

# Begins what Dask says of a scheduler that lacks a package.
_NOT_UNPICKLED = "Error during deserialization"

RESUME = "run the same command again, it resumes where it stopped"


class Cluster:
    """Tasks on the workers of a Dask cluster. Results, and what tasks raise, are put on `finished`.

    `has_room` tells when to submit another task. Tasks of a lost worker are run again by another. The cluster drops a
    result once it is fetched. Raises OptionError if there is no scheduler at the address.
    """

    def __init__(self, address: str, finished: queue.SimpleQueue[Any]) -> None:
        self._address = address
        self._finished = finished
        self._client = connect(address)
        self._running: set[Any] = set()
        self._collecting = threading.Lock()
        self._closed = False
        self._threads = 0
        self._polled_at = 0.0
        self._without_workers_since: float | None = None

    def threads(self) -> int:
        """Number of threads of all workers, polled at most once per WORKER_POLL_SECONDS.

        Raises BuildError if there has been none for NO_WORKERS_TIMEOUT, or if the connection is lost.
        """
        self._check_connection()
        now = time.monotonic()
        if now - self._polled_at >= WORKER_POLL_SECONDS:
            self._polled_at = now
            try:
                self._threads = sum(self._client.nthreads().values())
            except (OSError, RuntimeError, ValueError):  # the connection was lost during the request
                self._threads = 0
        if self._threads:
            self._without_workers_since = None
        elif self._without_workers_since is None:
            self._without_workers_since = now
        elif now - self._without_workers_since > NO_WORKERS_TIMEOUT:
            raise BuildError(
                f"expected workers at {self._address}, found none for {NO_WORKERS_TIMEOUT:.0f} s: start some with"
                f" 'dask worker {self._address}' and {RESUME}"
            )
        return self._threads

    def has_room(self) -> bool:
        """Whether another task can be submitted. Raises what `threads` raises.

        Poll it even with nothing to submit: polling is what detects a lost cluster. Without any worker there is room as
        for one thread: a cluster that adapts to the work starts workers for waiting tasks.
        """
        return len(self._running) < TASKS_PER_THREAD * max(1, self.threads())

    def submit(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Submit a task. The function must be importable on the workers; arguments and result are pickled.

        Raises BuildError if the connection is lost.
        """
        self._check_connection()
        future = self._client.submit(function, *arguments, pure=False)
        self._running.add(future)
        future.add_done_callback(self._collect)

    def close(self) -> None:
        """Cancel the tasks and disconnect. Running tasks finish on their worker; the results are discarded."""
        self._closed = True
        if self._client.status == "running":
            self._client.cancel(list(self._running))
        # If the client is closed while a thread fetches a result, Dask lets that thread wait forever.
        if self._collecting.acquire(timeout=CLOSE_TIMEOUT):
            self._collecting.release()
        self._client.close()

    def _check_connection(self) -> None:
        """Raise BuildError if the connection is lost. Dask may reconnect, but it has dropped the tasks."""
        if self._client.status != "running":
            raise BuildError(
                f"expected a connection to the Dask scheduler at {self._address}, found the connection lost: check"
                f" that it is running, and {RESUME}"
            )

    def _collect(self, future: Any) -> None:
        """Fetch the result of a finished task; called in a thread of Dask's."""
        with self._collecting:
            if self._closed:
                return
            try:
                outcome = future.result()
            except BaseException as error:  # raised again in the caller's thread
                outcome = self._with_remedy(error)
            future.release()
            self._running.discard(future)
            self._finished.put(outcome)

    def _with_remedy(self, error: BaseException) -> BaseException:
        """The task's own error; for one of Dask's, or of a worker without logpose, a BuildError with a remedy."""
        if isinstance(error, ImportError) or _NOT_UNPICKLED in str(error):
            missing = BuildError(
                f"expected logpose, of the same version, on the scheduler and every worker of {self._address}, found"
                f" {error or type(error).__name__}: install it there, then {RESUME}"
            )
            missing.__cause__ = error
            return missing
        if type(error).__module__.split(".")[0] != "distributed":
            return error
        build_error = BuildError(
            f"expected the workers of {self._address} to finish their tasks, found a task that took several workers"
            f" down, or the connection lost ({type(error).__name__}): check the workers' logs and memory, then {RESUME}"
        )
        build_error.__cause__ = error
        return build_error


def worker_address() -> str:
    """Return the address of the worker that runs this task."""
    from dask.distributed import get_worker

    return str(get_worker().address)


def connect(address: str) -> Any:
    """Connect to the Dask scheduler at an address. Raises OptionError if there is none, or without `distributed`."""
    try:
        from dask.distributed import Client
    except ImportError as error:
        raise OptionError(
            "expected the package distributed for --scheduler, found it is not installed: run"
            " \"pip install 'dask[distributed]'\", or leave out --scheduler"
        ) from error
    for name in ("distributed", "distributed.client"):  # a lost connection is reported by BuildError
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        return Client(address, timeout=10, set_as_default=False)
    except (OSError, ValueError) as error:
        raise OptionError(
            f"expected a Dask scheduler at {address}, found none ({error}): start one with"
            " 'dask scheduler', or leave out --scheduler"
        ) from error
