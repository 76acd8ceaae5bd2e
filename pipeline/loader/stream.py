"""Minibatches, as slices of windows that are read ahead.

    reader ──window A │ window B │ …──slices──▶ consumer

The rows of a window are in the order of the epoch, so a batch is a slice and needs no copy. While the consumer takes
batches from one window, the threads of `reader.py` fill the next. At most `buffered_windows` windows are in memory,
however large the split is. If the budget has room for all pixels of the split, they are cached and read only once.
`epoch_order.py` alone decides the order of the rows.
"""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, SupportsIndex

import numpy as np
import numpy.typing as npt

from pipeline.dataset.store import Split
from pipeline.errors import OptionError
from pipeline.loader.epoch_order import EpochOrder, Indices, Window, rank_slice, window_chunks
from pipeline.loader.reader import Buffers, ChunkCache, Pixels, StreamClock, StreamTimes, WindowReader, page_aligned

DEFAULT_WINDOWS = 2  # one to take batches from, one to fill
MAX_WINDOWS = 4  # more do not make it faster


@dataclass(frozen=True)
class Batch:
    """A minibatch, or the rows of it that belong to one rank.

    images       uint8 (B, H, W, 3); the memory is reused: valid until the next batch is requested. With `images_of`,
                 what that returned
    labels       int64 (B,)
    rows         int64 (B,): row numbers of the split
    global_rows  rows of the whole minibatch: divide the sum of the losses of all ranks by it
    """

    images: Pixels
    labels: npt.NDArray[np.int64]
    rows: Indices
    global_rows: int


class BatchStream:
    """The minibatches of a split, epoch after epoch.

    split       the rows to read
    batch_size  rows of a batch; the last batch of an epoch may have fewer
    seed        of the shuffle; the order depends on (seed, epoch) only
    shuffle     False gives the rows in stored order, for evaluation
    workers     threads that read ahead
    ram_budget  bytes that the stream may take: the more, the further it reads ahead, and if all pixels fit in, they
                are read in the first epoch only. None: two windows
    images_of   function from row numbers (B,) to the images of a batch, for example in a GPU's memory: then the stream
                reads none
    rank, world_size  this process gets the rank-th of world_size slices of each batch; in the last it may be empty

    `steps`, also `len(stream)`, is the number of batches in an epoch; `buffered_windows` the number of windows in
    memory; `caches_all` whether all pixels are cached; `ram_bytes` an upper bound of the memory.
    Iterating gives the batches of one epoch: the first `iter(stream)` those of epoch 0, each further one those of the
    next epoch. `epoch(number, start)` gives any epoch, from any step.
    Raises OptionError for arguments out of range and for a budget that is too small.

    >>> stream = logpose.BatchStream(logpose.open("colours.zarr").train, batch_size=20, seed=0)
    >>> len(stream), [len(batch.labels) for batch in stream]
    (3, [20, 20, 8])
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        *,
        seed: int,
        shuffle: bool = True,
        workers: int = 2,
        ram_budget: int | None = None,
        images_of: Callable[[Indices], Any] | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if not isinstance(split, Split):
            raise OptionError(f"expected a split such as data.train, found {type(split).__name__}: give one of the two")
        batch_size, seed = _whole("batch_size", batch_size), _whole("seed", seed)
        workers, rank, world_size = _whole("workers", workers), _whole("rank", rank), _whole("world_size", world_size)
        ram_budget = None if ram_budget is None else _whole("ram_budget", ram_budget)
        if batch_size < 1:
            raise OptionError(f"expected a batch size of at least 1, found {batch_size}")
        if workers < 1:
            raise OptionError(f"expected at least one worker, found {workers}")
        if not 0 <= rank < world_size:
            raise OptionError(f"expected a rank within 0..{world_size - 1}, found {rank}")
        self.split = split
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.workers = workers
        self.rank, self.world_size = rank, world_size
        self._images_of = images_of
        self.steps = -(-split.rows // batch_size)
        self._next_epoch = 0
        row_bytes = split.size[0] * split.size[1] * 3
        self._batch_rows = -(-batch_size // world_size)  # at most, of this rank
        self._window_chunks = window_chunks(split.rows, split.chunk_rows, row_bytes, shuffle)
        if images_of:
            row_bytes = 0  # in memory; the order of the rows is the same
        self._window_rows = min(self._window_chunks * split.chunk_rows, split.rows)
        self._window_bytes = self._window_rows * (row_bytes + 6 * 8)  # pixels, and finding their order
        self._split_bytes = split.rows * row_bytes
        self._other_bytes = (
            self._batch_rows * (row_bytes + 16)  # a batch
            + 2 * workers * split.chunk_rows * row_bytes  # scratch: a chunk, and its compressed bytes
            + split.rows * 8  # labels
            + split.chunks * 3 * 8  # hashes and order of the chunks
        )
        self.buffered_windows, self.caches_all = self._plan_memory(None if images_of else ram_budget)
        self._cache = ChunkCache(split) if self.caches_all else None
        self._clock = StreamClock()
        self._spare: Buffers | None = None  # of a finished epoch, for the next

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        number, self._next_epoch = self._next_epoch, self._next_epoch + 1
        return self.epoch(number)

    @property
    def times(self) -> StreamTimes:
        """The seconds spent since the stream was made."""
        return self._clock.times

    @property
    def ram_bytes(self) -> int:
        """Upper bound of the memory of the stream, labels and the order of an epoch included."""
        cached = self._split_bytes if self.caches_all else 0
        return self._other_bytes + self.buffered_windows * self._window_bytes + cached

    @property
    def min_bytes(self) -> int:
        """The minimum RAM budget: for one window, filled and used in turn."""
        return self._other_bytes + self._window_bytes

    def _plan_memory(self, budget: int | None) -> tuple[int, bool]:
        """Choose the number of windows, and whether to cache all pixels, for a RAM budget in bytes."""
        windows = max(1, -(-self.split.rows // max(self._window_rows, 1)))  # of an epoch
        if budget is None:
            return min(DEFAULT_WINDOWS, windows), False
        if budget < self.min_bytes:
            raise OptionError(
                f"expected a RAM budget of at least {-(-self.min_bytes // 10**6)} MB for {self.split.name} of"
                f" {self.split.path} in batches of {self.batch_size}, found {budget / 1e6:.0f} MB: raise --ram-budget,"
                " or lower --batch-size"
            )
        left = budget - self._other_bytes
        if left >= self._split_bytes + min(DEFAULT_WINDOWS, windows) * self._window_bytes:
            return min(DEFAULT_WINDOWS, windows), True
        return min(MAX_WINDOWS, windows, left // max(self._window_bytes, 1)), False

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, from step `start` on; earlier ones are not read.

        Each row comes exactly once per epoch. The iterator may be left early: when it is closed or dropped, its
        threads end and its buffers are free again. Raises OptionError for a step out of range; the iterator raises
        DamageError for damaged data, as soon as the threads find it.
        """
        number, start = _whole("epoch", number), _whole("start", start)
        if not 0 <= start <= self.steps:
            raise OptionError(f"expected a step within 0..{self.steps} of the epoch, found {start}")
        return self._batches(self.order(number), start)

    def order(self, number: int) -> EpochOrder:
        """The order of one epoch."""
        return EpochOrder(self.split.rows, self.split.chunk_rows, self._window_chunks, self.seed, number, self.shuffle)

    def _batches(self, order: EpochOrder, start: int) -> Iterator[Batch]:
        if start == self.steps:
            return
        # Several epochs may run at a time, for example if one was left early but not closed: each has its own buffers.
        buffers, self._spare = self._spare or self._allocate(), None
        labels = self.split.labels  # (N,)
        position = start * self.batch_size
        first = order.window_at(position)
        reader = WindowReader(self.split, order, first, buffers, self._cache, self._clock)
        cursor = _RowCursor(reader, position - order.window_starts[first], buffers.batch)
        skipped = 0  # rows of the previous batch that belong to the ranks after this one
        try:
            for _ in range(start, self.steps):
                began = time.perf_counter()
                size = min(self.batch_size, order.rows - position)
                begin, end = rank_slice(size, self.rank, self.world_size)
                cursor.skip(skipped + begin)
                images, rows = cursor.take(end - begin)  # (B, H, W, 3), (B,)
                skipped = size - end  # later: skipping may release the window of this batch
                position += size
                batch = Batch(self._images_of(rows) if self._images_of else images, labels[rows], rows, size)
                self._clock.add(StreamTimes(wait=time.perf_counter() - began))
                yield batch
        finally:
            reader.close()
            self._spare = buffers

    def _allocate(self) -> Buffers:
        def rows(count: int) -> Pixels:
            return page_aligned((count, 0) if self._images_of else (count, *self.split.size, 3))

        return Buffers(
            windows=tuple(rows(self._window_rows) for _ in range(self.buffered_windows)),
            batch=rows(self._batch_rows),
            scratch=() if self._images_of else tuple(rows(self.split.chunk_rows) for _ in range(self.workers)),
        )


