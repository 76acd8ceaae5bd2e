"""Write and read failures.csv, and write duplicates.csv, in the folder of a dataset."""

from __future__ import annotations

import csv
import io
import zlib
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt

from logpose.common.errors import escaped, reason_of
from logpose.common.files import read_regular, write_atomically
from pipeline.build.journal import Failure
from pipeline.dataset.limits import MAX_REPORT_BYTES
from pipeline.dataset.schema import DUPLICATES_FILE, DUPLICATES_HEADER, FAILURES_FILE, FAILURES_HEADER, DuplicateCounts
from pipeline.dataset.store import read_attributes
from pipeline.dataset.verify import damaged_reports
from pipeline.duplicates.groups import DuplicateGroups
from pipeline.errors import DatasetError, FailureKind
from pipeline.faults import read_stored
from pipeline.scan.source_files import Source


def write_failures(dataset: Path, failures: Iterable[Failure]) -> int:
    """Write failures.csv: a row for each file that could not be read. Returns its CRC-32."""
    rows = ((failure.path, failure.kind, failure.reason) for failure in failures)
    return _write(dataset / FAILURES_FILE, FAILURES_HEADER, rows)


def read_failures(dataset: Path) -> list[Failure]:
    """Read failures.csv: the files that the dataset left out, sorted by path.

    Raises DatasetError if the file is missing or damaged, AccessError and ReadError if it cannot be read.
    """
    path = dataset / FAILURES_FILE
    try:
        content = read_stored(partial(read_regular, path, MAX_REPORT_BYTES), path)
        if path in damaged_reports(dataset, read_attributes(dataset)):
            raise ValueError("another file than the build wrote")
        rows = csv.DictReader(io.StringIO(content.decode(), newline=""))
        return [Failure(row["path"], cast(FailureKind, row["kind"]), row["reason"]) for row in rows]
    except (OSError, ValueError, csv.Error, KeyError) as error:
        found = reason_of(error) if isinstance(error, OSError) else f"{type(error).__name__} {error}"
        raise DatasetError(
            f"expected a table of {', '.join(FAILURES_HEADER)}, found {found} at {path}: restore it from a backup,"
            " or build the dataset again with --overwrite"
        ) from error


def write_duplicates(
    dataset: Path, source: Source, groups: DuplicateGroups, in_val: npt.NDArray[np.bool_]
) -> tuple[DuplicateCounts, int]:
    """Write duplicates.csv: a row for each image with near-duplicates, group by group, the lead of each group first.

    Returns the counts, and the CRC-32 of the file.
    in_val (N,) is True for the images of the validation split. In the table, `how` is how an image differs from its
    lead, and `labels` is 'same' if all images of the group have one label, otherwise 'differ'.
    """
    rows = []
    counts = {"labels_differ": 0, "leaks": 0}
    members_of = _members(groups.representative)
    for number, members in enumerate(members_of, 1):
        same = len({source.files[file].label for file in members}) == 1
        counts["labels_differ"] += not same
        if not in_val[members].all():
            counts["leaks"] += int(in_val[members].sum())
        for file in members:
            label = source.class_names[source.files[file].label]
            split, path = "val" if in_val[file] else "train", escaped(source.files[file].path)
            rows.append((number, split, label, path, groups.transforms[file], "same" if same else "differ"))
    crc = _write(dataset / DUPLICATES_FILE, DUPLICATES_HEADER, rows)
    return DuplicateCounts(len(members_of), len(rows), **counts), crc


def _members(lead: npt.NDArray[np.int64]) -> list[list[int]]:
    """The members of each group of two or more, in order, from the lead (N,) of each file."""
    members: dict[int, list[int]] = {}
    for file in np.flatnonzero(lead != np.arange(len(lead))).tolist():
        members.setdefault(int(lead[file]), [int(lead[file])]).append(file)
    return [members[first] for first in sorted(members)]


def _write(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> int:
    """Write a table; return the CRC-32 of the file."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    content = text.getvalue().encode()
    write_atomically(path, content, shared=True)
    return zlib.crc32(content)
