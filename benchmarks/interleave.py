"""Interleaved rounds of a benchmark's sides, and their results: images per second, and ratios within a round."""

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Rates:
    """Images per second of each side, by round."""

    of: dict[str, np.ndarray]  # (rounds,)

    def median(self, side: str) -> float:
        return float(np.median(self.of[side]))

    def best(self, *sides: str) -> str:
        """The fastest of `sides`."""
        return max(sides, key=self.median)

    def ratios(self, side: str, other: str) -> np.ndarray:
        """The ratio in each round: (rounds,). Above 1, `side` is faster."""
        return self.of[side] / self.of[other]

    def ratio(self, side: str, other: str) -> float:
        """The median of the ratios."""
        return round(float(np.median(self.ratios(side, other))), 3)

    def print(self, ours: str) -> None:
        """Print a table of all sides, compared with the side `ours`."""
        wide = max(map(len, self.of))
        print(f"\n{'':{wide}} {'images/s':>10}  {'range':16}  {ours} / this  range")
        for side, rates in self.of.items():
            ratios = self.ratios(ours, side)  # (rounds,)
            print(
                f"{side:{wide}} {self.median(side):10,.0f}  {rates.min():7,.0f} to {rates.max():6,.0f}"
                f"  {self.ratio(ours, side):{len(ours) + 7}.3f}  {ratios.min():6.3f} to {ratios.max():6.3f}"
            )


def interleave(sides: Mapping[str, Callable[[], float]], images: Mapping[str, int], rounds: int) -> Rates:
    """Run every side once a round, A B C A B C, after one warm-up round.

    A side returns the seconds it took for its number of `images`.
    """
    times: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(-1, rounds):
        for side, work in sides.items():
            os.sync()  # so that no side waits for the previous one's writes
            seconds = work()
            if number >= 0:
                times[side].append(seconds)
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
    return Rates({side: images[side] / np.array(seconds) for side, seconds in times.items()})
