"""Copies among a dataset's images, from its duplicates.csv: which groups are worth a look."""

import csv
import heapq
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from jobs.errors import JobError
from pipeline.dataset.schema import DUPLICATES_FILE, DUPLICATES_HEADER


class Copy(NamedTuple):
    """One image of a group, and how it differs from the first of it."""

    part: str
    label: str
    path: str
    how: str


class Group(NamedTuple):
    """Images that are copies of one another."""

    number: int
    copies: list[Copy]

    @property
    def labels_differ(self) -> bool:
        return len({copy.label for copy in self.copies}) > 1

    @property
    def leaks(self) -> bool:
        """Whether some are to train on and some to validate."""
        return len({copy.part for copy in self.copies}) > 1


def pick_groups(dataset: Path, most: int) -> list[Group]:
    """Some groups of copies: first those whose labels differ, then those on both sides of the split, then large ones.

    Only as many are in memory. None where the file is gone. Raises JobError where it is not what a build writes.
    """
    return heapq.nsmallest(most, _groups(dataset / DUPLICATES_FILE), key=_interest)


def _interest(group: Group) -> tuple[bool, bool, int, int]:
    return not group.labels_differ, not group.leaks, -len(group.copies), group.number


def _groups(path: Path) -> Iterator[Group]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            if tuple(rows.fieldnames or ()) != DUPLICATES_HEADER:
                raise ValueError("other columns")
            for number, members in groupby(rows, lambda row: int(row["group"])):
                yield Group(number, [Copy(*(row[name] for name in Copy._fields)) for row in members])
    except FileNotFoundError:
        return
    except (ValueError, KeyError, TypeError) as error:
        raise JobError(f"expected groups of copies, found {error} in {path}; build the dataset again") from error
