"""A folder of pictures -> a dataset, with what was left out and why."""

import re
from pathlib import Path

from jobs.cores import usable_cores
from jobs.errors import JobError
from jobs.progress import bar, duration, plural
from pipeline.build import BuildOptions, build_dataset
from pipeline.schema import FAILURES_FILE


def build(
    images: Path,
    dataset: Path,
    *,
    size: str = "128",
    fit: str = "pad",
    val: float = 0.1,
    seed: int = 0,
    workers: int | None = None,
    scheduler: str | None = None,
    max_failures: str | None = None,
    overwrite: bool = False,
) -> int:
    """Build `dataset` from the pictures in `images`; an unfinished one of the same source goes on."""
    options = BuildOptions(
        size=parse_size(size),
        fit=fit,
        val=val,
        seed=seed,
        workers=workers or usable_cores(),
        scheduler=scheduler,
        max_failures=parse_limit(max_failures),
        overwrite=overwrite,
    )
    with bar("building", "pictures", 0) as progress:

        def show(done: int, total: int, failed: int) -> None:
            progress.update(done, f"{failed:,} unreadable" if failed else "", total)

        report = build_dataset(images, dataset, options, show)

    classes = plural(len(report.class_names), "class", "classes")
    rows = f"{plural(report.rows['train'], 'picture')} to train on, {report.rows['val']:,} to validate"
    gone_on = ", going on with what was there" if report.resumed else ""
    print(f"{dataset}: {classes}, {rows}; took {duration(report.seconds)}{gone_on}")
    if report.skipped:
        shown, others = ", ".join(report.skipped[:5]), len(report.skipped) - 5
        print(f"not in a class folder, so left out: {shown}{f' and {others:,} more' if others > 0 else ''}")
    if report.failures:
        failures = plural(len(report.failures), "file")
        print(f"{failures} could not be read and left out; the reasons are in {dataset / FAILURES_FILE}")
    return 0


def parse_size(text: str) -> tuple[int, int]:
    """`128` or `160x120` (width x height) as (height, width)."""
    match = re.fullmatch(r"(\d{1,5})(?:[x×](\d{1,5}))?", text.strip().lower())
    if not match:
        raise JobError(f"--size {text}: expected a number or WIDTHxHEIGHT, such as 128 or 160x120")
    width, height = match[1], match[2] or match[1]
    return int(height), int(width)


def parse_limit(text: str | None) -> int | float | None:
    """`5` is a count of files, `0.05` a share of them."""
    if text is None:
        return None
    try:
        return int(text) if text.isdigit() else float(text)
    except ValueError:
        raise JobError(f"--max-failures {text}: expected a count such as 5, or a share such as 0.05") from None
