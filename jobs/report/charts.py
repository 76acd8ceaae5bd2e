"""Geometry of the report's charts; `charts.html.jinja` draws them as SVG in the page's colours."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from cnn.evaluation.calibration import Reliability
from jobs.console.progress import plural
from jobs.drawing.curves import MAX_MARKERS, loss_limit
from jobs.report.format import percent
from jobs.report.phases import PHASES
from jobs.training.metrics import EpochRow
from jobs.training.timing import phase_seconds

WIDTH = 440  # of every chart, in SVG units; the page scales it
_LEFT, _RIGHT, _TOP, _BOTTOM = 42, 18, 10, 22  # margins around the plot area


class Tick(NamedTuple):
    """A tick label, and its position along the axis."""

    at: float
    text: str


class Curve(NamedTuple):
    """A line. `kind` is its CSS class, `points` the attribute of an SVG polyline."""

    kind: str
    label: str
    points: str
    markers: list[tuple[float, float]]


class Box(NamedTuple):
    """A filled rectangle with a tooltip. `kind` is its CSS class."""

    kind: str
    x: float
    y: float
    width: float
    height: float
    tooltip: str


class Highlight(NamedTuple):
    """A circled point, and its description for the chart's caption."""

    x: float
    y: float
    text: str


@dataclass
class Chart:
    """A chart with axes. `alt` describes it for screen readers, `note` follows the title."""

    title: str
    alt: str
    height: int
    x_ticks: list[Tick] = field(default_factory=list)
    y_ticks: list[Tick] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    boxes: list[Box] = field(default_factory=list)
    highlight: Highlight | None = None
    diagonal: bool = False
    note: str = ""

    width = WIDTH
    left, right, top = _LEFT, WIDTH - _RIGHT, _TOP

    @property
    def bottom(self) -> int:
        """The y of the x axis."""
        return self.height - _BOTTOM


