"""(seed, epoch) -> which rows, in which order. Pure functions: no state, nothing drawn in advance.

An epoch reads the chunks of a part in shuffled order, a window of them at a time, and shuffles the rows
within each window. Rows are stored in random order already, so every window, indeed every chunk, mixes
the classes; what the windows add is that rows meet in other batches each epoch.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = 2**64 - 1


def _mix(value: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finalizer of SplitMix64: each bit of the input flips about half of the output."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def permutation(count: int, *key: int) -> Indices:
    """A permutation (count,) of 0..count-1 that depends on the key and on nothing else.

    Each index gets a 64-bit hash of (key, index) and they are sorted by it. Ours rather than NumPy's
    generators, whose permutations may change with a release: a seed must mean the same order for good.
    """
    state = np.zeros(1, dtype=np.uint64)
    for word in key:
        state = _mix(state + np.array([(word + _GOLDEN) & _MASK], dtype=np.uint64))
    hashes = _mix(state + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GOLDEN))
    return np.argsort(hashes, kind="stable").astype(np.int64, copy=False)


@dataclass(frozen=True)
class Window:
    """Some chunks that are in memory together, and the order of their rows.

    chunks  (start, stop) rows of each, in the order in which they are laid into the buffer
    order   (n,) int64: which place of the buffer is read first, second, …
    rows    (n,) int64: the rows of the part, in the order in which they are read
    """

    chunks: tuple[tuple[int, int], ...]
    order: Indices
    rows: Indices


@dataclass(frozen=True)
class EpochPlan:
    """The order of one epoch over a part."""

    part_rows: int
    chunk_rows: int
    window_chunks: int
    seed: int
    epoch: int
    shuffle: bool

    @cached_property
    def chunk_order(self) -> Indices:
        count = -(-self.part_rows // self.chunk_rows)
        if not self.shuffle:
            return np.arange(count, dtype=np.int64)
        return permutation(count, self.seed, self.epoch)

    @property
    def windows(self) -> int:
        return -(-len(self.chunk_order) // self.window_chunks)

    @cached_property
    def window_starts(self) -> list[int]:
        """Where in the epoch each window begins, and where the last one ends."""
        sizes = [sum(stop - start for start, stop in self._chunks(index)) for index in range(self.windows)]
        return [0, *accumulate(sizes)]

    def window_at(self, position: int) -> int:
        """The window that holds the row at this position of the epoch."""
        return bisect_right(self.window_starts, position) - 1

    def window(self, index: int) -> Window:
        chunks = self._chunks(index)
        rows = np.concatenate([np.arange(start, stop, dtype=np.int64) for start, stop in chunks])  # (n,)
        order = np.arange(len(rows), dtype=np.int64)  # (n,)
        if self.shuffle:
            order = permutation(len(rows), self.seed, self.epoch, index)
        return Window(chunks, order, rows[order])

    def _chunks(self, index: int) -> tuple[tuple[int, int], ...]:
        chosen = self.chunk_order[index * self.window_chunks : (index + 1) * self.window_chunks]
        starts = (int(chunk) * self.chunk_rows for chunk in chosen)
        return tuple((start, min(start + self.chunk_rows, self.part_rows)) for start in starts)
