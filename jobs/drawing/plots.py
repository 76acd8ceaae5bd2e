"""Training curves and confusion matrices with matplotlib: curves.png and confusion.png."""

import io
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, fontManager
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator, PercentFormatter

from jobs.drawing.colours import GRID, INK, RATE, TRAIN, VAL
from jobs.drawing.curves import MAX_MARKERS, loss_limit
from jobs.drawing.fonts import drawable, font_runs, load_font
from jobs.training.metrics import EpochRow, best_epoch
from logpose.common.files import write_atomically

MAX_NAMED_CLASSES = 100  # with more, the names would overlap
MAX_NAME = 28  # characters of a class name


# Training curves --------------------------------------------------------------------------------------


def draw_curves(path: Path, history: Sequence[EpochRow]) -> None:
    """Write `curves_figure` to a PNG file. Raises OSError."""
    save_figure(curves_figure(history), path)


def curves_figure(history: Sequence[EpochRow]) -> Figure:
    """Plot training and validation loss and accuracy over the epochs, with the learning rate beneath."""
    figure = new_figure(10, 4.6)
    grid = figure.add_gridspec(2, 2, height_ratios=(5, 1))
    loss, accuracy = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1])
    rate = figure.add_subplot(grid[1, :])
    epochs = [row.epoch for row in history]

    _curve(loss, epochs, [row.train_loss for row in history], TRAIN, "training")
    _curve(loss, epochs, [row.val_loss for row in history], VAL, "validation")
    loss.set_title("Loss", loc="left", color=INK, fontweight="bold")
    loss.set_ylim(0, loss_limit(history))

    _curve(accuracy, epochs, [row.train_accuracy for row in history], TRAIN, "training")
    _curve(accuracy, epochs, [row.val_accuracy for row in history], VAL, "validation")
    accuracy.set_title("Accuracy", loc="left", color=INK, fontweight="bold")
    accuracy.set_ylim(0, 1)
    accuracy.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    _annotate_best(accuracy, history)

    rate.fill_between(epochs, [row.lr for row in history], color=RATE, alpha=0.35, linewidth=0)
    rate.plot(epochs, [row.lr for row in history], color=RATE, marker="." if len(history) == 1 else "")
    rate.set_title("Learning rate at the end of each epoch", loc="left", color=INK, fontsize=9)
    rate.set_ylim(bottom=0)
    rate.yaxis.set_major_locator(MaxNLocator(2))
    rate.set_xlabel("epoch", color=INK)

    for axes in (loss, accuracy, rate):
        style_axes(axes)
        axes.set_xlim(0.5, max(epochs, default=1) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if history:
        loss.legend(frameon=False, labelcolor=INK)
    return figure


def _curve(axes: Axes, epochs: list[int], values: Sequence[float | None], color: str, label: str) -> None:
    known = [(epoch, value) for epoch, value in zip(epochs, values, strict=True) if value is not None]
    if known:
        marker = "o" if len(known) <= MAX_MARKERS else ""
        x, y = zip(*known, strict=True)
        axes.plot(x, y, color=color, label=label, marker=marker, markersize=3.5, linewidth=1.8)


def _annotate_best(axes: Axes, history: Sequence[EpochRow]) -> None:
    """Mark the best epoch and its validation accuracy."""
    row = best_epoch([row for row in history if row.val_accuracy is not None])
    if row is None or row.val_accuracy is None:
        return
    best, epoch, last = row.val_accuracy, row.epoch, max(row.epoch for row in history)
    axes.plot([epoch], [best], "o", color=VAL, markersize=8, markerfacecolor="none")
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


# Confusion matrix -------------------------------------------------------------------------------------


def draw_confusion(path: Path, confusion: np.ndarray, class_names: Sequence[str], title: str) -> None:
    """Write a confusion matrix to a PNG file: colour for the fraction of the true class, a number for the count.

    `confusion` is (C, C) counts, [true, predicted]. Raises OSError.
    """
    classes = len(class_names)
    counts = np.asarray(confusion, dtype=np.int64)  # (C, C) [true, predicted]
    fractions = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)  # (C, C)
    names = [drawable(_shortened(name)) for name in class_names]

    # Room for legible cells, and for the longest name to the left of the matrix and below it.
    cell = 0.95 if classes <= 5 else 0.62 if classes <= 12 else 0.46 if classes <= 24 else min(0.24, 24 / classes)
    margin = 0.1 * max(map(len, names)) + 1.2
    side = max(cell * classes, 2.6)
    figure = new_figure(side + margin + 0.8, side + margin)
    axes = figure.add_subplot()
    # The power makes small fractions stand out from the zeros.
    image = axes.imshow(fractions, cmap="Blues", norm=PowerNorm(0.6, vmin=0, vmax=1))
    size = 9 if classes <= 24 else 7
    slanted: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    named = classes <= MAX_NAMED_CLASSES
    _set_fonts(axes.set_xticks(range(classes) if named else [], names if named else [], fontsize=size, **slanted))
    _set_fonts(axes.set_yticks(range(classes) if named else [], names if named else [], fontsize=size))
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
    bar.set_label("fraction of the true class", color=INK)
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=INK, length=0)
    _write_cells(axes, counts, fractions)
    save_figure(figure, path)


def _write_cells(axes: Axes, counts: np.ndarray, fractions: np.ndarray) -> None:
    """Count and percentage while there is room for both, then the count, then nothing."""
    classes = len(counts)
    if classes > 24:
        return
    size = 10 if classes <= 5 else 8 if classes <= 12 else 6.5
    for true, predicted in zip(*np.nonzero(counts), strict=True):
        count, fraction = int(counts[true, predicted]), float(fractions[true, predicted])
        text = f"{count}\n{fraction:.0%}" if classes <= 12 else f"{count}"
        color = "white" if fraction > 0.4 else INK
        axes.text(predicted, true, text, ha="center", va="center", color=color, fontsize=size)


def _set_fonts(ticks: Sequence[Any]) -> None:
    for tick in ticks:
        label: Text = tick.label1
        label.set_parse_math(False)  # a class may be called "$5"
        label.set_fontfamily(_families(label.get_text()))


def _shortened(name: str) -> str:
    return name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 1]}…"


def _families(text: str) -> list[str]:
    """The font families that `drawable` text needs."""
    return list(dict.fromkeys(["DejaVu Sans", *(_family(file) for file, _ in font_runs(text) if file)]))


@cache
def _family(file: str) -> str:
    """Register a font file with matplotlib; return its family name."""
    path = str(load_font(file, 16).path)
    fontManager.addfont(path)
    return FontProperties(fname=path).get_name()


# Figures ----------------------------------------------------------------------------------------------


def new_figure(width: float, height: float) -> Figure:
    """An empty white figure, width x height in inches."""
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)
    return Figure(figsize=(width, height), dpi=120, layout=layout, facecolor="white")


def style_axes(axes: Axes) -> None:
    """Horizontal grid lines instead of spines and tick marks."""
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.tick_params(colors=INK, length=0)


def figure_png(figure: Figure, software: str = "") -> bytes:
    """The figure as the content of a PNG file, which names the `software`, by default Matplotlib."""
    FigureCanvasAgg(figure)  # attaches itself to the figure; needs no display
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": software} if software else None)
    return file.getvalue()


def save_figure(figure: Figure, path: Path) -> None:
    """Write the figure to a PNG file: see `figure_png`. Raises OSError."""
    write_atomically(path, figure_png(figure))
