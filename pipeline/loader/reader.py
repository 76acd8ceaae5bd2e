"""Read windows of images ahead of the consumer, in threads.

    disk ──threads, a chunk each──▶ scratch ──each row to its place──▶ window ──queue──▶ consumer
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from pipeline.dataset.shard_format import ReadSeconds
from pipeline.dataset.store import Split
from pipeline.loader.epoch_order import EpochOrder, Indices, Window

PAGE_BYTES = 4096

Pixels: TypeAlias = npt.NDArray[np.uint8]
_Chunk: TypeAlias = tuple[tuple[int, int], Indices]  # (start, stop) of its rows, and their places in the window


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
    batch: Pixels  # (batch size, H, W, 3), for a batch that spans two windows
    scratch: tuple[Pixels, ...]  # each (chunk rows, H, W, 3), one per reading thread; none: nothing is read


def page_aligned(shape: tuple[int, ...]) -> Pixels:
    """An uninitialised array that begins at a page boundary.

    Large arrays of NumPy begin 16 bytes after one. Copying from the page cache to there is half as fast: the processor
    mistakes each load for one that depends on the store before it (4K aliasing).
    """
    size = prod(shape)
    memory = np.empty(size + PAGE_BYTES, np.uint8)
    start = -memory.ctypes.data % PAGE_BYTES
    return memory[start : start + size].reshape(shape)


class ChunkCache:
    """All pixels of a split, each chunk read when it is first needed. Thread-safe."""

    def __init__(self, split: Split) -> None:
        self._split = split
        self._pixels = page_aligned((split.rows, *split.size, 3))  # (N, H, W, 3); takes memory as it fills
        self._read = np.zeros(split.chunks, bool)  # (chunks,)

    def chunk(self, start: int, stop: int) -> tuple[Pixels, ReadSeconds]:
        """The rows start..stop-1 of one chunk, (n, H, W, 3), and the time it took to read them."""
        pixels, chunk = self._pixels[start:stop], start // self._split.chunk_rows  # (n, H, W, 3)
        if self._read[chunk]:
            return pixels, ReadSeconds(0.0, 0.0)
        seconds = self._split.read_into(pixels, start, stop)
        self._read[chunk] = True
        return pixels, seconds


class WindowReader:
    """Reader of the windows of an epoch, from the one numbered `first` on, in threads: one per scratch buffer.

    Two queues pass the buffers back and forth: `free` to the reader, `filled` to the consumer. Exceptions are put on
    `filled`, so the consumer never blocks forever, and stored in `error`, so it sees them before it has used up
    earlier windows.
    """

    def __init__(
        self,
        split: Split,
        order: EpochOrder,
        first: int,
        buffers: Buffers,
        cache: ChunkCache | None,
        clock: StreamClock,
    ) -> None:
        self._split = split
        self._order = order
        self._scratch = buffers.scratch
        self._cache = cache
        self._clock = clock
        self.error: BaseException | None = None
        self._closed = threading.Event()
        self._free: queue.SimpleQueue[Pixels | None] = queue.SimpleQueue()
        self._filled: queue.SimpleQueue[tuple[Window, Pixels] | BaseException] = queue.SimpleQueue()
        for pixels in buffers.windows:
            self._free.put(pixels)
        self._thread = threading.Thread(target=self._run, args=(first,), name="logpose-reader", daemon=True)
        self._thread.start()

    def next(self) -> tuple[Window, Pixels]:
        """The next window and its pixels (window rows, H, W, 3). Raises what the reader raised."""
        item = self._filled.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def release(self, pixels: Pixels) -> None:
        """Return the pixels of a window, to be filled again."""
        self._free.put(pixels)

    def close(self) -> None:
        """End the threads, after the chunks that they are reading."""
        self._closed.set()
        self._free.put(None)
        # The garbage collector may close a dropped iterator in any thread, even in the reader's own.
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self, first: int) -> None:
        try:
            # Not Dask's scheduler: its overhead of 0.1 ms and more per task is as much as reading a chunk takes.
            with ThreadPoolExecutor(max(1, len(self._scratch)), thread_name_prefix="logpose-read") as pool:
                for index in range(first, self._order.windows):
                    window = self._order.window(index)  # before waiting for a free buffer: this takes a while too
                    pixels = self._free.get()
                    if pixels is None:
                        return
                    self._fill(window, pixels, pool)
                    if self._closed.is_set():
                        return
                    self._filled.put((window, pixels))
        except BaseException as error:
            self.error = error
            self._filled.put(error)

    def _fill(self, window: Window, pixels: Pixels, pool: ThreadPoolExecutor) -> None:
        todo: deque[_Chunk] = deque(zip(window.chunks, window.places, strict=True))
        for task in [pool.submit(self._read, todo, pixels, scratch) for scratch in self._scratch[: len(todo)]]:
            task.result()

    def _read(self, todo: deque[_Chunk], pixels: Pixels, scratch: Pixels) -> None:
        """Read chunks from the queue `todo` into pixels (window rows, H, W, 3) until it is empty."""
        read = decode = copy = 0.0
        while not self._closed.is_set():
            try:
                (start, stop), places = todo.popleft()
            except IndexError:
                break
            try:
                seconds, copied = self._read_chunk(start, stop, places, pixels, scratch[: stop - start])
            except BaseException:
                todo.clear()  # stops the other threads
                raise
            read, decode, copy = read + seconds.read, decode + seconds.decode, copy + copied
        self._clock.add(StreamTimes(read=read, decode=decode, copy=copy))

    def _read_chunk(
        self, start: int, stop: int, places: Indices, pixels: Pixels, scratch: Pixels
    ) -> tuple[ReadSeconds, float]:
        """Put rows start..stop-1 in their places (n,); returns the seconds of reading, and those of copying."""
        if self._cache is not None:
            scratch, seconds = self._cache.chunk(start, stop)
        elif self._order.shuffle:
            seconds = self._split.read_into(scratch, start, stop)
        else:  # stored order: read in place
            return self._split.read_into(pixels[places[0] : places[-1] + 1], start, stop), 0.0
        began = time.perf_counter()
        pixels[places] = scratch
        return seconds, time.perf_counter() - began
