"""A folder of images -> a dataset, with what was left out and why."""

import re
from pathlib import Path

from jobs.console.progress import bar, duration, plural
from jobs.errors import JobError
from pipeline.build.build import BuildReport, build_dataset
from pipeline.build.destination import ExistingBuild
from pipeline.build.options import BuildOptions
from pipeline.dataset.schema import DUPLICATES_FILE, FAILURES_FILE


def build(
    images: Path,
    dataset: Path,
    *,
    size: str = "128",
    fit: str = "pad",
    val: float = 0.1,
    seed: int = 0,
    group_copies: bool = True,
    codec: str = "none",
    workers: int | None = None,
    scheduler: str | None = None,
    max_failures: str | None = None,
    overwrite: bool = False,
) -> int:
    """Build `dataset` from the images in `images`; an unfinished one of the same source goes on."""
    options = BuildOptions(
        size=parse_size(size),
        fit=fit,  # type: ignore[arg-type]  # checked by the build
        val=val,
        seed=seed,
        group_copies=group_copies,
        codec=codec,  # type: ignore[arg-type]
        workers=workers,
        scheduler=scheduler,
        max_failures=parse_limit(max_failures),
        overwrite=overwrite,
    )
    with bar("building", "images", 0) as progress:
        read = [0, 0]  # images, of how many

        def show(done: int, total: int, what: str, failed: int) -> None:
            notes = [f"{failed:,} unreadable"] if failed else []
            if what == "images":
                read[:] = done, total
            else:
                notes.append(f"looking for copies: {done / total:.0%}")
            progress.update(read[0], ", ".join(notes), read[1])

        report = build_dataset(images, dataset, options, show)

    classes = plural(len(report.class_names), "class", "classes")
    rows = f"{plural(report.rows['train'], 'image')} to train on, {report.rows['val']:,} to validate"
    took = {
        ExistingBuild.NONE: f"took {duration(report.seconds)}",
        ExistingBuild.UNFINISHED: f"took {duration(report.seconds)}, resumed",
        ExistingBuild.FINISHED: "was finished already, nothing to do",
    }
    print(f"{dataset}: {classes}, {rows}; {took[report.existing]}")
    for line in _remarks(report):
        print(line)
    return 0


def _remarks(report: BuildReport) -> list[str]:
    """What a careful person would want to be told of the images."""
    lines = []
    if report.skipped:
        shown, others = ", ".join(report.skipped[:5]), len(report.skipped) - 5
        lines.append(f"not in a class folder, so left out: {shown}{f' and {others:,} more' if others > 0 else ''}")
    if report.failures:
        failures = plural(len(report.failures), "file")
        lines.append(f"{failures} could not be read and left out; the reasons are in {report.path / FAILURES_FILE}")
    copies = report.duplicates
    if copies is not None and copies.groups:
        found = [f"{plural(copies.images, 'image')} in {plural(copies.groups, 'group')} of copies"]
        if not report.has_splits:
            found.append("each group on one side of the split")
        elif copies.leaks:
            found.append(f"{copies.leaks:,} of {report.rows['val']:,} to validate are copies of some to train on")
        else:
            found.append("none across train and val")
        if copies.labels_differ:
            found.append(f"{plural(copies.labels_differ, 'group')} with different labels")
        lines.append(f"{'; '.join(found)}: see {report.path / DUPLICATES_FILE}")
    return lines


def parse_size(text: str) -> tuple[int, int]:
    """`128` or `160x120` (width x height) as (height, width)."""
    match = re.fullmatch(r"(\d{1,5})(?:[x×](\d{1,5}))?", text.strip().lower())
    if not match:
        raise JobError(f"--size {text}: expected a number or WIDTHxHEIGHT, such as 128 or 160x120")
    width, height = match[1], match[2] or match[1]
    return int(height), int(width)


def parse_limit(text: str | None) -> int | float | None:
    """`5` is a count of files, `5%` a share of them."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)|(\d+(?:\.\d+)?) ?%", text.strip())
    if not match:
        raise JobError(f"--max-failures {text}: expected a count such as 5, or a percentage such as 5%")
    return int(match[1]) if match[1] else float(match[2]) / 100
