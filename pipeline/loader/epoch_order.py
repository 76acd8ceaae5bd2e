"""The order of the rows in an epoch, a pure function of (seed, epoch).

An epoch reads whole chunks in random order, a window of them at a time, and shuffles the rows within each window. Rows
of one chunk would then be neighbours too often. So they are moved apart, except for as many pairs as a permutation of
the whole split would have. As a result any two rows are neighbours as often as in such a permutation, even if rows of
one chunk have something else in common, such as their class. `shuffle_quality.py` measures this.

Where batches consist of micro-batches, the chunks, in their random order, are cut into lanes, each of as many rows as
its micro-batches need. A chunk at a border belongs to both lanes, which read it twice. Each lane has its own windows.

Ranks, threads and the number of buffered windows do not change the order. Nor does the batch size, unless batches have
micro-batches.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

import numpy as np
import numpy.typing as npt

from logpose.common.splitmix64 import GOLDEN_GAMMA, MASK, mix
from pipeline.loader.micro_batches import MicroBatches

Indices = npt.NDArray[np.int64]

# Size of a window, or of the windows of all lanes together. Another number changes the order that a seed gives. In
# stored order, large windows gain nothing.
WINDOW_BYTES = 64 * 2**20
UNSHUFFLED_BYTES = 8 * 2**20
MIN_LANE_CHUNKS = 8  # of a window of one of several lanes: fewer could not be told apart from a poor shuffle

_TRIES = 64  # candidates for the place that a row moves to


def hashes(count: int, *key: int) -> npt.NDArray[np.uint64]:
    """Random 64-bit numbers (count,), a pure function of the key."""
    state = np.zeros(1, dtype=np.uint64)
    for word in key:
        state = mix(state + np.array([(word + GOLDEN_GAMMA) & MASK], dtype=np.uint64))
    return mix(state + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(GOLDEN_GAMMA))


def permutation(count: int, *key: int) -> Indices:
    """A random permutation (count,) of 0..count-1, a pure function of the key: the indices, sorted by a 64-bit hash.

    Not NumPy's generators, whose permutations may change with a release: a seed must always give the same order.
    """
    return np.argsort(hashes(count, *key), kind="stable").astype(np.int64, copy=False)


def window_chunks(rows: int, chunk_rows: int, row_bytes: int, shuffle: bool, lanes: int = 1) -> int:
    """Maximum number of chunks in a window of one of the lanes, for a split of `rows` rows."""
    fitting = (WINDOW_BYTES if shuffle else UNSHUFFLED_BYTES) // (chunk_rows * row_bytes) // lanes
    least = MIN_LANE_CHUNKS if shuffle and lanes > 1 else 1
    return min(max(least, fitting), max(1, -(-rows // chunk_rows)))


@dataclass(frozen=True)
class Window:
    """Some chunks that are in memory together, and the order of their rows.

    chunks  (start, stop) of the rows of each chunk; at a border of the lane, only of those that belong to it
    places  for each chunk (stop - start,) int64: the place in the window of each of its rows
    rows    (n,) int64: row numbers of the split, in the order of the lane
    """

    chunks: tuple[tuple[int, int], ...]
    places: tuple[Indices, ...]
    rows: Indices


@dataclass(frozen=True)
class EpochOrder:
    """The order of one epoch over a split of `rows` rows.

    window_chunks  maximum number of chunks in a window
    division       the micro-batches of its batches; None: batches are not divided, there is one lane
    """

    rows: int
    chunk_rows: int
    window_chunks: int
    seed: int
    epoch: int
    shuffle: bool
    division: MicroBatches | None = None

    @cached_property
    def lanes(self) -> tuple[Lane, ...]:
        """The lanes: micro-batch j of each batch comes out of lanes[j]."""
        starts = self.division.lane_starts() if self.division else [0, self.rows]
        return tuple(Lane(self, number, *ends) for number, ends in enumerate(pairwise(starts)))

    @cached_property
    def chunks(self) -> npt.NDArray[np.int64]:
        """(start, stop) of the rows of each chunk, in the order of the epoch, (C, 2)."""
        count = -(-self.rows // self.chunk_rows)
        numbers = permutation(count, self.seed, self.epoch) if self.shuffle else np.arange(count)  # (C,)
        starts = numbers * self.chunk_rows  # (C,)
        return np.stack([starts, np.minimum(starts + self.chunk_rows, self.rows)], axis=1)  # (C, 2)

    @property
    def neighbours(self) -> int:
        """Number of pairs of neighbours in the epoch that come out of one lane: of several, those in a micro-batch."""
        return self.rows - (self.division.count if self.division and len(self.lanes) > 1 else 1)


class Lane:
    """A run of the rows of an epoch, in windows.

    number      of the lane
    begin, end  the lane has rows begin..end-1 of the epoch's chunks, in their order

    `rows` is their number; `chunks`, (n, 2), are (start, stop) of the rows of each chunk, or of the part of it that
    belongs to the lane.
    """

    def __init__(self, order: EpochOrder, number: int, begin: int, end: int) -> None:
        self.order, self.number, self.rows = order, number, end - begin
        starts, stops = order.chunks.T  # (C,) each
        ends = np.cumsum(stops - starts)  # (C,): rows up to the end of each chunk
        first, last = np.searchsorted(ends, begin, "right"), np.searchsorted(ends, end, "left") + 1
        self.chunks = order.chunks[first : last if end > begin else first].copy()  # (chunks of the lane, 2)
        if len(self.chunks):
            self.chunks[0, 0] = stops[first] - (ends[first] - begin)
            self.chunks[-1, 1] -= ends[last - 1] - end

    @property
    def windows(self) -> int:
        """Number of windows."""
        return -(-len(self.chunks) // self.order.window_chunks)

    @cached_property
    def window_starts(self) -> list[int]:
        """The position in the lane where each window begins, and where the last one ends."""
        sizes = (int(np.diff(self._chunks_of(index)).sum()) for index in range(self.windows))
        return [0, *accumulate(sizes)]

    def window_at(self, position: int) -> int:
        """The number of the window with the row at this position of the lane."""
        return bisect_right(self.window_starts, position) - 1

    def window(self, index: int) -> Window:
        """The window with this number."""
        order = self.order
        chunks = tuple((start, stop) for start, stop in self._chunks_of(index).tolist())
        rows = np.concatenate([np.arange(start, stop, dtype=np.int64) for start, stop in chunks])  # (n,)
        shuffled = np.arange(len(rows), dtype=np.int64)  # (n,)
        if order.shuffle:
            key = (order.seed, order.epoch, index, *([self.number] if len(order.lanes) > 1 else []))
            shuffled = permutation(len(rows), *key)
            # How often a permutation of the whole split makes two rows of a chunk neighbours, relative to this one.
            ratio = (len(rows) - 1) / max(order.neighbours, 1)
            if len(order.lanes) > 1:
                # A pair that should stay is lost where its first row is also the second of a pair that should not.
                # With the few chunks of a lane's window, that is often.
                sizes = np.array([stop - start for start, stop in chunks])  # (chunks of the window,)
                pairs = float((sizes * (sizes - 1)).sum()) / max(len(rows) * (len(rows) - 1), 1)  # of one chunk
                ratio /= max(1 - pairs * (1 - ratio), ratio)
            _spread(shuffled, rows // order.chunk_rows, ratio, key)
        places = np.empty_like(shuffled)  # (n,)
        places[shuffled] = np.arange(len(rows))
        ends = np.cumsum([stop - start for start, stop in chunks])  # (chunks of the window,)
        return Window(chunks, tuple(np.split(places, ends[:-1])), rows[shuffled])

    def _chunks_of(self, index: int) -> Indices:
        """The chunks of a window, (chunks of the window, 2)."""
        if not self.order.shuffle:
            return self.chunks[index * self.order.window_chunks : (index + 1) * self.order.window_chunks]
        return self.chunks[index :: self.windows]  # round-robin: window sizes differ by at most one chunk


def _spread(order: Indices, chunk: Indices, ratio: float, key: tuple[int, ...]) -> None:
    """Separate neighbours of one chunk in `order` (n,), in place, except for a random `ratio` of these pairs.

    chunk (n,) is the chunk of each of the n rows. To separate a pair, its second row is swapped with a random one such
    that both get neighbours from other chunks; if none of the candidates fits, the pair stays.
    """
    ordered = chunk[order]  # (n,)
    pairs = np.flatnonzero(ordered[1:] == ordered[:-1]) + 1  # (pairs,)
    limit = np.uint64(min(int(ratio * 2.0**64), MASK))
    moving = pairs[hashes(len(pairs), *key, 1) > limit]  # (moving,)
    if ratio >= 1 or not len(moving):
        return
    chunk_at = ordered.tolist()  # a list: faster to index one by one
    last = len(chunk_at) - 1
    drawn = hashes(len(moving) * _TRIES, *key, 2) % np.uint64(len(chunk_at))  # (moving · tries,)
    candidates = drawn.reshape(-1, _TRIES).tolist()  # (moving, tries)

    def fits(number: int, place: int) -> bool:
        """Whether neither neighbour of a place is of this chunk."""
        return (place == 0 or chunk_at[place - 1] != number) and (place == last or chunk_at[place + 1] != number)

    for place, others in zip(moving.tolist(), candidates, strict=True):
        if chunk_at[place] != chunk_at[place - 1]:
            continue  # its neighbour has moved already
        for other in others:
            if chunk_at[other] == chunk_at[place] or not fits(chunk_at[other], other):
                continue  # no gain, or it is in a pair that should stay
            if abs(other - place) > 1 and fits(chunk_at[other], place) and fits(chunk_at[place], other):
                chunk_at[place], chunk_at[other] = chunk_at[other], chunk_at[place]
                order[place], order[other] = order[other], order[place]
                break
