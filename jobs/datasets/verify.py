"""Check a dataset: read all of it, and name each damage."""

import csv
import io
from collections.abc import Iterable
from pathlib import Path

from jobs.console.progress import bar, plural
from logpose.common.files import write_atomically
from pipeline.dataset.verify import verify_dataset
from pipeline.errors import Damage

SHOWN = 20  # damaged chunks on the screen; a lost disk has thousands
REPORT_HEADER = ("part", "array", "chunk", "file", "row", "path", "reason")


def verify(dataset: Path, *, report_to: Path | None = None) -> int:
    """Read every chunk of `dataset`; returns 1 if one of them is damaged.

    `report_to` gets a CSV with a row for each image that lies in a damaged chunk.
    """
    with bar("verifying", "chunks", 0, ends=False) as progress:
        report = verify_dataset(dataset, lambda done, total: progress.update(done, total=total))
    for damage in report.damage[:SHOWN]:
        print(f"damaged: {damage}")
    if len(report.damage) > SHOWN:
        print(f"damaged: and {len(report.damage) - SHOWN:,} chunks more")
    for path in report.missing:
        print(f"missing: {path}")
    if report_to is not None:
        _write_report(report_to, report.damage)
        print(f"each image in a damaged chunk: {report_to}")
    rows = f"{report.rows['train']:,} + {report.rows['val']:,} images in {plural(report.chunks, 'chunk')}"
    if report.ok:
        print(f"{dataset} is whole: {rows}")
        return 0
    if report.content_matches is False:
        print("damaged: every chunk can be read, but the content is not what was built")
    found = plural(len(report.damage) + len(report.missing) or 1, "damage")
    print(f"{dataset}: {found} in {rows}; build it again with --overwrite, or restore it from a copy")
    return 1


def _write_report(path: Path, damages: Iterable[Damage]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(REPORT_HEADER)
    for damage in damages:
        start, stop = damage.rows
        for row, made_from in zip(range(start, stop), damage.paths or [""] * (stop - start), strict=True):
            writer.writerow((damage.split, damage.array, damage.chunk, damage.file, row, made_from, damage.reason))
    write_atomically(path, text.getvalue())
