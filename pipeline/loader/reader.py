"""Read windows of images ahead of the consumer, by Dask tasks of several chunks each.

    disk ──tasks, chunk by chunk──▶ scratch ──rows to their places──▶ window ──queue──▶ consumer
"""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from math import prod
from typing import Any, NamedTuple, TypeAlias, cast

import dask.threaded
import numpy as np
import numpy.typing as npt

from pipeline.dataset.shard_format import ReadSeconds
from pipeline.dataset.store import Split
from pipeline.loader.epoch_order import Indices, Lane, Window

PAGE_BYTES = 4096
_ROUNDS = (0.6, 0.9, 1.0)  # fractions of the pieces that are done after each round of tasks
_LOCKS = 64
_THREADS = "logpose-read"  # begins the names of all threads here

Pixels: TypeAlias = npt.NDArray[np.uint8]
FilledWindow: TypeAlias = tuple[Window, Pixels]  # its pixels: (window rows, H, W, 3)
_Filled: TypeAlias = queue.SimpleQueue[FilledWindow | BaseException]


class StreamTimes(NamedTuple):
    """Seconds spent by a stream so far.

    wait    by the consumer, waiting for a batch
    read    by all reading threads together, reading bytes from files
    decode  by the same, decoding them, checksums included
    copy    by the same, copying rows to their places
    """

    wait: float = 0.0
    read: float = 0.0
    decode: float = 0.0
    copy: float = 0.0

    def since(self, before: StreamTimes) -> StreamTimes:
        """The seconds added since an earlier value."""
        return StreamTimes(*(now - then for now, then in zip(self, before, strict=True)))


