"""Wall-clock accounting of an epoch; its phases add up to the total."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from jobs.training.metrics import EpochRow
from pipeline.loader.reader import StreamTimes

BOTTLENECK_FRACTION = 0.1  # data is the bottleneck of an epoch that waits for it longer than this

Phase: TypeAlias = Literal["compute", "validation", "save"]


@dataclass
class EpochTimes:
    """Seconds of one epoch so far; the names are columns of metrics.csv.

    `seconds` is the wall time, the sum of compute, wait, exchange, validation, save, and everything else, such as the
    progress bar. Read, decode and copy are seconds of the reader threads, which run in parallel, so they do not belong
    to that sum. Validation includes reading its images. Of a training on ranks, all but validation and saving are
    means over the ranks.
    """

    seconds: float = 0.0
    compute_seconds: float = 0.0  # training steps
    wait_seconds: float = 0.0  # for training batches
    exchange_seconds: float = 0.0  # for the sums of other ranks
    validation_seconds: float = 0.0
    save_seconds: float = 0.0  # within the epoch, and for the files written at the end of the previous one
    read_seconds: float = 0.0
    decode_seconds: float = 0.0
    copy_seconds: float = 0.0  # putting images in their order

    def add(self, seconds: dict[str, float]) -> None:
        """Add seconds by column: `{"compute": 0.5}` is added to `compute_seconds`."""
        for column, spent in seconds.items():
            name = f"{column}_seconds"
            setattr(self, name, getattr(self, name) + spent)

    @property
    def training(self) -> float:
        """Seconds without validation and saving."""
        return self.seconds - self.validation_seconds - self.save_seconds


class EpochClock:
    """Adds all time to `times.seconds`, and that in a `with clock(phase)` block also to the phase of the innermost one.

    Waiting, reading, decoding and copying are measured by the batch stream: see `add_stream`. To begin a new epoch,
    replace `times` right after a block.
    """

    def __init__(self, times: EpochTimes) -> None:
        self.times = times
        self._phase: Phase | None = None
        self._last_lap = time.monotonic()
        self._stream = StreamTimes()

    @contextmanager
    def __call__(self, phase: Phase) -> Iterator[None]:
        """Add the time of the block to `phase`, except for blocks inside it."""
        self.lap()
        outer, self._phase = self._phase, phase
        try:
            yield
        finally:
            self.lap()
            self._phase = outer

    def lap(self) -> None:
        """Add the time since the last call."""
        now = time.monotonic()
        spent, self._last_lap = now - self._last_lap, now
        self.times.seconds += spent
        if self._phase:
            self.times.add({self._phase: spent})

    def add_stream(self, total: StreamTimes) -> None:
        """Add what the stream's running totals have grown by since the last call."""
        self.times.add(total.since(self._stream)._asdict())
        self._stream = total


class Bottleneck(NamedTuple):
    """What the readers spend most of their time on while training waits for data, and what helps."""

    activity: str
    remedy: str


REMEDIES = {
    "reading": "use a faster disk, or more --workers",
    "decoding": "use more --workers, or build --codec none",
    "copying": "use more --workers",
}


def bottleneck(rows: Sequence[EpochRow]) -> Bottleneck | None:
    """Return why these epochs waited for data longer than BOTTLENECK_FRACTION of their time, or None."""
    if sum(row.wait_seconds for row in rows) <= BOTTLENECK_FRACTION * sum(row.seconds for row in rows):
        return None
    seconds = _reader_seconds(rows)
    activity = max(seconds, key=seconds.__getitem__)
    return Bottleneck(activity, REMEDIES[activity])


def time_lines(row: EpochRow) -> list[str]:
    """Return where the epoch's time went, as lines of text: the phases in percent, then the reader threads' seconds."""
    phases = phase_seconds([row]).items()
    lines = ["  time: " + ", ".join(f"{phase} {seconds / row.seconds:.1%}" for phase, seconds in phases)]
    if readers := {name: seconds for name, seconds in _reader_seconds([row]).items() if seconds >= 0.005}:
        lines.append("  readers: " + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in readers.items()))
    return lines


def phase_seconds(rows: Sequence[EpochRow]) -> dict[str, float]:
    """Return the seconds of each phase; `wait` is for training batches, `other` what no phase recorded.

    `exchange` is only there for a training on ranks.
    """
    seconds = {phase: _total(rows, phase) for phase in ("compute", "wait", "exchange", "validation", "save")}
    if not seconds["exchange"]:
        del seconds["exchange"]
    seconds["other"] = max(0.0, sum(row.seconds for row in rows) - sum(seconds.values()))  # rounding: never negative
    return seconds


def _reader_seconds(rows: Sequence[EpochRow]) -> dict[str, float]:
    """Seconds of the reader threads, by activity."""
    activities = {"reading": "read", "decoding": "decode", "copying": "copy"}
    return {activity: _total(rows, column) for activity, column in activities.items()}


def _total(rows: Sequence[EpochRow], column: str) -> float:
    return sum(getattr(row, f"{column}_seconds") for row in rows)
