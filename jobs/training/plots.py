"""What a training leaves for people to look at: curves.png and confusion.png."""

import unicodedata
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator, PercentFormatter

from jobs.training.metrics import EpochRow, is_better
from logpose.common.files import atomic_writer

TRAIN, VAL, RATE = "#8aa4c8", "#c2410c", "#9ca3af"  # one colour for each thing, in every image
NAMED_CLASSES = 100  # beyond, names would hide each other, and take long
INK, GRID = "#1f2937", "#e5e7eb"
# Names in scripts that matplotlib's own font lacks are drawn with one of these, where one is installed.
WIDE_FONTS = ("Noto Sans CJK JP", "Noto Sans JP", "Hiragino Sans", "Yu Gothic", "IPAGothic")


def draw_curves(path: Path, rows: Sequence[EpochRow]) -> None:
    """Loss and accuracy over the epochs, training and validation, with the learning rate beneath."""
    figure = new_figure(10, 4.6)
    grid = figure.add_gridspec(2, 2, height_ratios=(5, 1))
    loss, accuracy = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1])
    rate = figure.add_subplot(grid[1, :])
    epochs = [row.epoch for row in rows]

    _curve(loss, epochs, [row.train_loss for row in rows], TRAIN, "training")
    _curve(loss, epochs, [row.val_loss for row in rows], VAL, "validation")
    loss.set_title("Loss", loc="left", color=INK, fontweight="bold")
    loss.set_ylim(0, _headroom(rows))

    _curve(accuracy, epochs, [row.train_accuracy for row in rows], TRAIN, "training")
    _curve(accuracy, epochs, [row.val_accuracy for row in rows], VAL, "validation")
    accuracy.set_title("Accuracy", loc="left", color=INK, fontweight="bold")
    accuracy.set_ylim(0, 1)
    accuracy.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    _mark_best(accuracy, rows)

    rate.fill_between(epochs, [row.lr for row in rows], color=RATE, alpha=0.35, linewidth=0)
    rate.plot(epochs, [row.lr for row in rows], color=RATE, marker="." if len(rows) == 1 else "")
    rate.set_title("Learning rate at the end of each epoch", loc="left", color=INK, fontsize=9)
    rate.set_ylim(bottom=0)
    rate.yaxis.set_major_locator(MaxNLocator(2))
    rate.set_xlabel("epoch", color=INK)

    for axes in (loss, accuracy, rate):
        plain_axes(axes)
        axes.set_xlim(0.5, max(epochs, default=1) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    loss.legend(frameon=False, labelcolor=INK)
    save_figure(figure, path)


def _curve(axes: Axes, epochs: list[int], values: Sequence[float | None], color: str, label: str) -> None:
    known = [(epoch, value) for epoch, value in zip(epochs, values, strict=True) if value is not None]
    if known:
        marker = "o" if len(known) <= 40 else ""
        x, y = zip(*known, strict=True)
        axes.plot(x, y, color=color, label=label, marker=marker, markersize=3.5, linewidth=1.8)


def _headroom(rows: Sequence[EpochRow]) -> float:
    """Where the axis of the loss ends: a little above the largest."""
    losses = [loss for row in rows for loss in (row.train_loss, row.val_loss) if loss is not None]
    return 1.06 * max(losses, default=1.0) or 1.0


def _mark_best(axes: Axes, rows: Sequence[EpochRow]) -> None:
    """The number to quote, at the point it belongs to."""
    row: EpochRow | None = None
    for each in rows:
        if each.val_accuracy is not None and is_better(each, row):
            row = each
    if row is None or row.val_accuracy is None:
        return
    best, epoch = row.val_accuracy, row.epoch
    axes.plot([epoch], [best], "o", color=VAL, markersize=8, markerfacecolor="none")
    last = max(row.epoch for row in rows)
    axes.annotate(
        f"best {best:.1%}",
        (epoch, best),
        xytext=(0, -22 if best > 0.2 else 14),
        textcoords="offset points",
        ha="right" if epoch > 0.85 * last and last > 1 else "center",
        va="center",
        color=VAL,
        fontweight="bold",
        bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
    )


def plain_axes(axes: Axes) -> None:
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.tick_params(colors=INK, length=0)


def draw_confusion(path: Path, confusion: np.ndarray, class_names: Sequence[str], title: str) -> None:
    """Which class is taken for which: the share of each true class as colour, the count as number."""
    classes = len(class_names)
    counts = np.asarray(confusion, dtype=np.int64)  # (C, C) [true, predicted]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)  # (C, C)
    names = [_drawable(_shortened(name)) for name in class_names]

    # Room for a cell to be read, and for the longest name beside and beneath the matrix.
    cell = 0.95 if classes <= 5 else 0.62 if classes <= 12 else 0.46 if classes <= 24 else min(0.24, 24 / classes)
    margin = 0.1 * max(map(len, names)) + 1.2
    side = max(cell * classes, 2.6)
    figure = new_figure(side + margin + 0.8, side + margin)
    axes = figure.add_subplot()
    # The power lifts the few that went astray off the white of the zeros.
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.6, vmin=0, vmax=1))
    size = 9 if classes <= 24 else 7
    slanted: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    named = classes <= NAMED_CLASSES
    _label(axes.set_xticks(range(classes) if named else [], names if named else [], fontsize=size, **slanted))
    _label(axes.set_yticks(range(classes) if named else [], names if named else [], fontsize=size))
    axes.set_xlabel("predicted", color=INK, fontweight="bold")
    axes.set_ylabel("true", color=INK, fontweight="bold")
    axes.set_title(title, loc="left", color=INK, fontweight="bold", fontsize=11)
    axes.tick_params(colors=INK, length=0)
    axes.spines[:].set_visible(False)
    if named:
        axes.set_xticks(np.arange(-0.5, classes), minor=True)
        axes.set_yticks(np.arange(-0.5, classes), minor=True)
        axes.grid(which="minor", color="white", linewidth=1)
    axes.tick_params(which="minor", length=0)
    bar = figure.colorbar(image, ax=axes, shrink=0.6, aspect=30, format=PercentFormatter(1.0, decimals=0))
    bar.set_label("share of the true class", color=INK)
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=INK, length=0)
    _write_cells(axes, counts, shares)
    save_figure(figure, path)


