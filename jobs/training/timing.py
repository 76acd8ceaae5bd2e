"""Where an epoch's time goes: every moment is charged once, and a line says how the parts share it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from jobs.training.metrics import EpochRow

BOTTLENECK = 0.1  # of the epoch: who waits longer than that for data would train faster with faster data
REMEDIES = {
    "reading": "a faster or a local disk helps, or more --workers",
    "decoding": "more --workers help, or a dataset built with --codec none",
    "copying": "more --workers help",
}
INDENT = " " * len("epoch 1/1")


@dataclass
class EpochTimes:
    """Seconds of one epoch so far; the names are columns of metrics.csv.

    `seconds` is the wall time, all of it: compute, wait, validation and save are parts of it, and what is left
    are bars, sums and the clock itself. Read, decode and copy are seconds of the threads that fetch the images
    to train on. They go by beside the rest, so they are no part of the sum. What validation reads and waits for
    is within validation.
    """

    seconds: float = 0.0
    compute_seconds: float = 0.0  # training steps
    wait_seconds: float = 0.0  # for images to train on
    validation_seconds: float = 0.0
    save_seconds: float = 0.0  # within the epoch, and what the end of the epoch before wrote and drew
    read_seconds: float = 0.0
    decode_seconds: float = 0.0
    copy_seconds: float = 0.0  # putting images in their order

    @property
    def training(self) -> float:
        """Seconds of the training part: neither validation nor saving."""
        return self.seconds - self.validation_seconds - self.save_seconds


class Stopwatch:
    """Cuts the time into laps without a gap: what is not in one of them is in the next."""

    def __init__(self) -> None:
        self.began = time.monotonic()

    def lap(self) -> float:
        """Seconds since the last lap."""
        now = time.monotonic()
        spent, self.began = now - self.began, now
        return spent


def time_lines(row: EpochRow) -> list[str]:
    """How the parts share the epoch and, where it waits for data, what would help."""
    parts = {
        "compute": row.compute_seconds,
        "validation": row.validation_seconds,
        "waiting for data": row.wait_seconds,
        "saving": row.save_seconds,
    }
    parts["other"] = max(0.0, row.seconds - sum(parts.values()))  # rounding may leave a little less than nothing
    shares = ", ".join(f"{name} {100 * seconds / row.seconds:.1f} %" for name, seconds in parts.items())
    behind = _behind([row])
    threads = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in behind.items() if seconds >= 0.005)
    lines = [f"{INDENT}time: {shares}" + (f"; behind it: {threads}" if threads else "")]
    if most := bottleneck([row]):
        lines.append(f"{INDENT}data is the bottleneck: {most} takes most of the readers' time; {REMEDIES[most]}")
    return lines


def bottleneck(rows: Sequence[EpochRow]) -> str:
    """What takes the readers longest, a key of REMEDIES, if these epochs have waited for their data; else empty."""
    if sum(row.wait_seconds for row in rows) <= BOTTLENECK * sum(row.seconds for row in rows):
        return ""
    behind = _behind(rows)
    return max(behind, key=behind.__getitem__)


def _behind(rows: Sequence[EpochRow]) -> dict[str, float]:
    """Seconds of the threads that fetch the images."""
    return {
        "reading": sum(row.read_seconds for row in rows),
        "decoding": sum(row.decode_seconds for row in rows),
        "copying": sum(row.copy_seconds for row in rows),
    }
