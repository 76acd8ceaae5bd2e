"""metrics.csv, and which epoch is the best."""

import csv
from pathlib import Path

from jobs.training.metrics import EpochRow, is_better, write_metrics


def row(epoch: int, accuracy: float | None = 0.5, loss: float | None = 1.0) -> EpochRow:
    return EpochRow(epoch, 10 * epoch, 0.1, 1.5, 0.4, loss, accuracy, 2.0, 500.0, 0.01)


def test_metrics_csv_has_a_row_per_epoch(tmp_path: Path) -> None:
    write_metrics(tmp_path / "metrics.csv", [row(1), row(2, None, None)])
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [found["epoch"] for found in rows] == ["1", "2"]
    assert rows[0]["val_accuracy"] == "0.5"
    assert rows[1]["val_accuracy"] == ""
    assert list(rows[0])[:4] == ["epoch", "step", "lr", "train_loss"]


def test_best_epoch_has_highest_accuracy_then_lowest_loss_then_is_first() -> None:
    assert is_better(row(1), None)
    assert is_better(row(2, 0.6, 9.0), row(1, 0.5, 1.0))
    assert is_better(row(2, 0.5, 0.9), row(1, 0.5, 1.0))
    assert not is_better(row(2, 0.5, 1.0), row(1, 0.5, 1.0))
    assert not is_better(row(2, 0.4, 0.1), row(1, 0.5, 1.0))
    assert is_better(row(2, None, None), row(1, None, None))
