"""How a training went: metrics.csv epoch by epoch, classes.csv class by class, and which epoch was the best."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from cnn.evaluation.metrics import ClassScores
from logpose.common.files import write_atomically


@dataclass(frozen=True)
class EpochRow:
    """One row of metrics.csv. Without a validation part, `val_loss` and `val_accuracy` are None.

    `seconds` and its parts are explained where they are measured, in `timing.EpochTimes`. `images_per_second`
    counts the training part only. Calibration is explained in cnn.evaluation.calibration; there is none where the
    loss is not the cross-entropy. The columns with a default came later: older trainings have rows without.
    """

    epoch: int
    step: int
    lr: float
    train_loss: float
    train_accuracy: float
    val_loss: float | None
    val_accuracy: float | None
    seconds: float
    images_per_second: float
    wait_seconds: float
    compute_seconds: float = 0.0
    copy_seconds: float = 0.0
    validation_seconds: float = 0.0
    save_seconds: float = 0.0
    read_seconds: float = 0.0
    decode_seconds: float = 0.0
    val_top5: float | None = None
    val_macro_f1: float | None = None
    val_calibration_error: float | None = None
    temperature: float | None = None
    val_calibration_error_scaled: float | None = None


def write_metrics(path: Path, rows: Sequence[EpochRow]) -> None:
    """All epochs as CSV; an empty field where there is no value."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(field.name for field in fields(EpochRow))
    for row in rows:
        writer.writerow(_number(value) for value in asdict(row).values())
    write_atomically(path, text.getvalue())


def write_classes(path: Path, class_names: Sequence[str], scores: ClassScores) -> None:
    """A row for each class as CSV: how well it is recognised; an empty field where there is nothing to judge by."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["class", *scores._fields])
    for name, *figures, images in zip(class_names, *scores, strict=True):
        writer.writerow([name, *(_number(None if math.isnan(value) else value) for value in figures), int(images)])
    write_atomically(path, text.getvalue())


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.6g}"


def is_better(row: EpochRow, best: EpochRow | None) -> bool:
    """Whether an epoch beats the best so far: by validation accuracy, ties by loss.

    Without a validation part there is nothing to judge by, and the last epoch is the best.
    """
    if best is None or row.val_accuracy is None or best.val_accuracy is None:
        return True
    loss = math.inf if row.val_loss is None else row.val_loss
    best_loss = math.inf if best.val_loss is None else best.val_loss
    return (row.val_accuracy, -loss) > (best.val_accuracy, -best_loss)
