"""Minibatches through reused buffers, prefetched by Dask.

    disk ──Dask, a task per chunk──▶ window A │ window B ──gather──▶ batch buffer ──▶ consumer

While the consumer takes batches out of one window, the reader fills the other. Never more than two
windows and one batch are in memory, however large the part is.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import dask
import numpy as np
import numpy.typing as npt

from pipeline.errors import OptionError
from pipeline.plan import EpochPlan, Indices, Window
from pipeline.store import Part

# Bytes of a window: 64 chunks of 1 MiB mix some thousand small pictures and read in a fraction of a second.
WINDOW_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Batch:
    """One minibatch. The arrays are reused: valid until the next batch is asked for.

    images  uint8 (B, H, W, 3)
    labels  int64 (B,)
    rows    int64 (B,): the rows of the part
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    rows: Indices


@dataclass
class _Buffers:
    """What one running epoch holds: two windows and a batch."""

    windows: tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]  # each (window rows, H, W, 3)
    images: npt.NDArray[np.uint8]  # (batch size, H, W, 3)
    labels: npt.NDArray[np.int64]  # (batch size,)
    rows: Indices  # (batch size,)


class BatchStream:
    """The minibatches of a part, epoch after epoch.

    part        what to read
    batch_size  rows of a batch; the last of an epoch has what is left
    seed        of the shuffling; (seed, epoch number) alone decide the order
    shuffle     False gives the rows in stored order, for evaluation
    workers     threads that read ahead

    `steps` is the number of batches in an epoch, `wait_seconds` how long the consumer has waited for data.
    """

    def __init__(self, part: Part, batch_size: int, *, seed: int, shuffle: bool = True, workers: int = 2) -> None:
        if batch_size < 1:
            raise OptionError(f"expected a batch size of at least 1, found {batch_size}")
        if workers < 1:
            raise OptionError(f"expected at least one worker, found {workers}")
        self.part = part
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.workers = workers
        self.steps = -(-part.rows // batch_size)
        self.wait_seconds = 0.0
        chunk_bytes = part.chunk_rows * part.size[0] * part.size[1] * 3
        chunks = -(-part.rows // part.chunk_rows)
        self._window_chunks = max(1, min(WINDOW_BYTES // chunk_bytes, chunks))
        self._spare: _Buffers | None = None  # left by the last epoch for the next

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, from step `start` on; nothing before it is read.

        Every row comes exactly once an epoch. Raises DatasetError where the data is damaged. Leaving the
        iterator early is fine: its threads end and its buffers are free again when it is closed or dropped.
        """
        if not 0 <= start <= self.steps:
            raise OptionError(f"expected a step within 0..{self.steps} of the epoch, found {start}")
        plan = EpochPlan(self.part.rows, self.part.chunk_rows, self._window_chunks, self.seed, number, self.shuffle)
        return self._batches(plan, start)

    def _batches(self, plan: EpochPlan, start: int) -> Iterator[Batch]:
        if start == self.steps:
            return
        # Two epochs at a time are allowed, as when one was left half-way and lingers: each has its own.
        buffers, self._spare = self._spare or self._allocate(), None
        labels = self.part.labels  # (N,)
        position = start * self.batch_size
        first = plan.window_at(position)
        reader = _Reader(self.part, plan, first, buffers, self.workers)
        try:
            window, pixels = self._next_window(reader)
            taken = position - plan.window_starts[first]  # rows of the window that are gone
            for _ in range(start, self.steps):
                size = min(self.batch_size, plan.part_rows - position)
                filled = 0
                while filled < size:
                    if taken == len(window.rows):
                        reader.release(pixels)
                        window, pixels = self._next_window(reader)
                        taken = 0
                    count = min(size - filled, len(window.rows) - taken)
                    batch, source = slice(filled, filled + count), slice(taken, taken + count)
                    # The indices are right by construction; 'clip' spares NumPy a copy of the result.
                    np.take(pixels, window.order[source], axis=0, out=buffers.images[batch], mode="clip")
                    buffers.rows[batch] = window.rows[source]
                    filled += count
                    taken += count
                np.take(labels, buffers.rows[:size], out=buffers.labels[:size], mode="clip")
                position += size
                yield Batch(buffers.images[:size], buffers.labels[:size], buffers.rows[:size])
        finally:
            reader.close()
            self._spare = buffers

    def _next_window(self, reader: _Reader) -> tuple[Window, npt.NDArray[np.uint8]]:
        began = time.perf_counter()
        try:
            return reader.next()
        finally:
            self.wait_seconds += time.perf_counter() - began

    def _allocate(self) -> _Buffers:
        rows = min(self._window_chunks * self.part.chunk_rows, self.part.rows)
        shape = (*self.part.size, 3)
        return _Buffers(
            windows=(np.empty((rows, *shape), np.uint8), np.empty((rows, *shape), np.uint8)),
            images=np.empty((self.batch_size, *shape), np.uint8),
            labels=np.empty(self.batch_size, np.int64),
            rows=np.empty(self.batch_size, np.int64),
        )


class _Closed(Exception):
    """The consumer has left."""


class _Reader:
    """Fills windows in a thread of its own, whose chunks are read by Dask tasks.

    Two queues pass the buffers round: `free` to the reader, `filled` to the consumer. Whatever goes
    wrong in the reader goes through `filled` too, so that the consumer cannot wait for nothing.
    """

    def __init__(self, part: Part, plan: EpochPlan, first: int, buffers: _Buffers, workers: int) -> None:
        self._part = part
        self._plan = plan
        self._workers = workers
        self._closed = threading.Event()
        self._free: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._filled: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for pixels in buffers.windows:
            self._free.put(pixels)
        self._thread = threading.Thread(target=self._run, args=(first,), name="logpose-reader", daemon=True)
        self._thread.start()

    def next(self) -> tuple[Window, npt.NDArray[np.uint8]]:
        """The next window and its pixels (window rows, H, W, 3). Raises what the reader raised."""
        item = self._filled.get()
        if isinstance(item, BaseException):
            raise item
        window, pixels = item
        return window, pixels

    def release(self, pixels: npt.NDArray[np.uint8]) -> None:
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
            with ThreadPoolExecutor(self._workers, thread_name_prefix="logpose-read") as pool:
                for index in range(first, self._plan.windows):
                    pixels = self._free.get()
                    if self._closed.is_set():
                        return
                    window = self._plan.window(index)
                    self._fill(window, pixels, pool)
                    self._filled.put((window, pixels))
        except BaseException as error:
            self._filled.put(error)

    def _fill(self, window: Window, pixels: npt.NDArray[np.uint8], pool: ThreadPoolExecutor) -> None:
        tasks, place = [], 0
        for start, stop in window.chunks:
            tasks.append(dask.delayed(self._read, pure=False)(pixels[place : place + stop - start], start, stop))
            place += stop - start
        dask.compute(*tasks, scheduler="threads", pool=pool)

    def _read(self, out: npt.NDArray[np.uint8], start: int, stop: int) -> None:
        if self._closed.is_set():
            raise _Closed
        out[:] = self._part.read(start, stop)
