"""Parse a report, and find the images in it."""

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from PIL import Image

from cnn.checkpoint import load_checkpoint, save_checkpoint
from pipeline.dataset.store import Split

UNSAFE = "<b>&\"'"
CLASSES = (UNSAFE, "green", "red")
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """A parsed page: its tags with their attributes, and its text. Fails on a tag that is not closed."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.html, self.text = html, ""
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attributes}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attributes}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def section(self, name: str) -> "Page":
        """The section with this id."""
        (found,) = re.findall(rf'<section>\s*<h2 id="{name}">.*?</section>', self.html, re.DOTALL)
        return Page(found)

    @property
    def rows(self) -> list[list[str]]:
        """The text of the cells of all tables, row by row."""
        rows = re.findall(r"<tr>(.*?)</tr>", self.html, re.DOTALL)
        return [[Page(cell).text.strip() for cell in re.findall(r"<t[dh].*?>(.*?)</t[dh]>", row)] for row in rows]


def image_of(uri: str) -> np.ndarray:
    kind, _, text = uri.partition(";base64,")
    assert kind in ("data:image/jpeg", "data:image/png")
    with Image.open(io.BytesIO(base64.b64decode(text, validate=True))) as thumbnail:
        return np.asarray(thumbnail)  # (H, W, 3), or 4


def nearest_path(uri: str, split: Split) -> str:
    """The path of the split's image that looks most like the one on the page."""
    shown = image_of(uri).astype(np.float64)  # (H, W, 3)
    distances = np.abs(split.read(0, split.rows) - shown).mean(axis=(1, 2, 3))  # (N,)
    nearest, next_one = np.sort(distances)[:2]
    assert nearest < 14 and nearest < next_one / 2, "exactly one image matches"
    return split.paths[int(distances.argmin())]


def read_report(run: Path, name: str = "report.html") -> Page:
    return Page((run / name).read_text(encoding="utf-8"))


def edit_progress(path: Path, **values: object) -> None:
    """Change values in the progress that a checkpoint stores."""
    found = load_checkpoint(path)
    save_checkpoint(path, found.card, found.tensors, found.progress | values)


def percent(fraction: float, digits: int = 1) -> str:
    return f"{100 * fraction:.{digits}f}\u00a0%"
