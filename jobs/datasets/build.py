"""Build a dataset from a folder of images, and report what was left out."""

from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from jobs.console.output import detail, emit, say
from jobs.console.progress import Bar, bar, duration, plural
from logpose.common.errors import printable
from pipeline.build.build import BuildReport, build_dataset
from pipeline.build.destination import ExistingBuild
from pipeline.build.options import BuildOptions
from pipeline.dataset.schema import DUPLICATES_FILE, FAILURES_FILE, SPLITS
from pipeline.images.options import describe_depth
from pipeline.scan.class_folders import alike_names

SHOWN_CLASSES = 12
_KERNEL_SECONDS = 5  # to compile a build's kernels: measured, docs/performance.md


def build(images: Path, dataset: Path, options: BuildOptions) -> BuildReport:
    """Build `dataset` from the images in `images`, or resume a build with the same images and options.

    Raises PipelineError: see `pipeline.build.build.build_dataset`.
    """
    with ExitStack() as shown:
        bars: list[Bar] = []  # one, from the first image on: its rate counts no kernels
        read = total = 0  # images
        compiling = False

        def show(done: int, of: int, what: str, failed: int) -> None:
            nonlocal read, total, compiling
            if what == "kernels":
                if not compiling:
                    say(f"compiling kernels, once, about {_KERNEL_SECONDS} s")
                compiling = True
                return
            notes = [f"{failed:,} unreadable"] if failed else []
            if what == "images":
                read, total = done, of
            else:
                notes.append(f"comparing images: {done / of:.0%}")
            if not bars:
                bars.append(shown.enter_context(bar("building", "images", 0)))
            bars[0].update(read, ", ".join(notes), total)

        report = build_dataset(images, dataset, options, show)

    classes = plural(len(report.class_names), "class", "classes")
    rows = f"{plural(report.rows['train'], 'image')} to train on, {report.rows['val']:,} to validate"
    took = {
        ExistingBuild.NONE: f"took {duration(report.seconds)}",
        ExistingBuild.UNFINISHED: f"resumed, took {duration(report.seconds)}",
        ExistingBuild.FINISHED: "already complete",
    }
    say(printable(f"{dataset}: {classes}, {rows}; {took[report.existing]}"))
    say(printable(_counts(report)))
    detail(printable(f"classes: {', '.join(report.class_names)}"))
    detail(f"content hash: {report.content_hash}")
    if report.depth:
        black, white = describe_depth(report.depth).split("..")
        say(f"values of more than 8 bits: {black} becomes black, {white} white; --depth sets other values")
    for line in _warnings(report):
        say(printable(line))
    emit(
        {
            "dataset": dataset,
            "classes": report.class_names,
            "train": report.rows["train"],
            "val": report.rows["val"],
            "unreadable": len(report.failures),
            "skipped": report.skipped,
            "duplicates": asdict(report.duplicates) if report.duplicates else None,
            "content_hash": report.content_hash,
            "seconds": round(report.seconds, 3),
        }
    )
    return report


def _counts(report: BuildReport) -> str:
    """The classes with their images to train on and to validate: in a wrong layout, the folders are no classes."""
    train, val = (report.counts[split] for split in SPLITS)
    each = [f"{name} {count:,} + {more:,}" for name, count, more in zip(report.class_names, train, val, strict=True)]
    others = len(each) - SHOWN_CLASSES
    return f"images of each class: {', '.join(each[:SHOWN_CLASSES])}{f' and {others:,} more' if others > 0 else ''}"


def _warnings(report: BuildReport) -> list[str]:
    """Warnings about the images, printed after a build."""
    lines = []
    flat, looked_at = report.flat
    if flat > looked_at / 2:
        lines.append(
            f"nearly one colour: {flat:,} of {plural(looked_at, 'image')} looked at: see 'logpose info'. If the values"
            " fill a small part of their range, stretch them; for values of more than 8 bits, --depth does it"
        )
    if not report.rows["val"]:
        lines.append("no images to validate: --val is 0, or too small for the number of images of each class")
    if report.skipped:
        shown, others = ", ".join(report.skipped[:5]), len(report.skipped) - 5
        lines.append(f"skipped, not in a class folder: {shown}{f' and {others:,} more' if others > 0 else ''}")
    if report.deep:
        shown = ", ".join(report.deep[:5])
        lines.append(f"note: only folders in {shown}, whose images have one label: are these folders the classes?")
    for first, second in alike_names(report.class_names):
        lines.append(f"note: the classes {first} and {second} differ only in case: merge them if they are one")
    if report.damaged:
        lines.append(f"note: {plural(report.damaged, 'damaged shard')} of the interrupted build, made again")
    if report.jump:
        lines.append(f"note: {report.jump}")
    if report.failures:
        failures = plural(len(report.failures), "file")
        lines.append(f"{failures} could not be read: the reasons are in {report.path / FAILURES_FILE}")
    duplicates = report.duplicates
    if duplicates is not None and duplicates.groups:
        where = ", each in one split" if not duplicates.leaks else ""
        groups = plural(duplicates.groups, "group")
        lines.append(f"near-duplicates: {plural(duplicates.images, 'image')} in {groups}{where}")
        if duplicates.leaks:
            leaks = f"{duplicates.leaks:,} of {report.rows['val']:,}"
            lines.append(f"  {leaks} validation images duplicate a training image")
        if duplicates.labels_differ:
            lines.append(f"  {plural(duplicates.labels_differ, 'group')} with different labels")
        lines.append(f"  listed in {report.path / DUPLICATES_FILE}")
    return lines
