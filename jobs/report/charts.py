"""Numbers -> where things are in a drawing; `charts.html.jinja` draws them as SVG, in the page's own colours."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from cnn.evaluation.calibration import Reliability
from jobs.report.format import percent
from jobs.report.time_sections import PARTS, parts_of
from jobs.training.metrics import EpochRow

WIDTH = 440  # of every drawing, in units of its own; it is as wide as the page lets it be
_LEFT, _RIGHT, _TOP, _BOTTOM = 42, 18, 10, 22  # around the area that is drawn in
_DOTS = 40  # epochs, up to which each is a dot, too


class Tick(NamedTuple):
    """A number beside an axis: where along it, and what is written."""

    at: float
    text: str


class Curve(NamedTuple):
    """A line. `kind` is a class of the style sheet, which knows its colour; `points` is what SVG calls so."""

    kind: str
    label: str
    points: str
    dots: list[tuple[float, float]]


class Box(NamedTuple):
    """A filled rectangle."""

    kind: str
    x: float
    y: float
    width: float
    height: float
    title: str


class Mark(NamedTuple):
    """A point in a circle, and what is said of it in the drawing's title."""

    x: float
    y: float
    text: str


@dataclass
class Chart:
    """A drawing with axes. `alt` says in words what it shows."""

    title: str
    alt: str
    height: int
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    curves: list[Curve] = field(default_factory=list)
    boxes: list[Box] = field(default_factory=list)
    mark: Mark | None = None
    diagonal: bool = False

    width = WIDTH
    left, right, top = _LEFT, WIDTH - _RIGHT, _TOP

    @property
    def bottom(self) -> int:
        return self.height - _BOTTOM


