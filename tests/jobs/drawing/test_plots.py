"""Training curves and confusion matrices."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.drawing.curves import loss_limit
from jobs.drawing.plots import curves_figure, draw_confusion, draw_curves, figure_png
from jobs.training.metrics import EpochRow, best_epoch


def row(epoch: int, accuracy: float | None = 0.5, loss: float | None = 1.0) -> EpochRow:
    return EpochRow(epoch, 10 * epoch, 0.1, 1.5, 0.4, loss, accuracy, 2.0, 500.0, 0.01)


@pytest.mark.parametrize("epochs", [1, 2, 50])
@pytest.mark.parametrize("validated", [True, False])
def test_curves_are_written_as_png(tmp_path: Path, epochs: int, validated: bool) -> None:
    rows = [row(n, n / epochs if validated else None, 1 / n if validated else None) for n in range(1, epochs + 1)]
    draw_curves(tmp_path / "curves.png", rows)
    with Image.open(tmp_path / "curves.png") as image:
        assert image.width > 800


def test_curves_figure_has_the_history_and_the_best_epoch() -> None:
    rows = [row(1, 0.4), row(2, 0.7), row(3, 0.6)]
    figure = curves_figure(rows)
    loss, accuracy, rate = figure.axes
    np.testing.assert_allclose(accuracy.lines[1].get_xydata(), [(1, 0.4), (2, 0.7), (3, 0.6)])
    assert [text.get_text() for text in accuracy.texts] == ["best 70.0%"]
    assert loss.get_ylim() == (0, loss_limit(rows))
    assert len(rate.lines) == 1
    with Image.open(io.BytesIO(figure_png(figure))) as image:
        assert image.format == "PNG"


def test_curves_without_an_epoch_are_empty() -> None:
    assert figure_png(curves_figure([]))
    assert best_epoch([]) is None


@pytest.mark.parametrize("classes", [2, 10, 18, 40, 400])
def test_confusion_matrix_is_written_for_any_names(tmp_path: Path, classes: int) -> None:
    # Names that look like formulas, have characters that no font has, or are too long.
    names = ["$x^$", "ルフィ", "tab\there", "l" + "o" * 80 + "ng", *(f"class {n}" for n in range(classes))][:classes]
    confusion = np.random.default_rng(0).integers(0, 30, (classes, classes))
    confusion[0] = 0  # a class with nothing to validate
    draw_confusion(tmp_path / "confusion.png", confusion, names, "Validation: $5 of 7")
    with Image.open(tmp_path / "confusion.png") as image:
        width, height = image.size
    assert 300 < height <= width * 1.2 < 4500
