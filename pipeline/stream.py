"""Minibatches out of reused buffers, read ahead by threads.

    disk ──threads, a chunk each──▶ scratch ──each row to its place──▶ window A │ window B │ … ──slices──▶ consumer

The rows of a window lie in the order in which they are wanted, so that a batch is a slice of it and nothing is copied
when it is asked for. While the consumer takes batches out of one window, the readers fill the next. Never more than
`depth` windows are in memory, however large the part is. Which rows come when is `plan.py`'s business alone.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.errors import OptionError
from pipeline.plan import EpochPlan, Indices, Window, share, window_chunks
from pipeline.store import Part

DEPTH = 2  # windows in memory: one to take from, one to fill
MOST_DEPTH = 4  # more only wait for their turn

Pixels = npt.NDArray[np.uint8]
_Chunk = tuple[tuple[int, int], Indices]  # rows, and their places in the window


@dataclass(frozen=True)
class Batch:
    """One minibatch, or a rank's share of it. The pixels' memory is reused: valid until the next batch is asked for.

    images       uint8 (B, H, W, 3)
    labels       int64 (B,)
    rows         int64 (B,): the rows of the part
    global_rows  of the whole batch, which the sum of the losses of all ranks is to be divided by
    """

    images: Pixels
    labels: npt.NDArray[np.int64]
    rows: Indices
    global_rows: int


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


@dataclass
class _Buffers:
    """What one running epoch holds."""

    windows: tuple[Pixels, ...]  # each (window rows, H, W, 3)
    batch: Pixels  # (batch size, H, W, 3), for a batch that begins in one window and ends in another
    scratch: tuple[Pixels, ...]  # each (chunk rows, H, W, 3), a reading thread's own


class BatchStream:
    """The minibatches of a part, epoch after epoch.

    part        what to read
    batch_size  rows of a batch; the last of an epoch has what is left
    seed        of the shuffling; (seed, epoch number) alone decide the order
    shuffle     False gives the rows in stored order, for evaluation
    workers     threads that read ahead
    ram_budget  bytes that the stream may take; the more, the further it reads ahead. None: two windows
    rank, world_size  this process takes the rank-th of world_size shares of every batch, which may be empty in the last

    `steps` is the number of batches in an epoch, `depth` how many windows are in memory, `ram_bytes` what the stream
    takes at most. Raises OptionError for arguments that make no sense and for a budget that is too small.
    """

    def __init__(
        self,
        part: Part,
        batch_size: int,
        *,
        seed: int,
        shuffle: bool = True,
        workers: int = 2,
        ram_budget: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1:
            raise OptionError(f"expected a batch size of at least 1, found {batch_size}")
        if workers < 1:
            raise OptionError(f"expected at least one worker, found {workers}")
        if not 0 <= rank < world_size:
            raise OptionError(f"expected a rank within 0..{world_size - 1}, found {rank}")
        self.part = part
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.workers = workers
        self.rank, self.world_size = rank, world_size
        self.steps = -(-part.rows // batch_size)
        self._batch_rows = -(-batch_size // world_size)  # the largest share
        self._window_chunks = window_chunks(part.rows, part.chunk_rows, self._row_bytes, shuffle)
        self.depth = self._depth(ram_budget)
        self._clock = _Clock()
        self._spare: _Buffers | None = None  # left by the last epoch for the next

    @property
    def times(self) -> StreamTimes:
        """Where the time went since the stream was made."""
        return self._clock.times

    @property
    def ram_bytes(self) -> int:
        """Bytes that the stream takes at most, labels and the order of an epoch included."""
        return self._other_bytes + self.depth * self._window_bytes

    @property
    def _row_bytes(self) -> int:
        return self.part.size[0] * self.part.size[1] * 3

    @property
    def _window_rows(self) -> int:
        return min(self._window_chunks * self.part.chunk_rows, self.part.rows)

    @property
    def _window_bytes(self) -> int:
        return self._window_rows * (self._row_bytes + 6 * 8)  # pixels, and what it takes to find an order for them

    @property
    def _other_bytes(self) -> int:
        chunks = -(-self.part.rows // self.part.chunk_rows)
        batch = self._batch_rows * (self._row_bytes + 16)
        scratch = 2 * self.workers * self.part.chunk_rows * self._row_bytes  # a chunk, and a compressed one
        return batch + scratch + self.part.rows * 8 + chunks * 3 * 8  # labels; hashes and order of the chunks

    def _depth(self, budget: int | None) -> int:
        windows = max(1, -(-self.part.rows // max(self._window_rows, 1)))
        if budget is None:
            return min(DEPTH, windows)
        least = self._other_bytes + self._window_bytes
        if budget < least:
            raise OptionError(
                f"expected a RAM budget of at least {-(-least // 10**6)} MB for {self.part.name} of {self.part.path} in"
                f" batches of {self.batch_size}, found {budget / 1e6:.0f} MB: raise --ram-budget, or lower --batch-size"
            )
        return min(MOST_DEPTH, windows, (budget - self._other_bytes) // max(self._window_bytes, 1))

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, from step `start` on; nothing before it is read.

        Every row comes exactly once an epoch. Raises DatasetError where the data is damaged, as soon as that is seen:
        with the next batch, not with the damaged one. Leaving the
        iterator early is fine: its threads end and its buffers are free again when it is closed or dropped.
        """
        if not 0 <= start <= self.steps:
            raise OptionError(f"expected a step within 0..{self.steps} of the epoch, found {start}")
        return self._batches(self.plan(number), start)

    def plan(self, number: int) -> EpochPlan:
        """The order of one epoch."""
        return EpochPlan(self.part.rows, self.part.chunk_rows, self._window_chunks, self.seed, number, self.shuffle)

    def _batches(self, plan: EpochPlan, start: int) -> Iterator[Batch]:
        if start == self.steps:
            return
        # Two epochs at a time are allowed, as when one was left half-way and lingers: each has its own.
        buffers, self._spare = self._spare or self._allocate(), None
        labels = self.part.labels  # (N,)
        position = start * self.batch_size
        first = plan.window_at(position)
        reader = _Reader(self.part, plan, first, buffers, self._clock)
        windows = _Windows(reader, position - plan.window_starts[first], buffers.batch)
        behind = 0  # rows of the last batch that belong to the ranks after this one
        try:
            for _ in range(start, self.steps):
                began = time.perf_counter()
                size = min(self.batch_size, plan.part_rows - position)
                begin, end = share(size, self.rank, self.world_size)
                windows.skip(behind + begin)
                images, rows = windows.take(end - begin)  # (B, H, W, 3), (B,)
                behind = size - end  # not to be skipped before the consumer is done with this batch
                position += size
                batch = Batch(images, labels[rows], rows, size)
                self._clock.add(StreamTimes(wait=time.perf_counter() - began))
                yield batch
        finally:
            reader.close()
            self._spare = buffers

    def _allocate(self) -> _Buffers:
        def rows(count: int) -> Pixels:
            return np.empty((count, *self.part.size, 3), np.uint8)

        return _Buffers(
            windows=tuple(rows(self._window_rows) for _ in range(self.depth)),
            batch=rows(self._batch_rows),
            scratch=tuple(rows(self.part.chunk_rows) for _ in range(self.workers)),
        )


