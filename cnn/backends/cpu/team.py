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
from typing import Any

from cnn.backends.base import Array
from cnn.backends.cpu import launching
from cnn.backends.cpu.widths import by_lanes
from logpose.common.kernels import NO_ARRAYS, cached_njit


@by_lanes
def kernel(lanes: int) -> Callable[[Callable[..., Any]], Any]:
    """Compiles a kernel and caches it on disk."""
    compile = cached_njit(variant=f"-{lanes}", nogil=True, error_model="numpy", **NO_ARRAYS)
    return lambda function: launching.compiled_with_launcher(function, compile)


_MIN_PARALLEL_SIZE = 1 << 16  # elements; a smaller array does not amortise waking a thread
_listing = threading.local()  # `note`: what this thread calls instead of kernels
_PORTIONS = ((1 << 19, 24), (1 << 18, 8), (1 << 17, 4), (_MIN_PARALLEL_SIZE, 2))  # 24: shared by 2, 3, 4, 6, 8 threads


class Team:
    """`threads` threads, the caller's included. The others sleep until there is work."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._lock = threading.Lock()  # of the board and of the attributes below: one task at a time
        self._board: Array | None = None
        self._address = 0
        self._task: tuple[Callable[..., Any], tuple[Any, ...]] | None = None  # of Python's
        self._errors: list[BaseException] = []

    def run(self, kernel: Callable[..., Any], *arguments: Any) -> None:
        """Run `kernel(t, threads, *arguments)` for every t in parallel; return when all are done.

        Raises what the kernel raised on any thread.
        """
        if (note := getattr(_listing, "note", None)) is not None:
            note(kernel, (0, self.threads, *arguments))
            for own in launching.OWN_KERNELS if self.threads > 1 else ():
                note(*own)
        elif self.threads == 1:
            kernel(0, 1, *arguments)
        else:
            with self._lock:
                if self._board is None:
                    self._start_threads()
                if hasattr(kernel, "py_func"):
                    kernel(self._address, self.threads, *arguments)
                else:
                    self._run_python(kernel, arguments)

    def for_size(self, size: int) -> "Team":
        """This team, or a single-threaded one if `size` elements are too few to amortise waking a thread."""
        return self if size >= _MIN_PARALLEL_SIZE else get_team(1)

    def _start_threads(self) -> None:
        board = launching.make_board(self.threads)
        self._address = board.ctypes.data
        for t in range(1, self.threads):
            threading.Thread(target=self._serve, args=(t,), name=f"kernels-{t}", daemon=True).start()
        self._board = board

    def _run_python(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        """`run` a function of Python's, which calls BLAS, on the same threads."""
        self._task, self._errors = (function, arguments), []
        try:
            launching.python_task(self._address, self.threads, False)
            function(0, self.threads, *arguments)
        finally:
            launching.python_task(self._address, self.threads, True)
            self._task = None  # release large arrays
        if self._errors:
            raise self._errors[0]

    def _serve(self, t: int) -> None:
        finished = False
        while True:
            launching.serve(self._address, t, finished)
            assert self._task
            try:
                self._task[0](t, self.threads, *self._task[1])
            except BaseException as error:  # raised again by `run`
                self._errors.append(error)
            finished = True


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
