"""Sides of a benchmark that take turns, and what came of it: images a second, and ratios within a round."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.worker import ROOT, Worker


class Peer(Worker):
    """`PYTHON -m MODULE ARGUMENTS`: a worker in an interpreter that has other libraries than this one."""

    def __init__(self, python: Path, module: str, *arguments: object) -> None:
        self.started = self.answered = time.perf_counter()
        self._process = subprocess.Popen(
            [str(python), "-m", module, *map(str, arguments)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip


@dataclass(frozen=True)
class Rates:
    """Images a second of each side, round by round."""

    of: dict[str, np.ndarray]  # (rounds,)

    def median(self, side: str) -> float:
        return float(np.median(self.of[side]))

    def best(self, *sides: str) -> str:
        """The fastest of some sides."""
        return max(sides, key=self.median)

    def ratios(self, side: str, other: str) -> np.ndarray:
        """(rounds,): above 1, `side` is the faster of the two."""
        return self.of[side] / self.of[other]

    def ratio(self, side: str, other: str) -> float:
        """The median of the ratios."""
        return round(float(np.median(self.ratios(side, other))), 3)

    def print(self, ours: str) -> None:
        """A table of all sides, each beside the one named."""
        wide = max(map(len, self.of))
        print(f"\n{'':{wide}} {'images/s':>10}  {'of the rounds':16}  {ours} / this  of the rounds")
        for side, rates in self.of.items():
            ratios = self.ratios(ours, side)  # (rounds,)
            print(
                f"{side:{wide}} {self.median(side):10,.0f}  {rates.min():7,.0f} to {rates.max():6,.0f}"
                f"  {self.ratio(ours, side):{len(ours) + 7}.3f}  {ratios.min():6.3f} to {ratios.max():6.3f}"
            )


def in_turns(sides: Mapping[str, Callable[[], float]], images: Mapping[str, int], rounds: int) -> Rates:
    """Every side once a round, A B C A B C, after a round to warm up.

    A side returns the seconds that it took for its `images`.
    """
    times: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(-1, rounds):
        for side, work in sides.items():
            os.sync()  # or else whoever waits for the disk waits for what the one before has left to write
            seconds = work()
            if number >= 0:
                times[side].append(seconds)
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
    return Rates({side: images[side] / np.array(seconds) for side, seconds in times.items()})
