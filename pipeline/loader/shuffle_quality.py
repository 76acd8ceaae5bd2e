"""How well an epoch shuffles: runs of rows from one chunk, or of one class, beside those of true permutations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.loader.epoch_order import EpochOrder, Indices

PERMUTATIONS = 400  # to know the middle 99 % of a figure
BAND = (0.005, 0.995)


@dataclass(frozen=True)
class Runs:
    """Rows that follow each other and have something in common.

    neighbours  pairs of rows, one right behind the other, that do
    longest     the most rows in a row that do
    """

    neighbours: int
    longest: int


@dataclass(frozen=True)
class Comparison:
    """The runs of an epoch, and the lowest and highest of the middle 99 % of true permutations."""

    found: Runs
    low: Runs
    high: Runs

    @property
    def within(self) -> bool:
        """Whether the number of neighbours, and with it the mean run, is one that a true permutation could have."""
        return self.low.neighbours <= self.found.neighbours <= self.high.neighbours

    @property
    def longest_within(self) -> bool:
        return self.low.longest <= self.found.longest <= self.high.longest


def runs_of(values: npt.NDArray[np.int64]) -> Runs:
    """The runs of equal values in (N,)."""
    if not len(values):
        return Runs(0, 0)
    ends = np.flatnonzero(values[1:] != values[:-1])  # (runs - 1,): the last place of each run but the last
    lengths = np.diff(ends, prepend=-1, append=len(values) - 1)  # (runs,)
    return Runs(len(values) - len(lengths), int(lengths.max()))


def epoch_order(plan: EpochOrder) -> Indices:
    """All rows (N,) of an epoch in the order in which they come."""
    return np.concatenate([plan.window(index).rows for index in range(plan.windows)])


def compare(values: npt.NDArray[np.int64], order: Indices, permutations: int = PERMUTATIONS) -> Comparison:
    """The runs of values[order], values (N,) belonging to the rows, beside those of random permutations of them."""
    generator = np.random.default_rng(0)
    drawn = [runs_of(generator.permutation(values)) for _ in range(permutations)]

    def edge(rank_slice: float) -> Runs:
        neighbours, longest = (
            int(np.quantile([getattr(runs, name) for runs in drawn], rank_slice, method="nearest"))
            for name in ("neighbours", "longest")
        )
        return Runs(neighbours, longest)

    return Comparison(runs_of(values[order]), edge(BAND[0]), edge(BAND[1]))
