"""The geometry of the report's charts."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from cnn.evaluation.calibration import Reliability
from jobs.report import charts
from jobs.report.phases import data_bottleneck
from jobs.training.metrics import EpochRow
from jobs.training.timing import phase_seconds
from tests.jobs.report.pages import percent


def history(epochs: int) -> list[EpochRow]:
    row = EpochRow(1, 10, 0.1, 2.0, 0.5, 1.5, 0.6, 10.0, 100.0, 1.0, compute_seconds=6.0, validation_seconds=2.0)
    return [replace(row, epoch=n, train_accuracy=n / epochs, val_accuracy=0.5 / n) for n in range(1, epochs + 1)]


@pytest.mark.parametrize("epochs", [1, 7, 200])
def test_curves_are_at_their_values(epochs: int) -> None:
    rows = history(epochs)
    chart = charts.accuracy_chart(rows, rows[0])
    assert [(curve.kind, len(curve.points.split())) for curve in chart.curves] == [("train", epochs), ("val", epochs)]
    for curve, column in zip(chart.curves, ("train_accuracy", "val_accuracy"), strict=True):
        points = [tuple(map(float, point.split(","))) for point in curve.points.split()]
        fractions = [(chart.bottom - y) / (chart.bottom - chart.top) for _, y in points]
        np.testing.assert_allclose(fractions, [getattr(row, column) for row in rows], atol=1e-3)
        assert [x for x, _ in points] == sorted({x for x, _ in points})
        assert bool(curve.markers) == (epochs < 50)
    assert chart.highlight and chart.highlight.text == f"best {percent(0.5)} in epoch 1"
    numbers = [int(tick.text.removeprefix("epoch ")) for tick in chart.x_ticks]
    assert numbers[0] == 1 and len(numbers) <= 10 and numbers[-1] > 0.8 * epochs
    assert [tick.text for tick in chart.y_ticks][::5] == [percent(0, 0), percent(1, 0)]


def test_time_columns_add_up_to_the_epoch() -> None:
    rows = history(3)
    assert phase_seconds(rows) == {"compute": 18.0, "wait": 3.0, "validation": 6.0, "save": 0.0, "other": 3.0}
    chart = charts.time_chart(rows)
    (unit,) = {round((chart.bottom - tick.at) / float(tick.text[:-2]), 1) for tick in chart.y_ticks[1:]}
    for epoch in range(3):
        boxes = chart.boxes[4 * epoch : 4 * epoch + 4]
        assert [box.kind for box in boxes] == ["compute", "wait", "validation", "other"]
        assert sum(box.height for box in boxes) == pytest.approx(10 * unit, rel=0.02)
        assert all(a.y == pytest.approx(b.y + b.height, abs=0.11) for a, b in pairwise(boxes))
    assert data_bottleneck(rows) == ""
    slow = [replace(row, wait_seconds=3.0, decode_seconds=9.0, read_seconds=1.0) for row in rows]
    assert data_bottleneck(slow).startswith("Data loading was the bottleneck: decoding took most")


def test_reliability_columns_show_accuracy_and_confidence() -> None:
    found = Reliability(np.array([0, 4, 0, 16]), *np.array([[np.nan, 0.4, np.nan, 0.9], [np.nan, 0.6, np.nan, 0.7]]))
    chart = charts.reliability_chart("x", found)
    tall = chart.bottom - chart.top
    by_kind = {
        kind: [box for box in chart.boxes if box.kind == kind] for kind in ("accuracy", "under", "over", "count")
    }
    assert [round(box.height / tall, 2) for box in by_kind["accuracy"]] == [0.4, 0.7]
    (under,), (over,) = by_kind["under"], by_kind["over"]
    assert under.height / tall == pytest.approx(0.2, abs=0.01) and over.height / tall == pytest.approx(0.2, abs=0.01)
    assert under.x < over.x
    assert by_kind["count"][1].height == 2 * by_kind["count"][0].height, "the square root of four times the images"
    assert "16 images: confidence 90" in over.tooltip
