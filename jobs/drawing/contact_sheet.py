"""Contact sheet of a dataset: a few images of every class, as the network sees them."""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from jobs.console.progress import plural
from jobs.drawing.colours import FAINT, INK
from jobs.drawing.fonts import drawable, font_runs, load_font
from jobs.errors import JobError
from logpose.common.files import write_replaceable
from logpose.common.outputs import replaceable_file
from pipeline.dataset.store import Dataset, Split

MAX_CLASSES = 60  # rows of the sheet
COLUMNS = {"train": 12, "val": 2}  # images per class
HEADINGS = {"train": "training", "val": "validation"}
CELL = 96  # pixels of the longer side of an image
READ_ROWS = 64  # images in memory at a time

PAPER, RULE = "#ebebe9", "#d3d4d6"
MARGIN, HEAD = 36, 78  # around the sheet; from the top of the title to the column headings
GAP, GUTTER = 6, 30  # between images; between the names, the training images and the validation images
TITLE, NAME, SMALL = 24, 16, 13  # font sizes in pixels
MAX_NAME_WIDTH = 280
SOFTWARE = "logpose contact sheet"  # identifies a sheet: any other existing file is never replaced
KIND = (SOFTWARE.encode(), "a contact sheet")


# File -------------------------------------------------------------------------------------------------


def check_sheet_path(path: Path) -> None:
    """Check that a sheet can be written to `path`. Raises JobError for another ending, PathError for another file."""
    if path.suffix.lower() != ".png":
        raise JobError(f"--sheet {path}: expected a name that ends in .png; choose another name")
    replaceable_file(path, *KIND)


def write_sheet(path: Path, dataset: Dataset) -> None:
    """Write `draw_sheet` to a PNG file. Raises DamageError from reading, OSError from writing."""
    sheet = draw_sheet(dataset)
    metadata = PngInfo()
    metadata.add_text("Software", SOFTWARE)
    file = io.BytesIO()
    sheet.save(file, format="PNG", pnginfo=metadata)
    write_replaceable(path, file.getvalue(), *KIND)


# Drawing ----------------------------------------------------------------------------------------------


