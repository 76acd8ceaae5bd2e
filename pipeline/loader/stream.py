"""Minibatches, as slices of windows that are read ahead.

    reader ──window A │ window B │ …──slices──▶ consumer

The rows of a window are in the order of the epoch, so a batch is a slice and needs no copy. While the consumer takes
batches from one window, the tasks of `reader.py` fill the next. At most `buffered_windows` windows are in memory,
however large the split is. If the budget has room for all pixels of the split, they are cached and read only once.
`epoch_order.py` alone decides the order of the rows. Batches of several micro-batches have a window for each lane.
"""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, SupportsIndex

import numpy as np
import numpy.typing as npt

from pipeline.dataset.store import Split
from pipeline.errors import OptionError
from pipeline.loader.epoch_order import EpochOrder, Indices, Lane, Window, window_chunks
from pipeline.loader.micro_batches import MicroBatches
from pipeline.loader.reader import (
    Buffers,
    ChunkCache,
    Pixels,
    Source,
    StreamClock,
    StreamTimes,
    WindowReader,
    page_aligned,
)

DEFAULT_WINDOWS = 2  # of each lane: one to take batches from, one to fill
MAX_WINDOWS = 4  # of each lane; more do not make it faster


@dataclass(frozen=True)
class Batch:
    """A minibatch, or one of its micro-batches, or those of the lanes that this process reads.

    images       uint8 (B, H, W, 3); the memory is reused: valid until the next step is requested. With `images_of`,
                 what that returned
    labels       int64 (B,)
    rows         int64 (B,): row numbers of the split
    global_rows  rows of the whole minibatch: divide the sum of the losses of all micro-batches by it
    index        number of the micro-batch, or of the first one
    """

    images: Pixels
    labels: npt.NDArray[np.int64]
    rows: Indices
    global_rows: int
    index: int = 0