class Scale(NamedTuple):
    """A linear scale: maps `low` to `start` and `high` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        fraction = (value - self.low) / ((self.high - self.low) or 1.0)
        return round(self.start + fraction * (self.end - self.start), 1)

    def ticks(self, values: Iterable[float], text: Callable[[float], str]) -> list[Tick]:
        """Ticks at these values, labelled by `text`."""
        return [Tick(self(value), text(value)) for value in values]


def loss_chart(history: Sequence[EpochRow]) -> Chart:
    """Training and validation loss over the epochs."""
    return _over_epochs("Loss", history, "loss", loss_limit(history), "{:.3g}".format)


def accuracy_chart(history: Sequence[EpochRow], best: EpochRow) -> Chart:
    """Training and validation accuracy over the epochs, with the best epoch highlighted."""
    chart = _over_epochs("Accuracy", history, "accuracy", 1.0, _whole_percent)
    if best.val_accuracy is not None:
        y = Scale(0.0, 1.0, chart.bottom, chart.top)(best.val_accuracy)
        text = f"best {percent(best.val_accuracy)} in epoch {best.epoch}"
        chart.highlight = Highlight(_epoch_scale(history)(best.epoch), y, text)
    return chart


def rate_chart(history: Sequence[EpochRow]) -> Chart:
    """The learning rate at the end of each epoch."""
    first, last, largest = history[0].lr, history[-1].lr, max(row.lr for row in history)
    title = "Learning rate at the end of each epoch"
    chart = Chart(title, f"From {first:.3g} to {last:.3g}", 96, _epoch_ticks(history))
    x, y = _epoch_scale(history), Scale(0.0, largest or 1.0, chart.bottom, chart.top)
    chart.y_ticks = y.ticks((0.0, y.high), "{:.2g}".format)
    chart.curves = [_curve("rate", "learning rate", [(x(row.epoch), y(row.lr)) for row in history])]
    return chart


def time_chart(history: Sequence[EpochRow]) -> Chart:
    """Seconds per epoch, as columns stacked by phase."""
    longest = max(row.seconds for row in history)
    chart = Chart("Time per epoch", f"At most {longest:.3g} seconds", 130, _epoch_ticks(history))
    x, y = _epoch_scale(history), Scale(0.0, 1.06 * longest or 1.0, chart.bottom, chart.top)
    chart.y_ticks = y.ticks(_round_values(y.high, 3), "{:g} s".format)
    width = 0.8 * (chart.right - chart.left) / (history[-1].epoch - history[0].epoch + 1)
    for row in history:
        below = 0.0
        for kind, seconds in phase_seconds([row]).items():
            if seconds > 0.0:
                top = y(below + seconds)
                tooltip = f"epoch {row.epoch}: {PHASES[kind]} {seconds:.3g} s"
                left = round(x(row.epoch) - width / 2, 1)
                chart.boxes.append(Box(kind, left, top, round(width, 1), round(y(below) - top, 1), tooltip))
                below += seconds
    return chart


def reliability_chart(title: str, bins: Reliability) -> Chart:
    """Accuracy by confidence: a reliability diagram. On the diagonal the two are equal."""
    alt = f"Calibration error {percent(bins.error)}"
    chart = Chart(title, alt, 260, diagonal=True, note="accuracy by confidence")
    x, y = Scale(0.0, 1.0, chart.left, chart.right), Scale(0.0, 1.0, chart.bottom, chart.top)
    quarters = (0.0, 0.25, 0.5, 0.75, 1.0)
    chart.x_ticks, chart.y_ticks = x.ticks(quarters, _whole_percent), y.ticks(quarters, _whole_percent)
    count, largest = len(bins.images), int(bins.images.max())
    for number, (images, confidence, accuracy) in enumerate(zip(*bins, strict=True)):
        if not images:
            continue
        left, width = x(number / count) + 1, x(1 / count) - x(0) - 2
        figures = f"confidence {_whole_percent(confidence)}, accuracy {_whole_percent(accuracy)}"
        tooltip = f"{plural(int(images), 'image')}: {figures}"
        upper, lower = sorted((y(accuracy), y(confidence)))
        chart.boxes.append(Box("accuracy", left, lower, width, round(chart.bottom - lower, 1), tooltip))
        kind = "under" if accuracy > confidence else "over"  # underconfident, overconfident
        chart.boxes.append(Box(kind, left, upper, width, round(lower - upper, 1), tooltip))
        height = round(26 * math.sqrt(images / largest), 1)
        chart.boxes.append(Box("count", left + width / 3, chart.bottom - height, width / 3, height, tooltip))
    return chart


def _over_epochs(
    title: str, history: Sequence[EpochRow], metric: str, high: float, text: Callable[[float], str]
) -> Chart:
    """Training and validation over the epochs, from 0 to `high`."""
    chart = Chart(title, f"{title} over {plural(len(history), 'epoch')}", 230, _epoch_ticks(history))
    x, y = _epoch_scale(history), Scale(0.0, high, chart.bottom, chart.top)
    chart.y_ticks = y.ticks(_round_values(high, 5), text)
    for kind, label in (("train", "training"), ("val", "validation")):
        known = [(row.epoch, getattr(row, f"{kind}_{metric}")) for row in history]
        points = [(x(epoch), y(value)) for epoch, value in known if value is not None]
        if points:
            chart.curves.append(_curve(kind, label, points))
    return chart


def _curve(kind: str, label: str, points: list[tuple[float, float]]) -> Curve:
    return Curve(kind, label, " ".join(f"{x},{y}" for x, y in points), points if len(points) <= MAX_MARKERS else [])


def _epoch_scale(history: Sequence[EpochRow]) -> Scale:
    return Scale(history[0].epoch - 0.5, history[-1].epoch + 0.5, _LEFT, WIDTH - _RIGHT)


def _epoch_ticks(history: Sequence[EpochRow]) -> list[Tick]:
    first, last = history[0].epoch, history[-1].epoch
    step = max(1, round(_round_step(last - first, 8)))
    numbers = [first, *(n for n in range(step, last + 1, step) if n - first > step / 2)]
    return _epoch_scale(history).ticks(numbers, lambda number: f"epoch {number}" if number == first else str(number))


def _whole_percent(fraction: float) -> str:
    return percent(fraction, 0)


def _round_values(high: float, count: int) -> list[float]:
    """About `count` round numbers from 0 to `high`."""
    step = _round_step(high, count)
    return [round(number * step, 10) for number in range(math.floor(high / step + 1e-9) + 1)]


def _round_step(high: float, count: int) -> float:
    """1, 2 or 5 times a power of ten; about `count` of it make `high`."""
    rough = max(high, 1e-9) / count
    power = 10.0 ** math.floor(math.log10(rough))
    return next(times * power for times in (1, 2, 5, 10) if times * power >= rough * 0.999)
