"""The contact sheet: a few images of every class, as the network will see them."""

import os
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from jobs.console.progress import plural
from jobs.errors import JobError
from logpose.common.errors import printable
from logpose.common.files import atomic_writer
from pipeline.dataset.store import Dataset, Split

MAX_CLASSES = 60  # nobody looks at more
COLUMNS = {"train": 12, "val": 2}  # images of a class
HEADINGS = {"train": "training", "val": "validation"}
CELL = 96  # pixels of the longer side of an image

PAPER, INK, FAINT, RULE = "#ebebe9", "#1f2937", "#6b7280", "#d3d4d6"
MARGIN, HEAD = 36, 78  # around the sheet; from the title's top to the names of the columns
GAP, GUTTER = 6, 30  # between images; between the names, those to train on, and those to validate
TITLE, NAME, SMALL = 24, 16, 13  # sizes of letters
WIDEST_NAME = 280

# For names that DejaVu has no letters for: files of fonts with Chinese, Japanese and Korean, the best first.
# Pillow looks for them in the system's folders.
WIDE_FONTS = (
    *("NotoSansCJK-Regular.ttc", "NotoSansCJKjp-Regular.otf", "NotoSansJP-Regular.otf", "NotoSansJP-Regular.ttf"),
    *("ヒラギノ角ゴシック W3.ttc", "Arial Unicode.ttf"),  # macOS
    *("YuGothM.ttc", "meiryo.ttc", "msgothic.ttc", "msyh.ttc", "malgun.ttf"),  # Windows
    *("ipaexg.ttf", "ipagp.ttf", "ipag.ttf", "TakaoPGothic.ttf", "wqy-microhei.ttc", "wqy-zenhei.ttc"),
    "DroidSansFallbackFull.ttf",
)
PILLOWS_OWN = ""  # Latin letters only, but always there
NO_LETTER = "\u25a1"  # a box, in place of a character that no font here has
SOFTWARE = "logpose contact sheet"  # by this a sheet is known, and nothing else is ever replaced


# The file ---------------------------------------------------------------------------------------------


def check_place(path: Path) -> None:
    """Refuse a place for a sheet that is taken by anything but a former sheet. Raises JobError."""
    if path.suffix.lower() != ".png":
        raise JobError(f"--sheet {path}: expected a name that ends in .png; choose such a one")
    if os.path.lexists(path) and not (path.is_file() and _is_sheet(path)):
        raise JobError(f"{path} is not a contact sheet and is left alone; choose another place with --sheet FILE.png")


def _is_sheet(path: Path) -> bool:
    with path.open("rb") as file:
        return SOFTWARE.encode() in file.read(256)  # it is written right behind the header


def write_sheet(path: Path, dataset: Dataset) -> None:
    """Draw the sheet into a PNG file. Raises DamageError from reading, OSError from writing."""
    sheet = draw_sheet(dataset)
    said = PngInfo()
    said.add_text("Software", SOFTWARE)
    with atomic_writer(path) as file:
        sheet.save(file, format="PNG", pnginfo=said)


# The drawing ------------------------------------------------------------------------------------------


