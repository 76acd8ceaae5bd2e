"""What can be wrong with images and datasets.

    PipelineError             exit code 2: wrong use or bad input
    ├── ListingError          the folder of images is not laid out as one
    ├── DecodeError           one file is not an image we can read; carries a kind and a reason
    ├── DatasetError          the dataset is absent, unsealed, of another version, or damaged
    │   └── DamageError       a chunk of it is damaged or missing; carries the `Damage`
    ├── OutputExistsError     the place to write to is taken
    ├── BusyError             another process is at work on the same output
    ├── OptionError           an option out of its range
    └── BuildError            exit code 1: the input was fine, the work failed (disk full, workers gone, …)
        └── TooManyFailures   more unreadable images than the caller allows

Each message is one line: what was expected, what was found, where, and what to do.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from logpose.common.errors import LogposeError, printable

# A closed set, so that a failures.csv can be grouped by it:
#   unreadable     the file system would not give us the bytes (vanished, permission, directory)
#   empty          no bytes at all
#   not-an-image   no decoder knows the format
#   broken         a known format with damaged or missing data
#   too-large      more pixels than the decompression-bomb limit, or than memory holds
#   changed        the file is no longer the one that was listed when the build began
FailureKind = Literal["unreadable", "empty", "not-an-image", "broken", "too-large", "changed"]

class PipelineError(LogposeError):
    """Root of the errors of `pipeline`."""


class ListingError(PipelineError):
    """The folder of images is missing, empty, or not laid out as classes."""


class DecodeError(PipelineError):
    """One file could not be turned into pixels.

    kind is one of `FailureKind`; reason is one line for a person.
    """

    def __init__(self, kind: FailureKind, reason: str) -> None:
        super().__init__(kind, reason)  # both in args, so that the error survives pickling
        self.kind: FailureKind = kind
        self.reason = printable(reason)

    def __str__(self) -> str:
        return f"{self.kind}: {self.reason}"


class DatasetError(PipelineError):
    """The dataset cannot be used as it is."""


@dataclass(frozen=True)
class Damage:
    """A chunk that cannot be read, or that is not what was built.

    part    'train' or 'val'
    array   'images', 'labels' or 'paths'
    chunk   its number in the array
    rows    (start, stop) of the rows it holds
    file    where it lies: a shard, in which it is one of several, or a file of its own
    reason  what is wrong with it, one line
    paths   the images that these rows were made from; empty where that cannot be read either
    """

    part: str
    array: str
    chunk: int
    rows: tuple[int, int]
    file: Path
    reason: str
    paths: tuple[str, ...]

    def __str__(self) -> str:
        start, stop = self.rows
        more = len(self.paths) - 2
        made_from = ", ".join(self.paths[:2]) + (f" and {more:,} more" if more > 0 else "")
        what = f"{self.part} {self.array}, chunk {self.chunk} in {self.file}, rows {start}..{stop - 1}"
        return printable(f"{what} ({made_from or 'of unknown images'}): {self.reason}")


class DamageError(DatasetError):
    """A chunk of the dataset cannot be read."""

    def __init__(self, damage: Damage, dataset: Path) -> None:
        super().__init__(damage, dataset)  # both in args, so that the error survives pickling
        self.damage = damage
        self.dataset = dataset

    def __str__(self) -> str:
        return printable(f"expected whole data, found damage in {self.damage}; run 'logpose verify {self.dataset}'")


class OutputExistsError(PipelineError):
    """Something is already where the output should go."""


class BusyError(PipelineError):
    """Another process is at work on the same output."""


class OptionError(PipelineError):
    """An option has a value outside its range."""


class BuildError(PipelineError):
    """The work failed, although the input was fine."""

    exit_code = 1


class TooManyFailures(BuildError):
    """More images are unreadable than `max_failures` allows."""
