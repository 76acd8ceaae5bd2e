"""The figures and images of a training."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.training.metrics import EpochRow, is_better, write_metrics
from jobs.training.plots import draw_confusion, draw_curves


def row(epoch: int, accuracy: float | None = 0.5, loss: float | None = 1.0) -> EpochRow:
    return EpochRow(epoch, 10 * epoch, 0.1, 1.5, 0.4, loss, accuracy, 2.0, 500.0, 0.01)


def test_metrics_are_a_row_an_epoch(tmp_path: Path) -> None:
    write_metrics(tmp_path / "metrics.csv", [row(1), row(2, None, None)])
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [found["epoch"] for found in rows] == ["1", "2"]
    assert rows[0]["val_accuracy"] == "0.5"
    assert rows[1]["val_accuracy"] == ""
    assert list(rows[0])[:4] == ["epoch", "step", "lr", "train_loss"]


def test_the_best_epoch_is_by_accuracy_then_by_loss_then_the_earlier() -> None:
    assert is_better(row(1), None)
    assert is_better(row(2, 0.6, 9.0), row(1, 0.5, 1.0))
    assert is_better(row(2, 0.5, 0.9), row(1, 0.5, 1.0))
    assert not is_better(row(2, 0.5, 1.0), row(1, 0.5, 1.0))
    assert not is_better(row(2, 0.4, 0.1), row(1, 0.5, 1.0))
    assert is_better(row(2, None, None), row(1, None, None))


@pytest.mark.parametrize("epochs", [1, 2, 50])
@pytest.mark.parametrize("validated", [True, False])
def test_curves(tmp_path: Path, epochs: int, validated: bool) -> None:
    rows = [row(n, n / epochs if validated else None, 1 / n if validated else None) for n in range(1, epochs + 1)]
    draw_curves(tmp_path / "curves.png", rows)
    with Image.open(tmp_path / "curves.png") as image:
        assert image.width > 800


@pytest.mark.parametrize("classes", [2, 10, 18, 40, 400])
def test_confusion(tmp_path: Path, classes: int) -> None:
    # Names that matplotlib would take for formulas, cannot draw, or that would leave no room for the matrix.
    names = ["$x^$", "ルフィ", "tab\there", "l" + "o" * 80 + "ng", *(f"class {n}" for n in range(classes))][:classes]
    confusion = np.random.default_rng(0).integers(0, 30, (classes, classes))
    confusion[0] = 0  # a class with nothing to validate
    draw_confusion(tmp_path / "confusion.png", confusion, names, "Validation: $5 of 7")
    with Image.open(tmp_path / "confusion.png") as image:
        width, height = image.size
    assert 300 < height <= width * 1.2 < 4500