class BatchStream:
    """The minibatches of a split, epoch after epoch.

    split       the rows to read
    batch_size  rows of a batch; the last batch of an epoch may have fewer
    micro_batch rows of a micro-batch: each comes out of a lane of its own. 0: batches are not divided
    lanes       the lanes that this process reads, as a range: see `micro_batches.py`. None: all
    seed        of the shuffle; the order depends on (seed, epoch) only, and with micro-batches on both sizes
    shuffle     False gives the rows in stored order, of each lane, for evaluation
    workers     threads that read ahead
    ram_budget  bytes that the stream may take: the more, the further it reads ahead, and if all pixels fit in, they
                are read in the first epoch only. None: two windows
    images_of   function from row numbers (B,) to the images of a batch, for example in a GPU's memory: then the stream
                reads none

    `steps`, also `len(stream)`, is the number of batches in an epoch; `buffered_windows` the number of windows in
    memory; `caches_all` whether all pixels are cached; `ram_bytes` an upper bound of the memory.
    Iterating gives the batches of one epoch: the first `iter(stream)` those of epoch 0, each further one those of the
    next epoch. `epoch(number, start)` gives any epoch, from any step; `micro_batches(number, start)` the micro-batches
    of each step, without copying them to one array.
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
        micro_batch: int = 0,
        lanes: range | None = None,
        shuffle: bool = True,
        workers: int = 2,
        ram_budget: int | None = None,
        images_of: Callable[[Indices], Any] | None = None,
    ) -> None:
        if not isinstance(split, Split):
            raise OptionError(f"expected a split such as data.train, found {type(split).__name__}: give one of the two")
        batch_size, seed = _whole("batch_size", batch_size), _whole("seed", seed)
        workers, micro_batch = _whole("workers", workers), _whole("micro_batch", micro_batch)
        ram_budget = None if ram_budget is None else _whole("ram_budget", ram_budget)
        if batch_size < 1:
            raise OptionError(f"expected a batch size of at least 1, found {batch_size}")
        if micro_batch < 0:
            raise OptionError(f"expected micro-batches of at least 1 row, or 0 for whole batches, found {micro_batch}")
        if workers < 1:
            raise OptionError(f"expected at least one worker, found {workers}")
        self.split = split
        self.batch_size = batch_size
        self.division = MicroBatches(split.rows, batch_size, micro_batch)
        self.lanes = range(self.division.lanes) if lanes is None else lanes
        if not self.lanes or self.lanes.step != 1 or self.lanes[0] < 0 or self.lanes[-1] >= self.division.lanes:
            raise OptionError(f"expected a range of lanes within range(0, {self.division.lanes}), found {lanes}")
        self.seed = seed
        self.shuffle = shuffle
        self.workers = workers
        self._images_of = images_of
        self.steps = self.division.steps
        self._next_epoch = 0
        row_bytes = split.size[0] * split.size[1] * 3
        self._batch_rows = sum(map(self.division.full_rows, self.lanes))  # at most, of these lanes
        self._window_chunks = window_chunks(split.rows, split.chunk_rows, row_bytes, shuffle, self.division.lanes)
        if images_of:
            row_bytes = 0  # in memory; the order of the rows is the same
        lane_rows = [self.division.position(self.steps, lane) for lane in self.lanes]
        self._window_rows = min(self._window_chunks * split.chunk_rows, max(lane_rows))
        # Pixels, their order, and finding that of a later window.
        self._window_bytes = self._window_rows * (row_bytes + 2 * 8 + 6 * 8)
        self._max_windows = sum(max(1, -(-rows // max(self._window_rows, 1))) for rows in lane_rows)  # of an epoch
        self._split_bytes = split.rows * row_bytes
        self._other_bytes = (
            self._batch_rows * (row_bytes + 16)  # a batch
            + 2 * workers * split.chunk_rows * row_bytes  # scratch: a chunk, and its compressed bytes
            + split.rows * 8  # labels
            + split.chunks * 8 * 8  # hashes, order and lanes of the chunks
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
        """The minimum RAM budget: for one window of each lane, filled and used in turn."""
        return self._other_bytes + len(self.lanes) * self._window_bytes

    def _plan_memory(self, budget: int | None) -> tuple[int, bool]:
        """Choose the number of windows, and whether to cache all pixels, for a RAM budget in bytes."""
        windows = min(DEFAULT_WINDOWS * len(self.lanes), self._max_windows)
        if budget is None:
            return windows, False
        if budget < self.min_bytes:
            raise OptionError(
                f"expected a RAM budget of at least {-(-self.min_bytes // 10**6):,} MB for {self.split.name} of"
                f" {self.split.path} in batches of {self.batch_size:,}, found {megabytes(budget)}: raise --ram-budget,"
                " or lower --batch-size"
            )
        left = budget - self._other_bytes
        if left >= self._split_bytes + windows * self._window_bytes:
            return windows, True
        most = min(MAX_WINDOWS * len(self.lanes), self._max_windows)
        return min(most, left // max(self._window_bytes, 1)), False

    def epoch(self, number: int, start: int = 0) -> Generator[Batch, None, None]:
        """The batches of one epoch, from step `start` on; earlier ones are not read.

        Each row comes exactly once per epoch. Micro-batches are copied to one array, and a process that does not read
        all lanes gets its part of each batch; in the last one it may be empty. The iterator may be left early: when it
        is closed or dropped, its threads end and its buffers are free again. Raises OptionError for a step out of
        range; the iterator raises DamageError for damaged data, as soon as a task finds it, and DatasetChangedError
        before the last batch if the dataset has been replaced.
        """
        steps = self._steps(*self._checked(number, start), whole=True)

        def batches() -> Generator[Batch, None, None]:
            with closing(steps):
                for (batch,) in steps:
                    yield batch

        return batches()

    def micro_batches(self, number: int, start: int = 0) -> Generator[tuple[Batch, ...], None, None]:
        """The micro-batches of each step of one epoch, from the lanes that this process reads, without empty ones.

        Those of a step are all valid until the next step is requested. Otherwise like `epoch`.
        """
        return self._steps(*self._checked(number, start), whole=False)

    def order(self, number: int) -> EpochOrder:
        """The order of one epoch."""
        split = self.split
        return EpochOrder(
            split.rows, split.chunk_rows, self._window_chunks, self.seed, number, self.shuffle, self.division
        )

    def _checked(self, number: int, start: int) -> tuple[EpochOrder, int]:
        """The order of an epoch, and the step to start at. Raises OptionError."""
        number, start = _whole("epoch", number), _whole("start", start)
        if not 0 <= start <= self.steps:
            raise OptionError(f"expected a step within 0..{self.steps} of the epoch, found {start}")
        return self.order(number), start

    def _steps(self, order: EpochOrder, start: int, whole: bool) -> Generator[tuple[Batch, ...], None, None]:
        """The micro-batches of each step, or, if `whole`, all of them as one batch."""
        if start == self.steps:
            return
        # Several epochs may run at a time, for example if one was left early but not closed: each has its own buffers.
        buffers, self._spare = self._spare or self._allocate(), None
        lanes = [order.lanes[lane] for lane in self.lanes]
        reads = self._images_of is None and not (self._cache and self._cache.complete)
        source = Source(self.split, self.shuffle, buffers.scratch, self._cache)
        reader = WindowReader(source, self._needed(lanes, start), buffers, self._clock)
        cursors = [_LaneCursor(reader, lane, self.division.position(start, lane.number)) for lane in lanes]
        total, counts = self._step_rows(start)
        try:
            for step in range(start, self.steps):
                began = time.perf_counter()
                if step == self.steps - 1:
                    total, counts = self._step_rows(step)
                if reader.error is not None:
                    raise reader.error
                if reads and step == self.steps - 1:  # all rows of the epoch have been read
                    self.split.check_unchanged()
                if whole:
                    batches: tuple[Batch, ...] = (self._whole_batch(cursors, counts, total, buffers.batch),)
                else:
                    batches = tuple(self._micro_batches(cursors, counts, total, buffers.batch))
                self._clock.add(StreamTimes(wait=time.perf_counter() - began))
                yield batches
        finally:
            if reader.close():
                self._spare = buffers

    def _step_rows(self, step: int) -> tuple[int, list[int]]:
        """The rows of the batch of a step, and those of its micro-batches out of each lane that this process reads."""
        return self.division.batch_rows(step), [self.division.micro_rows(step, lane) for lane in self.lanes]

    def _needed(self, lanes: Sequence[Lane], start: int) -> list[tuple[Lane, int]]:
        """The windows from a step on, in the order in which `_steps` takes them."""
        needed: list[tuple[int, int, int]] = []  # step, place of the lane, window
        for place, lane in enumerate(lanes):
            position = self.division.position(start, lane.number)
            if position < lane.rows:
                size = self.division.full_rows(lane.number)
                needed += [
                    (max(start, lane.window_starts[index] // size), place, index)
                    for index in range(lane.window_at(position), lane.windows)
                ]
        return [(lanes[place], index) for _, place, index in sorted(needed)]

    def _micro_batches(
        self, cursors: Sequence[_LaneCursor], counts: Sequence[int], total: int, memory: Pixels
    ) -> Iterator[Batch]:
        """The next micro-batches, each a slice of a window where possible, otherwise in `memory` (B, H, W, 3)."""
        for cursor, count in zip(cursors, counts, strict=True):
            if count:
                images, rows = cursor.take(memory[:count])  # (b, H, W, 3), (b,)
                memory = memory[count:]
                yield self._batch(images, rows, total, cursor.lane)

    def _whole_batch(
        self, cursors: Sequence[_LaneCursor], counts: Sequence[int], total: int, memory: Pixels
    ) -> Batch:
        """The next batch, from one lane a slice of its window where possible, otherwise in `memory` (B, H, W, 3)."""
        if len(cursors) == 1:
            return self._batch(*cursors[0].take(memory[: counts[0]]), total, cursors[0].lane)
        pieces, end = [], 0
        for cursor, count in zip(cursors, counts, strict=True):
            pieces.append(cursor.take(memory[end : end + count], copy=True)[1])  # (b,)
            end += count
        return self._batch(memory[:end], np.concatenate(pieces), total, cursors[0].lane)

    def _batch(self, images: Pixels, rows: Indices, total: int, index: int) -> Batch:
        images = self._images_of(rows) if self._images_of else images
        return Batch(images, self.split.labels[rows], rows, total, index)

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


class _LaneCursor:
    """Cursor over the rows of a lane, window by window.

    lane  the number of the lane
    """

    def __init__(self, reader: WindowReader, lane: Lane, position: int) -> None:
        self.lane = lane.number
        self._reader = reader
        # Rows of the window to leave out.
        self._taken = position - lane.window_starts[lane.window_at(position)] if position < lane.rows else 0
        self._current: tuple[Window, Pixels] | None = None

    def take(self, memory: Pixels, copy: bool = False) -> tuple[Pixels, Indices]:
        """Pixels (n, H, W, 3) and numbers (n,) of the next rows; the pixels are valid until the next call.

        They are copied to `memory` (n, H, W, 3) if they span windows, or with `copy`.
        """
        count = len(memory)
        rows = np.empty(count, np.int64)  # (n,)
        filled = 0
        while filled < count:
            window, pixels = self._window()
            begin = self._taken
            self._taken = min(begin + count - filled, len(window.rows))
            if self._taken - begin == count and not copy:
                return pixels[begin : self._taken], window.rows[begin : self._taken]
            piece = slice(filled, filled + self._taken - begin)
            memory[piece], rows[piece] = pixels[begin : self._taken], window.rows[begin : self._taken]
            filled = piece.stop
        return memory, rows

    def _window(self) -> tuple[Window, Pixels]:
        """The window with the next row, and its pixels."""
        if self._current is not None and self._taken == len(self._current[0].rows):
            self._reader.release(self._current[1])
            self._current, self._taken = None, 0
        if self._current is None:
            self._current = self._reader.next()
        return self._current


def megabytes(size: int) -> str:
    """A number of bytes as text: 1,000 MB, or 0.001 MB."""
    return f"{size / 10**6:,.0f} MB" if size >= 10**8 else f"{size / 10**6:.3g} MB"