def _whole(name: str, value: SupportsIndex) -> int:
    """The value as an int. Raises OptionError for floats, bools, text, …"""
    try:
        return operator.index(None if isinstance(value, bool) else value)  # type: ignore[arg-type]
    except TypeError:
        raise OptionError(f"{name}: expected a whole number, found {value!r}: write an int") from None


class _RowCursor:
    """Cursor over the rows of an epoch, window by window.

    taken  rows of the first window to leave out
    batch  (batch size, H, W, 3), for rows that span two windows
    """

    def __init__(self, reader: WindowReader, taken: int, batch: Pixels) -> None:
        self._reader = reader
        self._taken = taken
        self._batch = batch
        self._current: tuple[Window, Pixels] | None = None

    def take(self, count: int) -> tuple[Pixels, Indices]:
        """Pixels (count, H, W, 3) and numbers (count,) of the next rows; the pixels are valid until the next call."""
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
            piece = slice(filled, filled + self._taken - begin)
            images[piece], rows[piece] = pixels[begin : self._taken], window.rows[begin : self._taken]
            filled = piece.stop
        return images, rows

    def skip(self, count: int) -> None:
        """Leave out the next rows: they belong to other ranks."""
        while count:
            window, _ = self._window()
            step = min(count, len(window.rows) - self._taken)
            self._taken += step
            count -= step

    def _window(self) -> tuple[Window, Pixels]:
        """The window with the next row, and its pixels."""
        if self._current is not None and self._taken == len(self._current[0].rows):
            self._reader.release(self._current[1])
            self._current, self._taken = None, 0
        if self._current is None:
            self._current = self._reader.next()
        return self._current