def draw_sheet(dataset: Dataset) -> Image.Image:
    """A row for each of the first MAX_CLASSES classes: name, counts, images to train on and to validate.

    Raises DamageError where a chunk with one of these images is damaged.
    """
    parts = [part for part in (dataset.train, dataset.val) if part.rows]
    names = [_shortened(name) for name in dataset.class_names[:MAX_CLASSES]]
    counts = [_counts(parts, label) for label in range(len(names))]
    title, subtitle = _drawable(dataset.path.resolve().name), _subtitle(dataset)
    width, height = _cell(dataset.size)

    widest = max(*(_length(name, NAME) for name in names), *(_length(text, SMALL) for text in counts))
    left = {}  # where the images of each part begin
    edge = MARGIN + widest
    for part in parts:
        left[part.name] = edge + GUTTER
        columns = min(COLUMNS[part.name], int(np.bincount(part.labels).max()))
        edge = left[part.name] + max(columns * (width + GAP) - GAP, _length(HEADINGS[part.name], SMALL))
    edge = max(edge, MARGIN + _length(title, TITLE), MARGIN + _length(subtitle, SMALL))
    step = max(height, NAME + SMALL + 8) + 2 * GAP  # from one row to the next
    top = MARGIN + HEAD + 2 * GAP
    bottom = top + len(names) * step - 2 * GAP

    sheet = Image.new("RGB", (edge + MARGIN, bottom + MARGIN), PAPER)
    pen = ImageDraw.Draw(sheet)
    _write(pen, (MARGIN, MARGIN + TITLE), title, TITLE, INK)
    _write(pen, (MARGIN, MARGIN + TITLE + 24), subtitle, SMALL, FAINT)
    for part in parts:
        _write(pen, (left[part.name], MARGIN + HEAD), HEADINGS[part.name], SMALL, FAINT)
    if "val" in left:
        rule = left["val"] - GUTTER // 2
        pen.line((rule, top, rule, bottom), RULE)
    for row, (name, text) in enumerate(zip(names, counts, strict=True)):
        middle = top + row * step + (step - 2 * GAP) // 2
        _write(pen, (MARGIN, middle - 3), name, NAME, INK)
        _write(pen, (MARGIN, middle + SMALL + 6), text, SMALL, FAINT)
    for part in parts:
        for row, column, image in _images(part, len(names)):
            place = (left[part.name] + column * (width + GAP), top + row * step + (step - 2 * GAP - height) // 2)
            sheet.paste(_thumbnail(image, (width, height)), place)
    return sheet


def _images(part: Split, classes: int) -> Iterator[tuple[int, int, npt.NDArray[np.uint8]]]:
    """Class, place in its row, and pixels (H, W, 3) of each image to be shown.

    The first of a class in stored order are as good as any: the order is random. Only chunks that hold one of
    them are read, each once and one at a time.
    """
    places: dict[int, tuple[int, int]] = {}  # a row -> its class, its place
    for label in range(classes):
        rows = np.flatnonzero(part.labels == label)[: COLUMNS[part.name]]  # (n,)
        places |= {row: (label, column) for column, row in enumerate(rows.tolist())}
    for chunk, wanted in groupby(sorted(places), lambda row: row // part.chunk_rows):
        start = chunk * part.chunk_rows
        images = part.read(start, min(start + part.chunk_rows, part.rows))  # (n, H, W, 3)
        for row in wanted:
            yield *places[row], images[row - start]


def _cell(size: tuple[int, int]) -> tuple[int, int]:
    """Width and height that images of size (H, W) are shown at: enlarged by a whole number, or reduced."""
    height, width = size
    longer = max(size)
    if longer <= CELL:
        return width * (CELL // longer), height * (CELL // longer)
    return max(1, round(width * CELL / longer)), max(1, round(height * CELL / longer))


def _thumbnail(image: npt.NDArray[np.uint8], cell: tuple[int, int]) -> Image.Image:
    """An image (H, W, 3) at the size of a cell; when it is enlarged, each pixel stays a square to be seen."""
    enlarged = max(cell) >= max(image.shape[:2])
    return Image.fromarray(image).resize(cell, Image.Resampling.NEAREST if enlarged else Image.Resampling.LANCZOS)


def _counts(parts: Sequence[Split], label: int) -> str:
    return " · ".join(f"{np.count_nonzero(part.labels == label):,} {part.name}" for part in parts)


def _subtitle(dataset: Dataset) -> str:
    classes, (height, width) = len(dataset.class_names), dataset.size
    shown = plural(classes, "class", "classes")
    if classes > MAX_CLASSES:
        shown = f"the first {MAX_CLASSES} of {shown}"
    rows = f"{plural(dataset.train.rows, 'image')} to train on, {dataset.val.rows:,} to validate"
    return f"{shown} · {rows} · {width}×{height} ({dataset.fit})"


# The letters ------------------------------------------------------------------------------------------


def count_undrawable(names: Sequence[str]) -> int:
    """How many of the names have characters that no font here has."""
    return sum(NO_LETTER in _drawable(name) for name in names if NO_LETTER not in name)


def _write(pen: ImageDraw.ImageDraw, place: tuple[int, int], text: str, size: int, color: str) -> None:
    """Write drawable text from `place` on, the left end of its baseline."""
    x, y = place
    for font, run in _runs(text, size):
        pen.text((x, y), run, color, font, anchor="ls")
        x += round(font.getlength(run))


def _length(text: str, size: int) -> int:
    """How many pixels wide drawable text is."""
    return sum(round(font.getlength(run)) for font, run in _runs(text, size))


def _runs(text: str, size: int) -> Iterator[tuple[ImageFont.FreeTypeFont, str]]:
    """Drawable text in pieces of one font each."""
    for name, run in groupby(text, _font_with):
        yield _font(_installed()[0] if name is None else name, size), "".join(run)


def _shortened(name: str) -> str:
    """The name in drawable characters, cut where it is too wide."""
    name = _drawable(name)
    if _length(name, NAME) <= WIDEST_NAME:
        return name
    while _length(f"{name}…", NAME) > WIDEST_NAME:
        name = name[:-1]
    return f"{name}…"


def _drawable(name: str) -> str:
    """The name as one line, with a box for each character that no font here has."""
    name = unicodedata.normalize("NFC", printable(name))
    return "".join(NO_LETTER if _font_with(char) is None else char for char in name)


@cache
def _font_with(char: str) -> str | None:
    """The first font that has the character; None if none does."""
    for name in _installed():
        # Pillow does not tell what a font has; but all that it lacks looks like the one thing that no font has.
        if char.isspace() or _pixels(name, char) != _pixels(name, "\U0010ffff"):
            return name
    return None


def _pixels(font: str, char: str) -> tuple[tuple[int, int], bytes]:
    mask = _font(font, NAME).getmask(char)
    return mask.size, bytes(mask)


@cache
def _installed() -> tuple[str, ...]:
    """The fonts that are here, by their files: DejaVu, which comes with matplotlib, and then others."""
    matplotlib = find_spec("matplotlib")  # finds its folder; does not import it
    folder = Path(matplotlib.origin).parent / "mpl-data/fonts/ttf" if matplotlib and matplotlib.origin else Path()
    found = []
    for name in (str(folder / "DejaVuSans.ttf"), *WIDE_FONTS):
        with suppress(OSError):
            _font(name, NAME)
            found.append(name)
    return (*found, PILLOWS_OWN)


@cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    if name == PILLOWS_OWN:
        return cast(ImageFont.FreeTypeFont, ImageFont.load_default(size))
    return ImageFont.truetype(name, size)
