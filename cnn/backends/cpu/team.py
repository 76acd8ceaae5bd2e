"""Threads that share one kernel: each works on its own fixed share of the numbers.

A kernel is a plain function `(t, threads, ...)` that does share t of `threads` and lets go of Python's lock: one that
`kernel` compiled, or NumPy's products. Numba's own `parallel=True` would do the same, but takes four times as long to
compile, since it optimises the loop again in each of its wrappers.
"""

import threading
from collections.abc import Callable
from functools import cache
from queue import SimpleQueue
from typing import Any

from numba import njit

# Compiles what a team runs, and keeps the result on disk.
kernel = njit(nogil=True, cache=True, error_model="numpy")

# A kernel, what it is given, and the lock that is released when it is done.
_Task = tuple[Callable[..., Any], tuple[Any, ...], Any, list[BaseException]]


_WORTH_SHARING = 1 << 16


class Team:
    """`threads` threads, this one among them. The others sleep until there is work."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._queues: list[SimpleQueue[_Task]] = [SimpleQueue() for _ in range(1, threads)]
        for t, tasks in enumerate(self._queues, start=1):
            threading.Thread(target=self._serve, args=(t, tasks), name=f"kernels-{t}", daemon=True).start()

    def run(self, kernel: Callable[..., Any], *arguments: Any) -> None:
        """`kernel(t, threads, *arguments)` for every t at once; returns when all are done."""
        errors: list[BaseException] = []
        done = [threading.Lock() for _ in self._queues]
        for tasks, lock in zip(self._queues, done, strict=True):
            lock.acquire()
            tasks.put((kernel, arguments, lock, errors))
        try:
            kernel(0, self.threads, *arguments)
        finally:
            for lock in done:
                lock.acquire()
        if errors:
            raise errors[0]

    def for_size(self, numbers: int) -> "Team":
        """This team, or the caller's thread alone where so few numbers are done before another thread is awake."""
        return self if numbers >= _WORTH_SHARING else get_team(1)

    def _serve(self, t: int, tasks: SimpleQueue[_Task]) -> None:
        while True:
            kernel, arguments, done, errors = tasks.get()
            try:
                kernel(t, self.threads, *arguments)
            except BaseException as error:  # whatever it is, it belongs to the caller
                errors.append(error)
            del kernel, arguments  # which may be large
            done.release()


@cache
def get_team(threads: int) -> Team:
    """The team of that size: backends share it, since a thread that sleeps still costs memory."""
    return Team(threads)
