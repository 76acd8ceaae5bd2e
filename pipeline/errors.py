"""Exceptions of the data pipeline.

Each message is one line: what was expected, what was found, where, and what to do.
"""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Literal

from logpose.common.errors import LogposeError, is_thread_limit, printable, reason_of

# A closed set, stored in failures.csv:
#   unreadable     the file cannot be opened (missing, permission, directory): a rerun tries it again
#   empty          no bytes at all
#   not-an-image   unknown format
#   broken         known format with damaged or missing data
#   too-large      more pixels than the decompression-bomb limit, or than memory holds
#   changed        the file has changed since the build listed it
FailureKind = Literal["unreadable", "empty", "not-an-image", "broken", "too-large", "changed"]


class PipelineError(LogposeError):
    """Base class of the errors of `pipeline`. Exit code 2: wrong use or bad input."""


class ListingError(PipelineError):
    """The folder of images is missing, empty, or not laid out as expected."""


class DecodeError(PipelineError):
    """One file could not be decoded.

    kind    a `FailureKind`
    reason  one line of text
    """

    def __init__(self, kind: FailureKind, reason: str) -> None:
        super().__init__(kind, reason)  # both in args, so that the error can be pickled
        self.kind: FailureKind = kind
        self.reason = printable(reason)

    def __str__(self) -> str:
        return f"{self.kind}: {self.reason}"


class AccessError(PipelineError):
    """What is at a path may not be read: its permissions, or those of the folders above it, say so."""


class ReadError(PipelineError):
    """The system failed to read a file or folder, which says nothing about what is in it. Exit code 1.

    path    what was read, and where: a worker of a cluster is named as well
    reason  the system's reason
    remedy  what to do about it
    """

    exit_code = 1

    def __init__(self, path: str, reason: str, remedy: str) -> None:
        super().__init__(path, reason, remedy)  # all in args, so that the error can be pickled
        self.path, self.reason, self.remedy = path, reason, remedy

    def __str__(self) -> str:
        return printable(
            f"expected to read {self.path}, found {self.reason}: {self.remedy}, and run the same command again"
        )


class DatasetError(PipelineError):
    """The dataset is missing, unsealed, of another version, or damaged."""


class DatasetChangedError(DatasetError):
    """Another program has replaced the dataset while it was read. Exit code 1."""

    exit_code = 1


def short_of_resources(error: object, path: str | PathLike[str]) -> ReadError | None:
    """The error to raise where a library met a limit of the system, which says nothing about what it read."""
    if isinstance(error, MemoryError):
        return ReadError(str(path), "too little memory", "free some memory or use fewer --workers")
    if is_thread_limit(error):
        remedy = "use fewer --workers, or raise its limit (ulimit -u)"
        return ReadError(str(path), "that the system starts no more threads", remedy)
    return None


def damaged_metadata(expected: str, found: object, where: str | PathLike[str]) -> PipelineError:
    """Make the error for metadata that is not as a build wrote it; if it could not be read, that is the error."""
    if isinstance(found, AccessError | ReadError):
        return found
    if fault := short_of_resources(found, where):
        return fault
    found = reason_of(found) if isinstance(found, BaseException) else found
    return DatasetError(
        f"expected {expected}, found {found} in {where}: the metadata is damaged, build the dataset again with"
        " --overwrite"
    )


@dataclass(frozen=True)
class Damage:
    """A chunk that cannot be read, or whose content differs from what was built.

    split   'train' or 'val'
    array   'images', 'labels' or 'paths'
    chunk   its index in the array
    rows    (start, stop) of its rows
    file    the file it is stored in: a shard, with several chunks, or a file of its own
    reason  one line of text
    paths   the source images of these rows; empty where these cannot be read either
    """

    split: str
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
        what = f"{self.split} {self.array}, chunk {self.chunk} in {self.file}, rows {start}..{stop - 1}"
        return printable(f"{what} ({made_from or 'of unknown images'}): {self.reason}")


class DamageError(DatasetError):
    """A chunk of the dataset is damaged or missing."""

    def __init__(self, damage: Damage, dataset: Path) -> None:
        super().__init__(damage, dataset)  # both in args, so that the error can be pickled
        self.damage = damage
        self.dataset = dataset

    def __str__(self) -> str:
        return printable(f"expected undamaged data, found damage in {self.damage}; run 'logpose verify {self.dataset}'")


class OutputExistsError(PipelineError):
    """The destination exists already."""


class OptionError(PipelineError):
    """An option is out of its range."""


class BuildError(PipelineError):
    """The build failed although the input is valid: disk full, workers lost, … Exit code 1."""

    exit_code = 1


class TooManyFailures(BuildError):
    """More images could not be decoded than `max_failures` allows."""