class _Clock:
    """Adds up where the time goes, from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.times = StreamTimes()

    def add(self, times: StreamTimes) -> None:
        with self._lock:
            self.times = StreamTimes(*(was + more for was, more in zip(self.times, times, strict=True)))


class _Windows:
    """The rows of an epoch, one after the other, out of one window after the other.

    taken  rows of the first window that are gone already
    batch  (batch size, H, W, 3), for rows that lie in two windows
    """

    def __init__(self, reader: _Reader, taken: int, batch: Pixels) -> None:
        self._reader = reader
        self._taken = taken
        self._batch = batch
        self._current: tuple[Window, Pixels] | None = None

    def take(self, count: int) -> tuple[Pixels, Indices]:
        """Pixels (count, H, W, 3) and numbers (count,) of the next rows; the pixels are good until the next call."""
        if self._reader.error is not None:
            raise self._reader.error
        images, rows = self._batch[:count], np.empty(count, np.int64)
        filled = 0
        while filled < count:
            window, pixels = self._window()
            begin = self._taken
            self._taken = min(begin + count - filled, len(window.rows))
            if self._taken - begin == count:
                return pixels[begin : self._taken], window.rows[begin : self._taken]
            part = slice(filled, filled + self._taken - begin)
            images[part], rows[part] = pixels[begin : self._taken], window.rows[begin : self._taken]
            filled = part.stop
        return images, rows

    def skip(self, count: int) -> None:
        """Leave out rows, which are other ranks'."""
        while count:
            window, _ = self._window()
            step = min(count, len(window.rows) - self._taken)
            self._taken += step
            count -= step

    def _window(self) -> tuple[Window, Pixels]:
        """The window that has the next row."""
        if self._current is not None and self._taken == len(self._current[0].rows):
            self._reader.release(self._current[1])
            self._current, self._taken = None, 0
        if self._current is None:
            self._current = self._reader.next()
        return self._current


class _Reader:
    """Fills windows in a thread of its own, with the help of others that read their chunks.

    Two queues pass the buffers round: `free` to the reader, `filled` to the consumer. Whatever goes
    wrong in the reader ends up in `filled` too, so that the consumer cannot wait for nothing, and in `error`, so that
    it hears of it before it has used up the windows that came before.
    """

    def __init__(self, part: Part, plan: EpochPlan, first: int, buffers: _Buffers, clock: _Clock) -> None:
        self._part = part
        self._plan = plan
        self._scratch = buffers.scratch
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
                    pixels = self._free.get()
                    if pixels is None:
                        return
                    window = self._plan.window(index)
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
        while not self._closed.is_set():
            try:
                (start, stop), places = todo.popleft()
            except IndexError:
                return
            try:
                self._read_chunk(start, stop, places, pixels, scratch[: stop - start])
            except BaseException:
                todo.clear()  # the others may stop
                raise

    def _read_chunk(self, start: int, stop: int, places: Indices, pixels: Pixels, scratch: Pixels) -> None:
        if self._plan.shuffle:
            seconds = self._part.read_into(scratch, start, stop)
            began = time.perf_counter()
            pixels[places] = scratch
            copied = time.perf_counter() - began
        else:
            seconds, copied = self._part.read_into(pixels[places[0] : places[-1] + 1], start, stop), 0.0
        self._clock.add(StreamTimes(read=seconds.read, decode=seconds.decode, copy=copied))
