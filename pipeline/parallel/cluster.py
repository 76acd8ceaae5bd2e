"""Tasks on a Dask cluster: handing them out, collecting what comes of them, and knowing when to give up."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from pipeline.errors import BuildError, OptionError

PATIENCE_SECONDS = 30.0  # how long a cluster may be without any worker, as when one is being started again
TASKS_PER_THREAD = 2  # on a cluster at a time: one to work on, one to go on with
ASK_SECONDS = 1.0  # how often a cluster is asked for its workers
COLLECT_SECONDS = 10.0  # how long leaving waits for a result that is just on its way here

GO_ON = "run the same command again, it goes on where it stopped"


class Cluster:
    """Tasks on the workers of a cluster. Results, and the errors that tasks end with, are put into `finished`.

    Only so many tasks should be handed out at a time as keep all workers busy: see `has_room`. A worker that
    vanishes has its tasks done by another. A result is dropped by the cluster once it is here. Raises
    OptionError where there is no scheduler at this address.
    """

    def __init__(self, address: str, finished: queue.SimpleQueue[Any]) -> None:
        self._address = address
        self._finished = finished
        self._client = connect(address)
        self._watch = _Watch(self._client, address)
        self._running: set[Any] = set()
        self._collecting = threading.Lock()
        self._closed = False

    def threads(self) -> int:
        """Threads of all workers. Raises BuildError where there has been none for PATIENCE_SECONDS, or where the
        connection is lost.
        """
        return self._watch.threads()

    def has_room(self) -> bool:
        """Whether another task would keep somebody busy. Raises what `threads` raises; to be asked all the time,
        also when there is nothing to hand out: who waits for workers that are gone would wait for ever.
        """
        return len(self._running) < TASKS_PER_THREAD * self.threads()

    def submit(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Hand out one task. The function must be importable on the workers; arguments and result travel.

        Raises BuildError where the connection is lost.
        """
        self._watch.check_connection()
        future = self._client.submit(function, *arguments, pure=False)
        self._running.add(future)
        future.add_done_callback(self._collect)

    def close(self) -> None:
        """Cancel what has not begun, and leave. A task under way ends on its worker, unheard."""
        self._closed = True
        if self._client.status == "running":  # a lost connection has nothing to cancel any more
            self._client.cancel(list(self._running))
        # Dask would leave a thread waiting for ever whose client is closed while it fetches a result.
        if self._collecting.acquire(timeout=COLLECT_SECONDS):
            self._collecting.release()
        self._client.close()

    def _collect(self, future: Any) -> None:
        """Fetch the result, in a thread of Dask's, so that the caller finds it here."""
        with self._collecting:
            if self._closed:
                return
            try:
                outcome = future.result()
            except BaseException as error:  # into the caller's thread, whatever it is
                outcome = self._explained(error)
            future.release()
            self._running.discard(future)
            self._finished.put(outcome)

    def _explained(self, error: BaseException) -> BaseException:
        """The task's own error, or for one of Dask's what a person can do about it."""
        if type(error).__module__.split(".")[0] != "distributed":
            return error
        explained = BuildError(
            f"expected the workers of {self._address} to finish their tasks, found one that took several of them"
            f" down, or the connection lost ({type(error).__name__}): look at the workers' logs and memory, then"
            f" {GO_ON}"
        )
        explained.__cause__ = error
        return explained


def connect(address: str) -> Any:
    """A client of the Dask scheduler at this address. Raises OptionError where there is none."""
    try:
        from dask.distributed import Client
    except ImportError as error:
        raise OptionError(
            "expected the package distributed for --scheduler, found it is not installed: run"
            " \"pip install 'dask[distributed]'\", or leave out --scheduler"
        ) from error
    for name in ("distributed", "distributed.client"):  # of a lost connection we tell in one line
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        return Client(address, timeout=10, set_as_default=False)
    except (OSError, ValueError) as error:
        raise OptionError(
            f"expected a Dask scheduler at {address}, found none ({error}): start one with"
            " 'dask scheduler', or leave out --scheduler"
        ) from error


class _Watch:
    """How many threads a cluster has, asked once in ASK_SECONDS."""

    def __init__(self, client: Any, address: str) -> None:
        self._client = client
        self._address = address
        self._threads = 0
        self._asked = 0.0
        self._deserted: float | None = None  # since when there is nobody, as far as we asked

    def threads(self) -> int:
        """Threads of all workers. Raises BuildError where there has been none for PATIENCE_SECONDS, or where the
        connection is lost.
        """
        self.check_connection()
        now = time.monotonic()
        if now - self._asked >= ASK_SECONDS:
            self._asked = now
            self._threads = self._count()
        if self._threads:
            self._deserted = None
        elif self._deserted is None:
            self._deserted = now
        elif now - self._deserted > PATIENCE_SECONDS:
            raise BuildError(
                f"expected workers at {self._address}, found none for {PATIENCE_SECONDS:.0f} s: start some with"
                f" 'dask worker {self._address}' and {GO_ON}"
            )
        return self._threads

    def check_connection(self) -> None:
        """Raises BuildError where the connection is lost; Dask may find it again, but has given up our tasks."""
        if self._client.status != "running":
            raise BuildError(
                f"expected the Dask scheduler at {self._address} to stay there, found the connection lost: see"
                f" whether it still runs, start it again if not, and {GO_ON}"
            )

    def _count(self) -> int:
        try:
            return sum(self._client.nthreads().values())
        except (OSError, RuntimeError, ValueError):  # it went away while we asked
            return 0