def draw_sheet(dataset: Dataset) -> Image.Image:
    """Draw a row for each of the first MAX_CLASSES classes: name, counts, training images, validation images.

    Raises DamageError where a chunk with one of these images is damaged.
    """
    splits = [split for split in (dataset.train, dataset.val) if split.rows]
    names = [_shortened(name) for name in dataset.class_names[:MAX_CLASSES]]
    counts = [_counts(splits, label) for label in range(len(names))]
    title, subtitle = drawable(dataset.path.resolve().name), _subtitle(dataset)
    width, height = _cell(dataset.size)

    widest = max(*(_text_width(name, NAME) for name in names), *(_text_width(text, SMALL) for text in counts))
    left = {}  # x of each split's first column
    edge = MARGIN + widest
    for split in splits:
        left[split.name] = edge + GUTTER
        columns = min(COLUMNS[split.name], int(np.bincount(split.labels).max()))
        edge = left[split.name] + max(columns * (width + GAP) - GAP, _text_width(HEADINGS[split.name], SMALL))
    edge = max(edge, MARGIN + _text_width(title, TITLE), MARGIN + _text_width(subtitle, SMALL))
    step = max(height, NAME + SMALL + 8) + 2 * GAP  # from one row to the next
    top = MARGIN + HEAD + 2 * GAP
    bottom = top + len(names) * step - 2 * GAP

    sheet = Image.new("RGB", (edge + MARGIN, bottom + MARGIN), PAPER)
    pen = ImageDraw.Draw(sheet)
    _write(pen, (MARGIN, MARGIN + TITLE), title, TITLE, INK)
    _write(pen, (MARGIN, MARGIN + TITLE + 24), subtitle, SMALL, FAINT)
    for split in splits:
        _write(pen, (left[split.name], MARGIN + HEAD), HEADINGS[split.name], SMALL, FAINT)
    if "val" in left:
        rule = left["val"] - GUTTER // 2
        pen.line((rule, top, rule, bottom), RULE)
    for row, (name, text) in enumerate(zip(names, counts, strict=True)):
        middle = top + row * step + (step - 2 * GAP) // 2
        _write(pen, (MARGIN, middle - 3), name, NAME, INK)
        _write(pen, (MARGIN, middle + SMALL + 6), text, SMALL, FAINT)
    for split in splits:
        for row, column, image in _images(split, len(names)):
            corner = (left[split.name] + column * (width + GAP), top + row * step + (step - 2 * GAP - height) // 2)
            sheet.paste(_thumbnail(image, (width, height)), corner)
    return sheet


def _images(split: Split, classes: int) -> Iterator[tuple[int, int, npt.NDArray[np.uint8]]]:
    """Class, column and pixels (H, W, 3) of each image on the sheet.

    Takes the first images of each class in stored order, which is random.
    """
    cells: dict[int, tuple[int, int]] = {}  # dataset row -> class, column
    for label in range(classes):
        rows = np.flatnonzero(split.labels == label)[: COLUMNS[split.name]]  # (n,)
        cells |= {row: (label, column) for column, row in enumerate(rows.tolist())}
    wanted = np.array(sorted(cells), np.int64)  # (n,)
    for start in range(0, len(wanted), READ_ROWS):
        block = wanted[start : start + READ_ROWS]  # (b,)
        for row, image in zip(block.tolist(), split.read_rows(block), strict=True):
            yield *cells[row], image


def _cell(size: tuple[int, int]) -> tuple[int, int]:
    """Width and height at which images of size (H, W) are drawn: enlarged by a whole number, or reduced."""
    height, width = size
    longer = max(size)
    if longer <= CELL:
        return width * (CELL // longer), height * (CELL // longer)
    return max(1, round(width * CELL / longer)), max(1, round(height * CELL / longer))


def _thumbnail(image: npt.NDArray[np.uint8], cell: tuple[int, int]) -> Image.Image:
    """An image (H, W, 3) at the size of a cell; enlarged pixels stay sharp squares."""
    enlarged = max(cell) >= max(image.shape[:2])
    return Image.fromarray(image).resize(cell, Image.Resampling.NEAREST if enlarged else Image.Resampling.LANCZOS)


def _counts(splits: Sequence[Split], label: int) -> str:
    return " · ".join(f"{np.count_nonzero(split.labels == label):,} {split.name}" for split in splits)


def _subtitle(dataset: Dataset) -> str:
    classes, (height, width) = len(dataset.class_names), dataset.size
    shown = plural(classes, "class", "classes")
    if classes > MAX_CLASSES:
        shown = f"the first {MAX_CLASSES} of {shown}"
    rows = f"{plural(dataset.train.rows, 'training image')}, {dataset.val.rows:,} for validation"
    return f"{shown} · {rows} · {width}×{height} ({dataset.fit})"


# Text -------------------------------------------------------------------------------------------------


def _write(pen: ImageDraw.ImageDraw, start: tuple[int, int], text: str, size: int, color: str) -> None:
    """Write drawable text; `start` is the left end of its baseline."""
    x, y = start
    for file, run in font_runs(text):
        font = load_font(file, size)
        pen.text((x, y), run, color, font, anchor="ls")
        x += round(font.getlength(run))


def _text_width(text: str, size: int) -> int:
    """Width of drawable text in pixels."""
    return sum(round(load_font(file, size).getlength(run)) for file, run in font_runs(text))


def _shortened(name: str) -> str:
    """The name in drawable characters, cut where it is too wide."""
    name = drawable(name[:MAX_NAME_WIDTH])
    if _text_width(name, NAME) <= MAX_NAME_WIDTH:
        return name
    while _text_width(f"{name}…", NAME) > MAX_NAME_WIDTH:
        name = name[:-1]
    return f"{name}…"
