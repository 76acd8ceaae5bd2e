"""Thread teams: fork-join execution of a kernel, one fixed slice of the work for each thread.

A kernel is a function `(t, threads, ...)` that computes slice t of `threads` and releases the GIL: compiled with
`kernel` below, or calling BLAS through NumPy. Numba's `parallel=True` would do the same, but compiles four times as
long, since it optimises the loop again in each of its wrappers.

Results are the same bits for any number of threads. A long sum is therefore divided not by the threads but into
*portions*, whose number depends on the shapes alone (`portion_count`): each thread sums up a run of portions, and the
partial sums are added in order.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from queue import SimpleQueue
from typing import Any

from cnn.backends.cpu.widths import by_lanes
from logpose.common.kernels import cached_njit

# Compiles a kernel and caches it on disk.
kernel = by_lanes(lambda lanes: cached_njit(variant=f"-{lanes}", nogil=True, error_model="numpy"))

# A kernel, its arguments, the lock that is released when it is done, and where its error goes.
_Task = tuple[Callable[..., Any], tuple[Any, ...], Any, list[BaseException]]

_MIN_PARALLEL_SIZE = 1 << 16  # elements; a smaller array does not amortise waking a thread
_listing = threading.local()  # `note`: what this thread calls instead of kernels
_PORTIONS = ((1 << 19, 24), (1 << 18, 8), (1 << 17, 4), (_MIN_PARALLEL_SIZE, 2))  # 24: shared by 2, 3, 4, 6, 8 threads


class Team:
    """`threads` threads, the caller's included. The others sleep until there is work."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._queues: list[SimpleQueue[_Task]] = [SimpleQueue() for _ in range(1, threads)]
        for t, tasks in enumerate(self._queues, start=1):
            threading.Thread(target=self._serve, args=(t, tasks), name=f"kernels-{t}", daemon=True).start()

    def run(self, kernel: Callable[..., Any], *arguments: Any) -> None:
        """Run `kernel(t, threads, *arguments)` for every t in parallel; return when all are done.

        Raises what the kernel raised on any thread.
        """
        if (note := getattr(_listing, "note", None)) is not None:
            note(kernel, (0, self.threads, *arguments))
            return
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

    def for_size(self, size: int) -> "Team":
        """This team, or a single-threaded one if `size` elements are too few to amortise waking a thread."""
        return self if size >= _MIN_PARALLEL_SIZE else get_team(1)

    def _serve(self, t: int, tasks: SimpleQueue[_Task]) -> None:
        while True:
            kernel, arguments, done, errors = tasks.get()
            try:
                kernel(t, self.threads, *arguments)
            except BaseException as error:  # raised again by `run`
                errors.append(error)
            del kernel, arguments  # release large arrays before sleeping
            done.release()


@contextmanager
def listing(note: Callable[[Callable[..., Any], tuple[Any, ...]], None]) -> Iterator[None]:
    """Call `note` with each kernel that this thread would run, and its arguments, instead of running it."""
    _listing.note = note
    try:
        yield
    finally:
        del _listing.note


def portion_count(size: int) -> int:
    """The number of partial sums of an array of `size` elements."""
    return next((count for least, count in _PORTIONS if size >= least), 1)


@cache
def get_team(threads: int) -> Team:
    """The team of `threads` threads; backends share it, since even a sleeping thread costs memory."""
    return Team(threads)
