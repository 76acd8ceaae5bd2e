"""Describe a dataset: figures on the console, and a contact sheet of its images."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt

from jobs.console.output import emit, say
from jobs.console.progress import plural
from jobs.console.table import line, table
from jobs.drawing.contact_sheet import MAX_CLASSES, check_sheet_path, write_sheet
from jobs.drawing.fonts import count_undrawable
from jobs.errors import JobError
from jobs.options import InfoOptions
from pipeline.build.reports import read_failures
from pipeline.dataset.disk_usage import Storage, measure_storage
from pipeline.dataset.schema import DUPLICATES_FILE, FAILURES_FILE, FORMAT, FORMAT_VERSION, SHEET_FILE
from pipeline.dataset.store import Dataset, Split
from pipeline.errors import DatasetError
from pipeline.loader.shuffle_quality import PERMUTATIONS, all_rows, compare
from pipeline.loader.stream import BatchStream

SMALL_CLASS = 10  # training images; a class with fewer is hardly learned


def info(dataset: Path, options: InfoOptions) -> None:
    """Describe `dataset`, and draw its contact sheet.

    Raises DatasetError where it cannot be opened or is damaged, JobError where the options contradict each other or
    the sheet would replace another file.
    """
    if options.sheet and options.no_sheet:
        raise JobError(f"--sheet {options.sheet} and --no-sheet contradict each other; give one of them")
    data = Dataset.open(dataset)
    sheet = None if options.no_sheet else options.sheet or dataset / SHEET_FILE
    if sheet:
        check_sheet_path(sheet)
    storage = {split.name: measure_storage(data.path, split.name) for split in (data.train, data.val) if split.rows}
    failures = _count_failures(data.path)
    blocks = [_format(data), _classes(data), _colours(data), _storage(storage), _origin(data, failures)]
    if options.shuffle:
        blocks.append(_shuffle(data.train, options.batch_size, options.micro_batch))
    say("\n\n".join("\n".join(lines) for lines in blocks))
    if sheet:
        try:
            write_sheet(sheet, data)
        except OSError as error:
            if options.sheet:
                raise
            # Not an error: a shared dataset may be read-only, and the figures are printed.
            reason = (error.strerror or str(error)).lower()
            say(line("sheet", f"none: {reason} at {sheet}; draw it elsewhere with --sheet FILE.png"))
            sheet = None
        else:
            say("\n".join(_sheet(sheet, data.class_names)))
    counts = {split.name: _counts(split, len(data.class_names)).tolist() for split in (data.train, data.val)}
    emit(
        {
            "dataset": data.path,
            "size": data.size,
            "fit": data.fit,
            "seed": data.seed,
            "classes": {
                name: {split: rows[label] for split, rows in counts.items()}
                for label, name in enumerate(data.class_names)
            },
            "mean": data.mean,
            "std": data.std,
            "storage": {name: asdict(stored) for name, stored in storage.items()},
            "source": data.attributes.source,
            "content_hash": data.content_hash,
            "failures": failures,
            "duplicates": asdict(data.attributes.duplicates) if data.attributes.duplicates else None,
            "sheet": sheet,
        }
    )


def _format(data: Dataset) -> list[str]:
    height, width = data.size
    return [
        line("dataset", str(data.path)),
        line("format", f"{FORMAT} {FORMAT_VERSION}, Zarr v3"),
        line("size", f"{width}×{height} ({data.fit})"),
        line("seed", str(data.seed)),
    ]


def _counts(split: Split, classes: int) -> npt.NDArray[np.int64]:
    """Images of each class, (C,)."""
    return np.bincount(split.labels, minlength=classes)


def _classes(data: Dataset) -> list[str]:
    """Images of each class, and their balance."""
    classes = len(data.class_names)
    train, val = _counts(data.train, classes), _counts(data.val, classes)  # (C,)
    rows = [(name, f"{train[i]:,}", f"{val[i]:,}") for i, name in enumerate(data.class_names)]
    total = (plural(classes, "class", "classes"), f"{data.train.rows:,}", f"{data.val.rows:,}")
    return [*table([("class", "train", "val"), *rows, total]), *_balance(data.class_names, train, train + val)]


def _balance(names: Sequence[str], train: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> list[str]:
    """The largest, the smallest and the too small classes, by images to train on (C,) and by all images (C,)."""
    largest, smallest = int(counts.argmax()), int(counts.argmin())
    most, least = int(counts[largest]), int(counts[smallest])
    if most == least:
        lines = [f"every class has {plural(most, 'image')}"]
    else:
        ratio = f"{most / least:.2f} to 1" if least else "no image at all"
        lines = [f"largest class {most:,} ({names[largest]}), smallest {least:,} ({names[smallest]}): {ratio}"]
    small = [f"{names[i]} ({train[i]})" for i in np.flatnonzero(train < SMALL_CLASS).tolist()]
    if small:
        others = f" and {len(small) - 5:,} more" if len(small) > 5 else ""
        lines.append(f"fewer than {SMALL_CLASS} to train on: {', '.join(small[:5])}{others}")
    return lines


def _colours(data: Dataset) -> list[str]:
    """Mean and std of each channel of the training images, in 0..255."""
    channels = zip(("red", "green", "blue"), data.mean, data.std, strict=True)
    return table([("channel", "mean", "std"), *((name, f"{mean:.1f}", f"{std:.1f}") for name, mean, std in channels)])


def _storage(storage: dict[str, Storage]) -> list[str]:
    header = ("images", "on disk", "pixels", "ratio", "chunks", "rows each", "shards", "rows each")
    rows = [(name, *_figures(stored)) for name, stored in storage.items()]
    return [*table([header, *rows]), line("codecs", ", ".join(storage["train"].codecs))]


def _figures(stored: Storage) -> tuple[str, ...]:
    size = (_megabytes(stored.disk_bytes), _megabytes(stored.raw_bytes), f"{stored.raw_bytes / stored.disk_bytes:.2f}")
    return *size, *(f"{n:,}" for n in (stored.chunks, stored.chunk_rows, stored.shards, stored.shard_rows))


def _megabytes(count: int) -> str:
    megabytes = count / 1e6
    return f"{megabytes:,.1f} MB" if megabytes >= 1 else f"{megabytes:.3f} MB"


def _origin(data: Dataset, failures: dict[str, int] | None) -> list[str]:
    """The source of the images, the files left out, and the near-duplicates."""
    file = data.path / FAILURES_FILE
    if failures is None:
        found = f"unknown: {file} is missing or damaged"
    elif failures:
        listed = ", ".join(f"{count:,} {kind}" for kind, count in failures.items())
        found = f"{plural(sum(failures.values()), 'file')} left out: {listed}; see {file}"
    else:
        found = "none"
    return [
        line("source", data.attributes.source),
        line("content", data.content_hash),
        line("failures", found),
        *_duplicates(data),
    ]


def _count_failures(dataset: Path) -> dict[str, int] | None:
    """Count the files left out by kind, the most frequent first; None without a readable failures.csv."""
    try:
        return dict(Counter(failure.kind for failure in read_failures(dataset)).most_common())
    except DatasetError:
        return None


def _duplicates(data: Dataset) -> list[str]:
    found = data.attributes.duplicates
    if found is None:
        return [line("duplicates", "not searched for")]
    if not found.groups:
        return [line("duplicates", "none")]
    groups = plural(found.groups, "group")
    lines = [line("duplicates", f"{plural(found.images, 'image')} in {groups}; see {data.path / DUPLICATES_FILE}")]
    if found.labels_differ:
        lines.append(line("", f"{plural(found.labels_differ, 'group')} with more than one label"))
    if data.val.rows:
        leaks = plural(found.leaks, "validation image") if found.leaks else "no validation image"
        lines.append(line("", f"{leaks} with a near-duplicate among the training images"))
    return lines


def _shuffle(split: Split, batch_size: int, micro_batch: int) -> list[str]:
    """Compare an epoch's order with random permutations of its rows."""
    stream = BatchStream(split, batch_size, seed=0, micro_batch=micro_batch)
    lanes = stream.division.lanes
    divided = f", batches of {batch_size} from {lanes} lanes" if lanes > 1 else ""
    order = all_rows(stream.order(1))  # (N,)
    rows = [("neighbours from", "found", "99 % range", "longest run", "99 % range", "order")]
    for name, values in (("one chunk", np.arange(split.rows) // split.chunk_rows), ("one class", split.labels)):
        result = compare(values, order)
        verdict = "random" if result.within and result.longest_within else "not random"
        low, high = result.low, result.high
        rows.append(
            (
                name, f"{result.found.neighbours:,}", f"{low.neighbours:,}..{high.neighbours:,}",
                str(result.found.longest), f"{low.longest}..{high.longest}", verdict,
            )
        )  # fmt: skip
    fraction = stream.ram_bytes / (split.rows * split.size[0] * split.size[1] * 3)
    return [
        line("shuffle", f"epoch 1 of seed 0{divided}, compared with {PERMUTATIONS} random permutations"),
        *table(rows),
        line("memory", f"{_megabytes(stream.ram_bytes)}, {fraction:.1%} of the pixels"),
    ]


def _sheet(sheet: Path, names: Sequence[str]) -> list[str]:
    """Where the contact sheet is, and what it leaves out."""
    shown = f", the first {MAX_CLASSES} of {len(names):,} classes" if len(names) > MAX_CLASSES else ""
    lines = [line("sheet", f"{sheet}{shown}")]
    if boxes := count_undrawable(names[:MAX_CLASSES]):
        lacking = plural(boxes, "name has", "names have")
        lines.append(line("", f"{lacking} letters that no installed font has; install one, such as Noto Sans CJK"))
    return lines