def _write_cells(axes: Axes, counts: np.ndarray, shares: np.ndarray) -> None:
    """Count and percentage while there is room for both, then the count, then colour alone."""
    classes = len(counts)
    if classes > 24:
        return
    size = 10 if classes <= 5 else 8 if classes <= 12 else 6.5
    for true, predicted in zip(*np.nonzero(counts), strict=True):
        count, share = int(counts[true, predicted]), float(shares[true, predicted])
        text = f"{count}\n{share:.0%}" if classes <= 12 else f"{count}"
        color = "white" if share > 0.4 else INK
        axes.text(predicted, true, text, ha="center", va="center", color=color, fontsize=size)


def _label(ticks: Sequence[Any]) -> None:
    for tick in ticks:
        text: Text = tick.label1
        text.set_parse_math(False)  # a class may be called "$5"
        text.set_fontfamily(_families())


def _shortened(name: str, longest: int = 28) -> str:
    return name if len(name) <= longest else f"{name[: longest - 1]}…"


@cache
def _families() -> list[str]:
    installed = {font.name for font in fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in WIDE_FONTS if name in installed)]


@cache
def _drawable_characters() -> frozenset[int]:
    fonts = [get_font(findfont(FontProperties(family=family))) for family in _families()]
    return frozenset().union(*(font.get_charmap() for font in fonts))


def _drawable(name: str) -> str:
    """The name with a box for what no font here can draw; matplotlib would warn about it each time."""
    name = unicodedata.normalize("NFC", name)
    known = _drawable_characters()
    return "".join(char if ord(char) in known and char.isprintable() else "\u25a1" for char in name)


def new_figure(width: float, height: float) -> Figure:
    """An empty image of so many inches, with a margin around all that will be in it."""
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)
    return Figure(figsize=(width, height), dpi=120, layout=layout, facecolor="white")


def save_figure(figure: Figure, path: Path) -> None:
    with atomic_writer(path) as file:
        FigureCanvasAgg(figure)  # attaches itself: no window system is ever asked for
        figure.savefig(file, format="png")
