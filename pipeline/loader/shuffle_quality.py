"""Measure how well an epoch shuffles: runs of rows from one chunk or class, compared with random permutations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.loader.epoch_order import EpochOrder, Indices

PERMUTATIONS = 400  # enough to estimate the middle 99 %
QUANTILES = (0.005, 0.995)


@dataclass(frozen=True)
class Runs:
    """Runs of consecutive rows with equal values.

    neighbours  number of pairs of consecutive rows with equal values
    longest     rows of the longest run
    """

    neighbours: int
    longest: int


@dataclass(frozen=True)
class Comparison:
    """The runs of an epoch, and the bounds of the middle 99 % of random permutations."""

    found: Runs
    low: Runs
    high: Runs

    @property
    def within(self) -> bool:
        """Whether the number of neighbours, and so the mean length of a run, is that of a random permutation."""
        return self.low.neighbours <= self.found.neighbours <= self.high.neighbours

    @property
    def longest_within(self) -> bool:
        """Whether the longest run is that of a random permutation."""
        return self.low.longest <= self.found.longest <= self.high.longest


def runs_of(values: npt.NDArray[np.int64]) -> Runs:
    """The runs of equal values in an array (N,)."""
    if not len(values):
        return Runs(0, 0)
    ends = np.flatnonzero(values[1:] != values[:-1])  # (runs - 1,): last place of each run, except the last
    lengths = np.diff(ends, prepend=-1, append=len(values) - 1)  # (runs,)
    return Runs(len(values) - len(lengths), int(lengths.max()))


def all_rows(order: EpochOrder) -> Indices:
    """All row numbers (N,) of an epoch, in its order: batch after batch, each micro-batch out of its lane."""
    lanes = [[lane.window(index).rows for index in range(lane.windows)] for lane in order.lanes]
    rows = [np.concatenate(windows) if windows else np.empty(0, np.int64) for windows in lanes]  # (n,) each
    if order.division is None or len(rows) == 1:
        return rows[0]
    division, parts = order.division, []
    for step in range(division.steps):
        for lane, of_lane in enumerate(rows):
            begin = division.position(step, lane)
            parts.append(of_lane[begin : begin + division.micro_rows(step, lane)])
    return np.concatenate(parts)


def compare(values: npt.NDArray[np.int64], rows: Indices, permutations: int = PERMUTATIONS) -> Comparison:
    """Compare the runs of values[rows] (N,) with those of random permutations of the values."""
    generator = np.random.default_rng(0)
    drawn = [runs_of(generator.permutation(values)) for _ in range(permutations)]

    def bound(quantile: float) -> Runs:
        neighbours, longest = (
            int(np.quantile([getattr(runs, name) for runs in drawn], quantile, method="nearest"))
            for name in ("neighbours", "longest")
        )
        return Runs(neighbours, longest)

    return Comparison(runs_of(values[rows]), bound(QUANTILES[0]), bound(QUANTILES[1]))
