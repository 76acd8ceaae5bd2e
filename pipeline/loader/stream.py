"""Minibatches out of windows that are read ahead.

    reader ──window A │ window B │ …──slices──▶ consumer

The rows of a window lie in the order in which they are wanted, so that a batch is a slice of it and nothing is copied
when it is asked for. While the consumer takes batches out of one window, the readers (`reader.py`) fill the next. Never
more than `depth` windows are in memory, however large the part is; only where the budget has room for all pixels of
the part are they kept, and read once. Which rows come when is `plan.py`'s business alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.dataset.store import Split
from pipeline.errors import OptionError
from pipeline.loader.epoch_order import EpochOrder, Indices, Window, rank_slice, window_chunks
from pipeline.loader.reader import Buffers, ChunkCache, Clock, Pixels, Reader, StreamTimes, aligned

DEPTH = 2  # windows in memory: one to take from, one to fill
MAX_DEPTH = 4  # more only wait for their turn


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


class BatchStream:
    """The minibatches of a part, epoch after epoch.

    part        what to read
    batch_size  rows of a batch; the last of an epoch has what is left
    seed        of the shuffling; (seed, epoch number) alone decide the order
    shuffle     False gives the rows in stored order, for evaluation
    workers     threads that read ahead
    ram_budget  bytes that the stream may take; the more, the further it reads ahead, and if all pixels fit in, they
                are read and decoded in the first epoch only. None: two windows
    rank, world_size  this process takes the rank-th of world_size shares of every batch, which may be empty in the last

    `steps` is the number of batches in an epoch, `depth` how many windows are in memory, `keeps_all` whether the whole
    part is, too, and `ram_bytes` what the stream takes at most.
    Raises OptionError for arguments that make no sense and for a budget that is too small.
    """

    def __init__(
        self,
        part: Split,
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
        self.depth, self.keeps_all = self._fit(ram_budget)
        self._kept = ChunkCache(part) if self.keeps_all else None
        self._clock = Clock()
        self._spare: Buffers | None = None  # left by the last epoch for the next

    @property
    def times(self) -> StreamTimes:
        """Where the time went since the stream was made."""
        return self._clock.times

    @property
    def ram_bytes(self) -> int:
        """Bytes that the stream takes at most, labels and the order of an epoch included."""
        kept = self._part_bytes if self.keeps_all else 0
        return self._other_bytes + self.depth * self._window_bytes + kept

    @property
    def min_bytes(self) -> int:
        """The least RAM budget: for one window, filled and used in turn."""
        return self._other_bytes + self._window_bytes

    @property
    def _row_bytes(self) -> int:
        return self.part.size[0] * self.part.size[1] * 3

    @property
    def _part_bytes(self) -> int:
        return self.part.rows * self._row_bytes

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

    def _fit(self, budget: int | None) -> tuple[int, bool]:
        """(windows in memory, whether all pixels are kept): what the budget has room for."""
        most = max(1, -(-self.part.rows // max(self._window_rows, 1)))  # there are no more
        if budget is None:
            return min(DEPTH, most), False
        least = self.min_bytes
        if budget < least:
            raise OptionError(
                f"expected a RAM budget of at least {-(-least // 10**6)} MB for {self.part.name} of {self.part.path} in"
                f" batches of {self.batch_size}, found {budget / 1e6:.0f} MB: raise --ram-budget, or lower --batch-size"
            )
        left = budget - self._other_bytes
        if left >= self._part_bytes + min(DEPTH, most) * self._window_bytes:
            return min(DEPTH, most), True
        return min(MAX_DEPTH, most, left // max(self._window_bytes, 1)), False

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, from step `start` on; nothing before it is read.

        Every row comes exactly once an epoch. Raises DatasetError where the data is damaged, as soon as that is seen:
        with the next batch, not with the damaged one. Leaving the
        iterator early is fine: its threads end and its buffers are free again when it is closed or dropped.
        """
        if not 0 <= start <= self.steps:
            raise OptionError(f"expected a step within 0..{self.steps} of the epoch, found {start}")
        return self._batches(self.plan(number), start)

    def plan(self, number: int) -> EpochOrder:
        """The order of one epoch."""
        return EpochOrder(self.part.rows, self.part.chunk_rows, self._window_chunks, self.seed, number, self.shuffle)

    def _batches(self, plan: EpochOrder, start: int) -> Iterator[Batch]:
        if start == self.steps:
            return
        # Two epochs at a time are allowed, as when one was left half-way and lingers: each has its own.
        buffers, self._spare = self._spare or self._allocate(), None
        labels = self.part.labels  # (N,)
        position = start * self.batch_size
        first = plan.window_at(position)
        reader = Reader(self.part, plan, first, buffers, self._kept, self._clock)
        windows = _Windows(reader, position - plan.window_starts[first], buffers.batch)
        behind = 0  # rows of the last batch that belong to the ranks after this one
        try:
            for _ in range(start, self.steps):
                began = time.perf_counter()
                size = min(self.batch_size, plan.part_rows - position)
                begin, end = rank_slice(size, self.rank, self.world_size)
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

    def _allocate(self) -> Buffers:
        def rows(count: int) -> Pixels:
            return aligned((count, *self.part.size, 3))

        return Buffers(
            windows=tuple(rows(self._window_rows) for _ in range(self.depth)),
            batch=rows(self._batch_rows),
            scratch=tuple(rows(self.part.chunk_rows) for _ in range(self.workers)),
        )


class _Windows:
    """The rows of an epoch, one after the other, out of one window after the other.

    taken  rows of the first window that are gone already
    batch  (batch size, H, W, 3), for rows that lie in two windows
    """

    def __init__(self, reader: Reader, taken: int, batch: Pixels) -> None:
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
