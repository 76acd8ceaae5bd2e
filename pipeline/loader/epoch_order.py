"""The order of the rows in an epoch, a pure function of (seed, epoch).

An epoch reads whole chunks in random order, a window of them at a time, and shuffles the rows within each window. Rows
of one chunk would then be neighbours too often. So they are moved apart, except for as many pairs as a permutation of
the whole split would have. As a result any two rows are neighbours as often as in such a permutation, even if rows of
one chunk have something else in common, such as their class. `shuffle_quality.py` measures this.

Batch size, ranks, threads and the number of buffered windows do not change the order.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from logpose.common.splitmix64 import GOLDEN_GAMMA, MASK, mix

Indices = npt.NDArray[np.int64]

# Size of a window. Another number changes the order that a seed gives. In stored order, large windows gain nothing.
WINDOW_BYTES = 64 * 2**20
UNSHUFFLED_BYTES = 8 * 2**20

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


def rank_slice(size: int, rank: int, world_size: int) -> tuple[int, int]:
    """The (start, stop) of this rank's rows in a batch of `size` rows; each row belongs to one rank."""
    return size * rank // world_size, size * (rank + 1) // world_size


def window_chunks(rows: int, chunk_rows: int, row_bytes: int, shuffle: bool) -> int:
    """Maximum number of chunks in a window, for a split of `rows` rows."""
    fitting = (WINDOW_BYTES if shuffle else UNSHUFFLED_BYTES) // (chunk_rows * row_bytes)
    return max(1, min(fitting, -(-rows // chunk_rows)))


@dataclass(frozen=True)
class Window:
    """Some chunks that are in memory together, and the order of their rows.

    chunks  (start, stop) of the rows of each chunk
    places  for each chunk (stop - start,) int64: the place in the window of each of its rows
    rows    (n,) int64: row numbers of the split, in the order of the epoch
    """

    chunks: tuple[tuple[int, int], ...]
    places: tuple[Indices, ...]
    rows: Indices


@dataclass(frozen=True)
class EpochOrder:
    """The order of one epoch over a split of `rows` rows.

    window_chunks  maximum number of chunks in a window
    """

    rows: int
    chunk_rows: int
    window_chunks: int
    seed: int
    epoch: int
    shuffle: bool

    @property
    def chunks(self) -> int:
        """Number of chunks."""
        return -(-self.rows // self.chunk_rows)

    @property
    def windows(self) -> int:
        """Number of windows."""
        return -(-self.chunks // self.window_chunks)

    @cached_property
    def window_starts(self) -> list[int]:
        """The position in the epoch where each window begins, and where the last one ends."""
        padding = self.chunks * self.chunk_rows - self.rows  # of the last chunk
        sizes = [
            len(chunks) * self.chunk_rows - (padding if self.chunks - 1 in chunks else 0)
            for chunks in map(self._chunks, range(self.windows))
        ]
        return [0, *accumulate(sizes)]

    def window_at(self, position: int) -> int:
        """The number of the window with the row at this position of the epoch."""
        return bisect_right(self.window_starts, position) - 1

    def window(self, index: int) -> Window:
        """The window with this number."""
        starts = self._chunks(index) * self.chunk_rows  # (chunks of the window,)
        chunks = tuple((int(start), min(int(start) + self.chunk_rows, self.rows)) for start in starts)
        rows = np.concatenate([np.arange(start, stop, dtype=np.int64) for start, stop in chunks])  # (n,)
        order = np.arange(len(rows), dtype=np.int64)  # (n,)
        if self.shuffle:
            key = (self.seed, self.epoch, index)
            order = permutation(len(rows), *key)
            # How often a permutation of the whole split makes two rows of a chunk neighbours, relative to this one.
            ratio = (len(rows) - 1) / max(self.rows - 1, 1)
            _spread(order, rows // self.chunk_rows, ratio, key)
        places = np.empty_like(order)  # (n,)
        places[order] = np.arange(len(rows))
        ends = np.cumsum([stop - start for start, stop in chunks])  # (chunks of the window,)
        return Window(chunks, tuple(np.split(places, ends[:-1])), rows[order])

    @cached_property
    def _chunk_order(self) -> Indices:
        return permutation(self.chunks, self.seed, self.epoch)  # (C,)

    def _chunks(self, index: int) -> Indices:
        """The chunks of a window, (chunks of the window,)."""
        if not self.shuffle:
            start = index * self.window_chunks
            return np.arange(start, min(start + self.window_chunks, self.chunks), dtype=np.int64)
        return self._chunk_order[index :: self.windows]  # round-robin: window sizes differ by at most one chunk


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