class Scale(NamedTuple):
    """From numbers to places: `low` is at `start`, `high` at `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / ((self.high - self.low) or 1.0)
        return round(self.start + share * (self.end - self.start), 1)


def loss_chart(history: Sequence[EpochRow]) -> Chart:
    values = [value for row in history for value in (row.train_loss, row.val_loss) if value is not None]
    return _over_epochs("Loss", history, "loss", 1.06 * max(values) or 1.0, lambda value: f"{value:.3g}")


def accuracy_chart(history: Sequence[EpochRow], best: EpochRow) -> Chart:
    chart = _over_epochs("Accuracy", history, "accuracy", 1.0, lambda value: percent(value, 0))
    if best.val_accuracy is not None:
        y = Scale(0.0, 1.0, chart.bottom, chart.top)(best.val_accuracy)
        said = f"best {percent(best.val_accuracy)} in epoch {best.epoch}"
        chart.mark = Mark(_epochs(history)(best.epoch), y, said)
    return chart


def rate_chart(history: Sequence[EpochRow]) -> Chart:
    """The learning rate at the end of each epoch."""
    chart = Chart(
        "Learning rate at the end of each epoch",
        f"From {history[0].lr:.3g} to {history[-1].lr:.3g}",
        96,
        _epoch_ticks(history),
        [],
    )
    x, y = _epochs(history), Scale(0.0, max(row.lr for row in history) or 1.0, chart.bottom, chart.top)
    chart.y_ticks = [Tick(y(value), f"{value:.2g}") for value in (0.0, y.high)]
    chart.curves = [_curve("rate", "learning rate", [(x(row.epoch), y(row.lr)) for row in history])]
    return chart


def time_chart(history: Sequence[EpochRow]) -> Chart:
    """A column for each epoch, its parts one upon the other."""
    longest = max(row.seconds for row in history)
    chart = Chart("Each epoch", f"At most {longest:.3g} seconds", 130, _epoch_ticks(history), [])
    x = _epochs(history)
    y = Scale(0.0, 1.06 * longest or 1.0, chart.bottom, chart.top)
    chart.y_ticks = [Tick(y(value), f"{value:g} s") for value in _steps(y.high, 3)]
    wide = 0.8 * (chart.right - chart.left) / (history[-1].epoch - history[0].epoch + 1)
    for row in history:
        below = 0.0
        for kind, seconds in parts_of([row]).items():
            if seconds > 0.0:
                top = y(below + seconds)
                what = f"epoch {row.epoch}: {PARTS[kind]} {seconds:.3g} s"
                left = round(x(row.epoch) - wide / 2, 1)
                chart.boxes.append(Box(kind, left, top, round(wide, 1), round(y(below) - top, 1), what))
                below += seconds
    return chart


def reliability_chart(title: str, found: Reliability) -> Chart:
    """How often the network is right, over how sure it is, and the diagonal on which the two would agree."""
    bins = len(found.images)
    chart = Chart(title, f"Calibration error {percent(found.error)}", 260, [], [], diagonal=True)
    x, y = Scale(0.0, 1.0, chart.left, chart.right), Scale(0.0, 1.0, chart.bottom, chart.top)
    chart.x_ticks = [Tick(x(value), percent(value, 0)) for value in (0.0, 0.25, 0.5, 0.75, 1.0)]
    chart.y_ticks = [Tick(y(value), percent(value, 0)) for value in (0.0, 0.25, 0.5, 0.75, 1.0)]
    most = int(found.images.max())
    for number, (images, confidence, right) in enumerate(zip(*found, strict=True)):
        if not images:
            continue
        left, wide = x(number / bins) + 1, x(1 / bins) - x(0) - 2
        count = f"{int(images):,} image{'s' if images > 1 else ''} named with"
        what = f"{count} {percent(confidence, 0)} on average: {percent(right, 0)} right"
        ends = sorted((y(right), y(confidence)))  # the upper end first
        chart.boxes.append(Box("right", left, ends[1], wide, round(chart.bottom - ends[1], 1), what))
        kind = "timid" if right > confidence else "bold"
        chart.boxes.append(Box(kind, left, ends[0], wide, round(ends[1] - ends[0], 1), what))
        # How many images that is, along the foot.
        tall = round(26 * math.sqrt(images / most), 1)
        chart.boxes.append(Box("many", left + wide / 3, chart.bottom - tall, wide / 3, tall, what))
    return chart


def _over_epochs(
    title: str, history: Sequence[EpochRow], what: str, high: float, written: Callable[[float], str]
) -> Chart:
    """Training and validation over the epochs, from 0 to `high`."""
    chart = Chart(title, f"{title} of {len(history)} epochs", 230, _epoch_ticks(history), [])
    x, y = _epochs(history), Scale(0.0, high, chart.bottom, chart.top)
    chart.y_ticks = [Tick(y(value), written(value)) for value in _steps(high, 5)]
    for kind, label in (("train", "training"), ("val", "validation")):
        known = [(row.epoch, getattr(row, f"{kind}_{what}")) for row in history]
        points = [(x(epoch), y(value)) for epoch, value in known if value is not None]
        if points:
            chart.curves.append(_curve(kind, label, points))
    return chart


def _curve(kind: str, label: str, points: list[tuple[float, float]]) -> Curve:
    return Curve(kind, label, " ".join(f"{x},{y}" for x, y in points), points if len(points) <= _DOTS else [])


def _epochs(history: Sequence[EpochRow]) -> Scale:
    return Scale(history[0].epoch - 0.5, history[-1].epoch + 0.5, _LEFT, WIDTH - _RIGHT)


def _epoch_ticks(history: Sequence[EpochRow]) -> list[Tick]:
    first, last = history[0].epoch, history[-1].epoch
    step = max(1, round(_step(last - first, 8)))
    numbers = [first, *(n for n in range(step, last + 1, step) if n - first >= step / 2)]
    return [Tick(_epochs(history)(number), str(number)) for number in numbers]


def _steps(high: float, most: int) -> list[float]:
    """Round numbers from 0 up to `high`, about as many as asked for."""
    step = _step(high, most)
    return [round(number * step, 10) for number in range(math.floor(high / step + 1e-9) + 1)]


def _step(high: float, most: int) -> float:
    """1, 2 or 5 times a power of ten, of which about `most` go into `high`."""
    rough = max(high, 1e-9) / most
    power = 10.0 ** math.floor(math.log10(rough))
    return next(times * power for times in (1, 2, 5, 10) if times * power >= rough * 0.999)
