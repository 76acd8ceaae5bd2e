"""Select groups of near-duplicates from a dataset's duplicates.csv."""

import csv
import heapq
from collections.abc import Iterator
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from jobs.errors import JobError
from logpose.common.files import open_text
from pipeline.dataset.schema import DUPLICATES_FILE, DUPLICATES_HEADER
from pipeline.dataset.store import read_attributes
from pipeline.dataset.verify import damaged_reports


class NearDuplicate(NamedTuple):
    """An image of a group. `how` says how it differs from the first one; empty for the first."""

    split: str
    label: str
    path: str
    how: str


class DuplicateGroup(NamedTuple):
    """Images that are near-duplicates of one another."""

    number: int
    members: list[NearDuplicate]

    @property
    def labels_differ(self) -> bool:
        """Whether the images have more than one label."""
        return len({member.label for member in self.members}) > 1

    @property
    def leaks(self) -> bool:
        """Whether the group has images in both splits."""
        return len({member.split for member in self.members}) > 1


def select_groups(dataset: Path, count: int) -> list[DuplicateGroup]:
    """Up to `count` groups: first those whose labels differ, then those in both splits, then the largest.

    Only so many groups are in memory at a time. Returns none where duplicates.csv is missing.
    Raises JobError where it is damaged.
    """
    path = dataset / DUPLICATES_FILE
    if path in damaged_reports(dataset, read_attributes(dataset)):
        raise JobError(f"expected groups of near-duplicates in {path}, found another file; build the dataset again")
    return heapq.nsmallest(count, _read_groups(path), key=_priority)


def _priority(group: DuplicateGroup) -> tuple[bool, bool, int, int]:
    return not group.labels_differ, not group.leaks, -len(group.members), group.number


def _read_groups(path: Path) -> Iterator[DuplicateGroup]:
    try:
        with open_text(path) as file:
            rows = csv.DictReader(iter(partial(file.readline, 2**20), ""))  # a hostile file may be one long line
            if tuple(rows.fieldnames or ()) != DUPLICATES_HEADER:
                raise ValueError("other columns")
            for number, members in groupby(rows, lambda row: int(row["group"])):
                yield DuplicateGroup(
                    number, [NearDuplicate(row["part"], row["label"], row["path"], row["how"]) for row in members]
                )
    except FileNotFoundError:
        return
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise JobError(
            f"expected groups of near-duplicates in {path}, found {error}; build the dataset again"
        ) from error
