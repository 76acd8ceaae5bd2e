"""What is in a dataset, for a person: figures on the console, and a contact sheet of its images."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.cells import cell_len

from jobs.console.progress import plural
from jobs.drawing.contact_sheet import MAX_CLASSES, check_sheet_path, write_sheet
from jobs.drawing.fonts import count_undrawable
from jobs.errors import JobError
from logpose.common.errors import printable
from pipeline.build.reports import read_failures
from pipeline.dataset.disk_usage import Storage, measure_storage
from pipeline.dataset.schema import DUPLICATES_FILE, FAILURES_FILE, FORMAT, FORMAT_VERSION, SHEET_FILE
from pipeline.dataset.store import Dataset, Split
from pipeline.errors import DatasetError
from pipeline.loader.shuffle_quality import PERMUTATIONS, all_rows, compare
from pipeline.loader.stream import BatchStream

KEY = 10  # places before the values
FEW = 10  # with fewer images to train on, a class is hardly learned


def info(dataset: Path, *, sheet: Path | None = None, no_sheet: bool = False, shuffle: bool = False) -> int:
    """Describe `dataset`, and draw its contact sheet: into its folder, or to `sheet`. With `shuffle`, measure that."""
    if sheet and no_sheet:
        raise JobError(f"--sheet {sheet} and --no-sheet contradict each other; give one of them")
    data = Dataset.open(dataset)
    place = sheet or dataset / SHEET_FILE
    if not no_sheet:
        check_sheet_path(place)
    blocks = [_form(data), _classes(data), _colours(data), _storage(data), _origin(data)]
    if shuffle:
        blocks.append(_shuffle(data.train))
    print("\n\n".join("\n".join(lines) for lines in blocks))
    if no_sheet:
        return 0
    try:
        write_sheet(place, data)
    except OSError as error:
        if sheet:
            raise
        # What was asked for has been said; that not all may write into a shared dataset is no failure.
        reason = (error.strerror or str(error)).lower()
        print(_line("sheet", f"none: {reason} at {place}; draw it elsewhere with --sheet FILE.png"))
    else:
        print("\n".join(_sheet(place, data.class_names)))
    return 0


def _form(data: Dataset) -> list[str]:
    height, width = data.size
    return [
        _line("dataset", str(data.path)),
        _line("format", f"{FORMAT} {FORMAT_VERSION}, Zarr v3"),
        _line("size", f"{width}×{height} ({data.fit})"),
        _line("seed", str(data.seed)),
    ]


def _classes(data: Dataset) -> list[str]:
    """The images of each class, and how uneven they are."""
    classes = len(data.class_names)
    train = np.bincount(data.train.labels, minlength=classes)  # (C,)
    val = np.bincount(data.val.labels, minlength=classes)  # (C,)
    rows = [(name, f"{train[i]:,}", f"{val[i]:,}") for i, name in enumerate(data.class_names)]
    total = (plural(classes, "class", "classes"), f"{data.train.rows:,}", f"{data.val.rows:,}")
    return [*_table([("class", "train", "val"), *rows, total]), _balance(data.class_names, train, train + val)]


def _balance(names: Sequence[str], train: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> str:
    """One line on classes that are larger or smaller than others: by train (C,), and by all counts (C,)."""
    largest, smallest = int(counts.argmax()), int(counts.argmin())
    most, least = int(counts[largest]), int(counts[smallest])
    ends = f"largest class {most:,} ({names[largest]}), smallest {least:,} ({names[smallest]})"
    said = f"every class has {plural(most, 'image')}" if most == least else f"{ends}, {most / least:.2f} times"
    few = [f"{names[i]} ({train[i]})" for i in np.flatnonzero(train < FEW).tolist()]
    if few:
        others = f" and {len(few) - 5:,} more" if len(few) > 5 else ""
        said += f"; fewer than {FEW} to train on: {', '.join(few[:5])}{others}"
    return said


def _colours(data: Dataset) -> list[str]:
    """Mean and standard deviation of the training part, as the pixels have them: 0..255."""
    channels = zip(("red", "green", "blue"), data.mean, data.std, strict=True)
    return _table([("channel", "mean", "std"), *((name, f"{mean:.1f}", f"{std:.1f}") for name, mean, std in channels)])


def _storage(data: Dataset) -> list[str]:
    stored = {part.name: measure_storage(data.path, part.name) for part in (data.train, data.val) if part.rows}
    header = ("images", "on disk", "pixels", "ratio", "chunks", "rows each", "shards", "rows each")
    rows = [(name, *_figures(storage)) for name, storage in stored.items()]
    return [*_table([header, *rows]), _line("codecs", ", ".join(stored["train"].codecs))]


def _figures(stored: Storage) -> tuple[str, ...]:
    size = (_megabytes(stored.disk_bytes), _megabytes(stored.raw_bytes), f"{stored.raw_bytes / stored.disk_bytes:.2f}")
    return *size, *(f"{n:,}" for n in (stored.chunks, stored.chunk_rows, stored.shards, stored.shard_rows))


def _megabytes(count: int) -> str:
    megabytes = count / 1e6
    return f"{megabytes:,.1f} MB" if megabytes >= 1 else f"{megabytes:.3f} MB"


def _origin(data: Dataset) -> list[str]:
    """Where the images came from, which did not come along, and which are there more than once."""
    return [
        _line("source", data.attributes.source),
        _line("content", data.content_hash),
        _line("failures", _failures(data)),
        *_copies(data),
    ]


def _failures(data: Dataset) -> str:
    path = data.path / FAILURES_FILE
    try:
        kinds = Counter(failure.kind for failure in read_failures(data.path))
    except DatasetError:
        return f"unknown: {path} is missing or damaged"
    if not kinds:
        return "none"
    listed = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())
    return f"{plural(kinds.total(), 'file')} left out: {listed}; see {path}"


def _copies(data: Dataset) -> list[str]:
    copies = data.attributes.duplicates
    if copies is None:
        return [_line("copies", "not looked for")]
    if not copies.groups:
        return [_line("copies", "none")]
    groups = plural(copies.groups, "group")
    lines = [_line("copies", f"{plural(copies.images, 'image')} in {groups}; see {data.path / DUPLICATES_FILE}")]
    if copies.labels_differ:
        lines.append(_line("", f"{plural(copies.labels_differ, 'group')} with more than one label"))
    if data.val.rows:
        leaks = plural(copies.leaks, "validation image") if copies.leaks else "no validation image"
        lines.append(_line("", f"{leaks} with a copy in the training part"))
    return lines


def _shuffle(part: Split) -> list[str]:
    """How an epoch's order compares with true permutations of its rows."""
    stream = BatchStream(part, batch_size=1, seed=0)
    order = all_rows(stream.order(1))  # (N,)
    rows = [("neighbours from", "found", "99 % have", "longest run", "99 % have", "")]
    for name, values in (("one chunk", np.arange(part.rows) // part.chunk_rows), ("one class", part.labels)):
        seen = compare(values, order)
        verdict = "as a true permutation" if seen.within and seen.longest_within else "not as a true permutation"
        low, high = seen.low, seen.high
        rows.append(
            (
                name, f"{seen.found.neighbours:,}", f"{low.neighbours:,}..{high.neighbours:,}",
                str(seen.found.longest), f"{low.longest}..{high.longest}", verdict,
            )
        )  # fmt: skip
    share = stream.ram_bytes / (part.rows * part.size[0] * part.size[1] * 3)
    return [
        _line("shuffle", f"epoch 1 of seed 0, beside {PERMUTATIONS} true permutations"),
        *_table(rows),
        _line("memory", f"{_megabytes(stream.ram_bytes)}, {share:.1%} of the pixels"),
    ]


def _sheet(place: Path, names: Sequence[str]) -> list[str]:
    """Where the contact sheet is, and what of the dataset is not on it."""
    shown = f", the first {MAX_CLASSES} of {len(names):,} classes" if len(names) > MAX_CLASSES else ""
    lines = [_line("sheet", f"{place}{shown}")]
    if boxes := count_undrawable(names[:MAX_CLASSES]):
        have = plural(boxes, "name has", "names have")
        lines.append(_line("", f"{have} letters that no font here has: install one that does, such as Noto Sans CJK"))
    return lines


def _line(key: str, value: str) -> str:
    return f"{key:<{KEY}}{printable(value)}"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as aligned lines: names to the left, figures to the right."""
    first, *others = zip(*rows, strict=True)
    width = max(KEY - 2, *map(cell_len, first))  # wide characters, as of Japanese, take two places
    widths = [max(map(len, column)) for column in others]
    lines = []
    for name, *figures in rows:
        right = (figure.rjust(places) for figure, places in zip(figures, widths, strict=True))
        lines.append("  ".join([name + " " * (width - cell_len(name)), *right]))
    return lines
