"""Windows of images, filled ahead of the consumer by threads.

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
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.dataset.shard_format import ReadSeconds
from pipeline.dataset.store import Split
from pipeline.loader.epoch_order import EpochOrder, Indices, Window

PAGE = 4096

Pixels = npt.NDArray[np.uint8]
_Chunk = tuple[tuple[int, int], Indices]  # rows, and their places in the window


class StreamTimes(NamedTuple):
    """Seconds that a stream took so far.

    wait    in which the consumer waited for a batch
    read    getting bytes from files,
    decode  making pixels of them, checksums included, and
    copy    putting rows in their order: these three summed over the readers, while the consumer did other things
    """

    wait: float = 0.0
    read: float = 0.0
    decode: float = 0.0
    copy: float = 0.0

    def since(self, before: StreamTimes) -> StreamTimes:
        """What was added to an earlier reading."""
        return StreamTimes(*(now - then for now, then in zip(self, before, strict=True)))


class Clock:
    """Adds up where the time goes, from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.times = StreamTimes()

    def add(self, times: StreamTimes) -> None:
        with self._lock:
            self.times = StreamTimes(*(was + more for was, more in zip(self.times, times, strict=True)))


@dataclass
class Buffers:
    """What one running epoch holds."""

    windows: tuple[Pixels, ...]  # each (window rows, H, W, 3)
    batch: Pixels  # (batch size, H, W, 3), for a batch that begins in one window and ends in another
    scratch: tuple[Pixels, ...]  # each (chunk rows, H, W, 3), a reading thread's own


def aligned(shape: tuple[int, ...]) -> Pixels:
    """An array like np.empty's that begins with a page.

    NumPy's large arrays begin 16 bytes after. Files are copied from pages; where the destination is a few bytes
    further into its page than the source, the processor takes each load for one that must wait for the store before
    (4K aliasing), and copies half as fast.
    """
    size = prod(shape)
    memory = np.empty(size + PAGE, np.uint8)
    start = -memory.ctypes.data % PAGE
    return memory[start : start + size].reshape(shape)


class ChunkCache:
    """All pixels of a part, each chunk read when it is wanted first. Safe to use from many threads."""

    def __init__(self, part: Split) -> None:
        self._part = part
        self._pixels = aligned((part.rows, *part.size, 3))  # (N, H, W, 3); takes memory as it fills
        self._read = np.zeros(-(-part.rows // part.chunk_rows), bool)  # (chunks,)

    def chunk(self, start: int, stop: int) -> tuple[Pixels, ReadSeconds]:
        """The rows of one chunk, and what it took to read them."""
        pixels, chunk = self._pixels[start:stop], start // self._part.chunk_rows  # (n, H, W, 3)
        if self._read[chunk]:
            return pixels, ReadSeconds(0.0, 0.0)
        seconds = self._part.read_into(pixels, start, stop)
        self._read[chunk] = True
        return pixels, seconds


class Reader:
    """Fills windows in a thread of its own, with the help of others that read their chunks.

    Two queues pass the buffers round: `free` to the reader, `filled` to the consumer. Whatever goes
    wrong in the reader ends up in `filled` too, so that the consumer cannot wait for nothing, and in `error`, so that
    it hears of it before it has used up the windows that came before.
    """

    def __init__(
        self, part: Split, plan: EpochOrder, first: int, buffers: Buffers, kept: ChunkCache | None, clock: Clock
    ) -> None:
        self._part = part
        self._plan = plan
        self._scratch = buffers.scratch
        self._kept = kept
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
        self._free.put(pixels)

    def close(self) -> None:
        """End the thread, at the latest after the chunks it is reading."""
        self._closed.set()
        self._free.put(None)
        # The garbage collector may close a dropped iterator in any thread, even in the reader's own.
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self, first: int) -> None:
        try:
            # Not Dask's scheduler: its 0.1 ms a task and more, in Python, are as much as reading a chunk takes.
            with ThreadPoolExecutor(len(self._scratch), thread_name_prefix="logpose-read") as pool:
                for index in range(first, self._plan.windows):
                    window = self._plan.window(index)  # before there is room for it: that takes a while too
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
        """Read chunks into pixels (window rows, H, W, 3) as long as there are some that no other thread has taken."""
        read = decode = copy = 0.0
        while not self._closed.is_set():
            try:
                (start, stop), places = todo.popleft()
            except IndexError:
                break
            try:
                seconds, copied = self._read_chunk(start, stop, places, pixels, scratch[: stop - start])
            except BaseException:
                todo.clear()  # the others may stop
                raise
            read, decode, copy = read + seconds.read, decode + seconds.decode, copy + copied
        self._clock.add(StreamTimes(read=read, decode=decode, copy=copy))

    def _read_chunk(
        self, start: int, stop: int, places: Indices, pixels: Pixels, scratch: Pixels
    ) -> tuple[ReadSeconds, float]:
        """Rows start..stop-1 to their places; returns what that took, the last being the seconds of placing them."""
        if self._kept is not None:
            scratch, seconds = self._kept.chunk(start, stop)
        elif self._plan.shuffle:
            seconds = self._part.read_into(scratch, start, stop)
        else:  # in place
            return self._part.read_into(pixels[places[0] : places[-1] + 1], start, stop), 0.0
        began = time.perf_counter()
        pixels[places] = scratch
        return seconds, time.perf_counter() - began