class StreamClock:
    """Thread-safe sum of StreamTimes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.times = StreamTimes()

    def add(self, times: StreamTimes) -> None:
        """Add these seconds."""
        with self._lock:
            self.times = StreamTimes(*(total + more for total, more in zip(self.times, times, strict=True)))


@dataclass
class Buffers:
    """The memory of a running epoch."""

    windows: tuple[Pixels, ...]  # each (window rows, H, W, 3)
    batch: Pixels  # (rows of a batch, H, W, 3), for micro-batches that span two windows
    scratch: tuple[Pixels, ...]  # each (chunk rows, H, W, 3), one per reading thread; none: nothing is read


def page_aligned(shape: tuple[int, ...]) -> Pixels:
    """An uninitialised array that begins at a page boundary.

    Large arrays of NumPy begin 16 bytes after one. Copying from the page cache to there is half as fast: the processor
    mistakes each load for one that depends on the store before it (4K aliasing).
    """
    size = prod(shape)
    if size > sys.maxsize - PAGE_BYTES:  # NumPy calls it a ValueError
        raise MemoryError(f"an array of {size:,} bytes")
    memory = np.empty(size + PAGE_BYTES, np.uint8)
    start = -memory.ctypes.data % PAGE_BYTES
    return memory[start : start + size].reshape(shape)


class ChunkCache:
    """All pixels of a split, each chunk read when it is first needed. Thread-safe."""

    def __init__(self, split: Split) -> None:
        self._split = split
        self._pixels = page_aligned((split.rows, *split.size, 3))  # (N, H, W, 3); takes memory as it fills
        self._read = np.zeros(split.chunks, bool)  # (chunks,)
        self._locks = tuple(threading.Lock() for _ in range(_LOCKS))  # two lanes may need a chunk at a time

    @property
    def complete(self) -> bool:
        """Whether all chunks have been read."""
        return bool(self._read.all())

    def chunk(self, start: int, stop: int) -> tuple[Pixels, ReadSeconds]:
        """The rows start..stop-1 of one whole chunk, (n, H, W, 3), and the time it took to read them."""
        pixels, chunk = self._pixels[start:stop], start // self._split.chunk_rows  # (n, H, W, 3)
        with self._locks[chunk % _LOCKS]:
            if self._read[chunk]:
                return pixels, ReadSeconds(0.0, 0.0)
            seconds = self._split.read_into(pixels, start, stop)
            self._read[chunk] = True
        return pixels, seconds


class Source:
    """What the tasks read from: a split or its cache, with a scratch buffer for each task that runs."""

    def __init__(self, split: Split, shuffle: bool, scratch: Sequence[Pixels], cache: ChunkCache | None) -> None:
        self._split, self._shuffle, self._cache = split, shuffle, cache
        self._scratch: queue.SimpleQueue[Pixels] = queue.SimpleQueue()
        for buffer in scratch:
            self._scratch.put(buffer)
        self.closed = threading.Event()  # tasks stop before their next chunk

    def fill(self, pieces: Sequence[Piece]) -> StreamTimes:
        """Read pieces of windows; the seconds that it took. This is what a Dask task does."""
        scratch = self._scratch.get()  # (chunk rows, H, W, 3); there are as many as threads
        read = decode = copy = 0.0
        try:
            for piece in pieces:
                if self.closed.is_set():
                    break
                seconds, copied = self._fill_piece(piece, scratch)
                read, decode, copy = read + seconds.read, decode + seconds.decode, copy + copied
        except BaseException:
            self.closed.set()  # stops the other tasks
            raise
        finally:
            self._scratch.put(scratch)
        return StreamTimes(read=read, decode=decode, copy=copy)

    def _fill_piece(self, piece: Piece, scratch: Pixels) -> tuple[ReadSeconds, float]:
        """Put the rows of a piece in their places; returns the seconds of reading, and those of copying."""
        start, stop, places, pixels = piece
        first = start - start % self._split.chunk_rows
        last = min(first + self._split.chunk_rows, self._split.rows)
        if self._cache is not None:
            scratch, seconds = self._cache.chunk(first, last)
        elif self._shuffle or (start, stop) != (first, last):
            seconds = self._split.read_into(scratch[: last - first], first, last)
        else:  # stored order: read in place
            return self._split.read_into(pixels[places[0] : places[-1] + 1], start, stop), 0.0
        began = time.perf_counter()
        pixels[places] = scratch[start - first : stop - first]
        return seconds, time.perf_counter() - began


class Piece(NamedTuple):
    """The rows of one chunk, or a part of them, that go to a window.

    start, stop  row numbers of the split, within one chunk
    places       (stop - start,): the place in the window of each row
    pixels       (window rows, H, W, 3) of the window
    """

    start: int
    stop: int
    places: Indices
    pixels: Pixels


def portion_ends(pieces: int, workers: int) -> list[int]:
    """Divide pieces 0..pieces-1 into tasks for a number of threads; returns the end of each task's range.

    A few tasks for each thread, the last ones small: so they end at about the same time.
    """
    ends, begin = [], 0
    for fraction in _ROUNDS:
        left = round(pieces * fraction) - begin
        ends += [begin + left * (worker + 1) // workers for worker in range(workers)]
        begin += left
    return sorted(set(ends) - {0})


class Filling:
    """Windows that are filled together; each goes to the queue `filled` once it and those before it are complete."""

    def __init__(self, windows: Sequence[FilledWindow], filled: _Filled) -> None:
        self.pieces = [
            Piece(start, stop, places, pixels)
            for window, pixels in windows
            for (start, stop), places in zip(window.chunks, window.places, strict=True)
        ]
        self._windows, self._filled = deque(windows), filled
        self._ends = deque(accumulate(len(window.chunks) for window, _ in windows))  # pieces up to that of each window
        self._lock = threading.Lock()
        self._finished: dict[int, int] = {}  # begin -> end of the ranges of pieces that are done, from the first gap on
        self._done = 0  # pieces before the first gap

    def finish(self, begin: int, end: int) -> None:
        """Note that pieces begin..end-1 are done."""
        with self._lock:
            self._finished[begin] = end
            while self._done in self._finished:
                self._done = self._finished.pop(self._done)
            while self._ends and self._ends[0] <= self._done:
                self._ends.popleft()
                self._filled.put(self._windows.popleft())


class WindowReader:
    """Reader of windows, by Dask tasks on threads: one per scratch buffer.

    needed  lane and number of each window, in the order in which the consumer takes them

    Two queues pass the buffers back and forth: `free` to the reader, `filled` to the consumer. Exceptions are put on
    `filled`, so the consumer never blocks forever, and stored in `error`, so it sees them before it has used up
    earlier windows.
    """

    def __init__(
        self, source: Source, needed: Sequence[tuple[Lane, int]], buffers: Buffers, clock: StreamClock
    ) -> None:
        self._source = source
        self._needed = deque(needed)
        self._buffers = len(buffers.windows)
        self._workers = max(1, len(buffers.scratch))
        self._reads = bool(buffers.scratch)
        self._clock = clock
        self.error: BaseException | None = None
        self._free: queue.SimpleQueue[Pixels | None] = queue.SimpleQueue()
        self._filled: queue.SimpleQueue[FilledWindow | BaseException] = queue.SimpleQueue()
        for pixels in buffers.windows:
            self._free.put(pixels)
        self._thread = threading.Thread(target=self._run, name=f"{_THREADS}er", daemon=True)
        self._thread.start()

    def next(self) -> FilledWindow:
        """The next window and its pixels (window rows, H, W, 3). Raises what the reader raised."""
        item = self._filled.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def release(self, pixels: Pixels) -> None:
        """Return the pixels of a window, to be filled again."""
        self._free.put(pixels)

    def close(self) -> bool:
        """End the threads, after the chunks that they are reading; returns whether they are known to have ended."""
        self._source.closed.set()
        self._free.put(None)
        # The garbage collector may close a dropped iterator in any thread, even in one of the reader's, which would
        # wait for itself.
        if threading.current_thread().name.startswith(_THREADS):
            return False
        self._thread.join()
        return True

    def _run(self) -> None:
        try:
            with ThreadPoolExecutor(self._workers, thread_name_prefix=_THREADS) as pool:
                planned = deque(self._plan(1))
                while planned:
                    windows = [(planned.popleft(), pixels) for pixels in self._free_buffers(len(planned))]
                    if not windows:
                        return
                    planned += self._compute(self._buffers - len(planned), windows, pool)
        except BaseException as error:
            self.error = error
            self._filled.put(error)

    def _free_buffers(self, most: int) -> list[Pixels]:
        """Wait for a free buffer; returns as many as there are, up to `most`, and none after `close`."""
        found = [self._free.get()]
        with suppress(queue.Empty):
            while len(found) < most:
                found.append(self._free.get_nowait())
        pixels = [buffer for buffer in found if buffer is not None]
        return pixels if len(pixels) == len(found) else []

    def _plan(self, count: int) -> list[Window]:
        """Plan the next windows. A Dask task."""
        needed = [self._needed.popleft() for _ in range(min(count, len(self._needed)))]
        return [lane.window(index) for lane, index in needed]

    def _fill(self, filling: Filling, begin: int, end: int) -> StreamTimes:
        """Fill pieces begin..end-1 of the windows. A Dask task."""
        times = self._source.fill(filling.pieces[begin:end])
        if not self._source.closed.is_set():
            filling.finish(begin, end)
        return times

    def _compute(self, count: int, windows: Sequence[FilledWindow], pool: ThreadPoolExecutor) -> Sequence[Window]:
        """With Dask, fill windows, and plan the `count` windows after these meanwhile; returns what is planned."""
        filling = Filling(windows, self._filled)
        if self._reads:
            ends = portion_ends(len(filling.pieces), self._workers)
        else:
            ends = []
            filling.finish(0, len(filling.pieces))
        names = [f"fill-{index:06}" for index in reversed(range(len(ends)))]  # Dask begins with the last name
        graph: dict[str, tuple[Any, ...]] = {"plan": (partial(self._plan, count),)}
        for name, begin, end in zip(names, [0, *ends], ends, strict=False):
            graph[name] = (partial(self._fill, filling, begin, end),)
        planned, *times = dask.threaded.get(graph, list(graph), pool=pool)
        for seconds in times:
            self._clock.add(seconds)
        return cast(Sequence[Window], planned)
