"""What became of the files: failures.csv and duplicates.csv in the dataset's folder."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt

from logpose.common.errors import printable
from logpose.common.files import write_atomically
from pipeline.build.journal import Failure
from pipeline.build.source_files import Source
from pipeline.dataset.schema import DUPLICATES_FILE, DUPLICATES_HEADER, FAILURES_FILE, FAILURES_HEADER, DuplicateCounts
from pipeline.duplicates.groups import DuplicateGroups
from pipeline.errors import FailureKind


def write_failures(dest: Path, failures: Iterable[Failure]) -> None:
    """A row for each file that is not in the dataset, and why not."""
    rows = ((failure.path, failure.kind, failure.reason) for failure in failures)
    _write(dest / FAILURES_FILE, FAILURES_HEADER, rows)


def read_failures(dest: Path) -> list[Failure]:
    """What `write_failures` has written."""
    with (dest / FAILURES_FILE).open(encoding="utf-8", newline="") as file:
        return [Failure(row["path"], cast(FailureKind, row["kind"]), row["reason"]) for row in csv.DictReader(file)]


def write_duplicates(
    dest: Path, source: Source, copies: DuplicateGroups, in_val: npt.NDArray[np.bool_]
) -> DuplicateCounts:
    """A row for each image of which there are copies, group by group, each group's first image first.

    in_val (N,) says which side an image is on. `how` says how an image differs from the first of its
    group, `labels` whether all of the group have the same.
    """
    groups = _groups(copies.representative)
    rows = []
    counts = {"labels_differ": 0, "leaks": 0}
    for number, members in enumerate(groups, 1):
        same = len({source.files[file].label for file in members}) == 1
        counts["labels_differ"] += not same
        if not in_val[members].all():
            counts["leaks"] += int(in_val[members].sum())
        for file in members:
            label = source.class_names[source.files[file].label]
            part, path = "val" if in_val[file] else "train", printable(source.files[file].path)
            rows.append((number, part, label, path, copies.transforms[file], "same" if same else "differ"))
    _write(dest / DUPLICATES_FILE, DUPLICATES_HEADER, rows)
    return DuplicateCounts(len(groups), len(rows), **counts)


def _groups(lead: npt.NDArray[np.int64]) -> list[list[int]]:
    """lead (N,) -> the members of each group of two or more, in order."""
    members: dict[int, list[int]] = {}
    for file in np.flatnonzero(lead != np.arange(len(lead))).tolist():
        members.setdefault(int(lead[file]), [int(lead[file])]).append(file)
    return [members[first] for first in sorted(members)]


def _write(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_atomically(path, text.getvalue(), shared=True)
