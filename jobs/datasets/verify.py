"""Check a dataset: read every chunk, and report each damage."""

import csv
import io
from collections.abc import Iterable
from pathlib import Path

from jobs.console.output import emit, say
from jobs.console.progress import bar, plural
from jobs.options import VerifyOptions
from logpose.common.errors import printable
from logpose.common.files import write_replaceable
from logpose.common.outputs import replaceable_file
from pipeline.dataset.verify import verify_dataset
from pipeline.errors import Damage

MAX_SHOWN = 20  # damaged chunks to print; a lost disk has thousands
REPORT_HEADER = ("part", "array", "chunk", "file", "row", "path", "reason")
REPORT_KIND = (",".join(REPORT_HEADER).encode(), "a verification report")


def verify(dataset: Path, options: VerifyOptions) -> int:
    """Read every chunk of `dataset` and return the exit code: 1 if anything is damaged or missing.

    `options.report` receives a CSV with a row for each image in a damaged chunk.
    Raises DatasetError if the dataset cannot be opened, PathError if the CSV would replace another file.
    """
    if options.report is not None:
        replaceable_file(options.report, *REPORT_KIND)
    with bar("verifying", "chunks", 0, ends=False) as progress:
        report = verify_dataset(dataset, lambda done, total: progress.update(done, total=total))
    for damage in report.damage[:MAX_SHOWN]:
        say(f"damaged: {damage}")
    if len(report.damage) > MAX_SHOWN:
        say(f"damaged: and {len(report.damage) - MAX_SHOWN:,} more chunks")
    for path in report.missing:
        say(printable(f"missing: {path}"))
    for path in report.damaged_reports:
        say(printable(f"damaged: {path} is not as the build wrote it"))
    if options.report is not None:
        _write_report(options.report, report.damage)
        say(printable(f"each image in a damaged chunk: {options.report}"))
    rows = f"{report.rows['train']:,} + {report.rows['val']:,} images in {plural(report.chunks, 'chunk')}"
    if report.ok:
        say(printable(f"{dataset} is intact: {rows}"))
    else:
        if report.content_matches is False:
            say("damaged: every chunk can be read, but the content differs from what was built")
        found = plural(len(report.damage) + len(report.missing) + len(report.damaged_reports) or 1, "problem")
        say(printable(f"{dataset}: {found} in {rows}"))
        say("build it again with --overwrite, or restore it from a backup")
    emit(
        {
            "dataset": dataset,
            "ok": report.ok,
            "train": report.rows["train"],
            "val": report.rows["val"],
            "chunks": report.chunks,
            "damaged": [*map(str, report.damage), *map(str, report.damaged_reports)],
            "missing": report.missing,
            "content_matches": report.content_matches,
        }
    )
    return 0 if report.ok else 1


def _write_report(path: Path, damages: Iterable[Damage]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(REPORT_HEADER)
    for damage in damages:
        start, stop = damage.rows
        for row, image in zip(range(start, stop), damage.paths or [""] * (stop - start), strict=True):
            writer.writerow((damage.split, damage.array, damage.chunk, damage.file, row, image, damage.reason))
    write_replaceable(path, text.getvalue(), *REPORT_KIND)
