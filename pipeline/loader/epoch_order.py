"""(seed, epoch) -> which rows, in which order. Pure functions: no state, nothing drawn in advance.

An epoch reads whole chunks in random order, a window of them at a time, and shuffles the rows within each window.
Rows of one chunk would follow each other too often then, so they are kept apart, but for as many as a permutation of
the whole part would have. So any two rows are neighbours as often as in such a permutation, whatever rows have in
common, be it their chunk or, where they lie sorted, their class. `shuffle.py` measures it.

How many batches the rows are cut into, how many ranks, threads and windows ahead there are, changes nothing here.
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

# Bytes of a window. A seed means another order with another number here. In stored order nothing is gained by much.
WINDOW_BYTES = 64 * 2**20
UNSHUFFLED_BYTES = 8 * 2**20

_TRIES = 64  # places to look at for one that a row may move to


def hashes(count: int, *key: int) -> npt.NDArray[np.uint64]:
    """Random numbers (count,) of 64 bits that depend on the key and on nothing else."""
    state = np.zeros(1, dtype=np.uint64)
    for word in key:
        state = mix(state + np.array([(word + GOLDEN_GAMMA) & MASK], dtype=np.uint64))
    return mix(state + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(GOLDEN_GAMMA))


def permutation(count: int, *key: int) -> Indices:
    """A permutation (count,) of 0..count-1 that depends on the key and on nothing else.

    Each index gets a 64-bit hash of (key, index) and they are sorted by it. Ours rather than NumPy's
    generators, whose permutations may change with a release: a seed must mean the same order for good.
    """
    return np.argsort(hashes(count, *key), kind="stable").astype(np.int64, copy=False)


def rank_slice(size: int, rank: int, world_size: int) -> tuple[int, int]:
    """(start, stop): which of the `size` rows of a batch are this rank's. Together the ranks have each once."""
    return size * rank // world_size, size * (rank + 1) // world_size


def window_chunks(part_rows: int, chunk_rows: int, row_bytes: int, shuffle: bool) -> int:
    """How many chunks a window of a part holds at most."""
    fitting = (WINDOW_BYTES if shuffle else UNSHUFFLED_BYTES) // (chunk_rows * row_bytes)
    return max(1, min(fitting, -(-part_rows // chunk_rows)))


@dataclass(frozen=True)
class Window:
    """Some chunks that are in memory together, and the order of their rows.

    chunks  (start, stop) rows of each
    places  a chunk: (stop - start,) int64, which of the window's rows its first, second, … row becomes
    rows    (n,) int64: the rows of the part in their new order
    """

    chunks: tuple[tuple[int, int], ...]
    places: tuple[Indices, ...]
    rows: Indices


@dataclass(frozen=True)
class EpochOrder:
    """The order of one epoch over a part.

    window_chunks  the most chunks of a window
    """

    part_rows: int
    chunk_rows: int
    window_chunks: int
    seed: int
    epoch: int
    shuffle: bool

    @property
    def chunks(self) -> int:
        return -(-self.part_rows // self.chunk_rows)

    @property
    def windows(self) -> int:
        return -(-self.chunks // self.window_chunks)

    @cached_property
    def window_starts(self) -> list[int]:
        """Where in the epoch each window begins, and where the last one ends."""
        lacking = self.chunks * self.chunk_rows - self.part_rows  # rows of the last chunk that are not there
        sizes = [
            len(chunks) * self.chunk_rows - (lacking if self.chunks - 1 in chunks else 0)
            for chunks in map(self._chunks, range(self.windows))
        ]
        return [0, *accumulate(sizes)]

    def window_at(self, position: int) -> int:
        """The window that holds the row at this position of the epoch."""
        return bisect_right(self.window_starts, position) - 1

    def window(self, index: int) -> Window:
        starts = self._chunks(index) * self.chunk_rows  # (chunks of the window,)
        chunks = tuple((int(start), min(int(start) + self.chunk_rows, self.part_rows)) for start in starts)
        rows = np.concatenate([np.arange(start, stop, dtype=np.int64) for start, stop in chunks])  # (n,)
        order = np.arange(len(rows), dtype=np.int64)  # (n,)
        if self.shuffle:
            key = (self.seed, self.epoch, index)
            order = permutation(len(rows), *key)
            # What share of the pairs from one chunk a permutation of the whole part would have.
            natural = (len(rows) - 1) / max(self.part_rows - 1, 1)
            _spread(order, rows // self.chunk_rows, natural, key)
        places = np.empty_like(order)  # (n,)
        places[order] = np.arange(len(rows))
        ends = np.cumsum([stop - start for start, stop in chunks])  # (chunks of the window,)
        return Window(chunks, tuple(np.split(places, ends[:-1])), rows[order])

    @cached_property
    def _chunk_order(self) -> Indices:
        return permutation(self.chunks, self.seed, self.epoch)  # (C,)

    def _chunks(self, index: int) -> Indices:
        """The chunks of a window."""
        if not self.shuffle:
            start = index * self.window_chunks
            return np.arange(start, min(start + self.window_chunks, self.chunks), dtype=np.int64)
        return self._chunk_order[index :: self.windows]  # dealt like cards: none has two fewer than another


def _spread(order: Indices, chunk: Indices, natural: float, key: tuple[int, ...]) -> None:
    """Part rows of one chunk that follow each other in `order` (n,), but for a `natural` share of such pairs.

    chunk (n,) is the chunk of each of the n rows. A row that must go changes places with another, drawn by the
    key, where both have neighbours from other chunks; in a window of so few chunks that none is found, it stays.
    """
    ordered = chunk[order]  # (n,)
    pairs = np.flatnonzero(ordered[1:] == ordered[:-1]) + 1  # (pairs,)
    limit = np.uint64(min(int(natural * 2.0**64), MASK))
    moving = pairs[hashes(len(pairs), *key, 1) > limit]  # (moving,)
    if natural >= 1 or not len(moving):
        return
    of = ordered.tolist()  # Python's own numbers: the loop looks at them one by one
    last = len(of) - 1
    drawn = (hashes(len(moving) * _TRIES, *key, 2) % np.uint64(len(of))).reshape(-1, _TRIES).tolist()  # (moving, tries)

    def alone(chunk_number: int, place: int) -> bool:
        return (place == 0 or of[place - 1] != chunk_number) and (place == last or of[place + 1] != chunk_number)

    for place, others in zip(moving.tolist(), drawn, strict=True):
        if of[place] != of[place - 1]:
            continue  # its neighbour has gone
        for other in others:
            if of[other] == of[place] or not alone(of[other], other):
                continue  # nothing gained, or it would be torn out of a pair that is to stay
            if abs(other - place) > 1 and alone(of[other], place) and alone(of[place], other):
                of[place], of[other] = of[other], of[place]
                order[place], order[other] = order[other], order[place]
                break
