"""Metrics of a training: metrics.csv by epoch, classes.csv by class, and the choice of the best epoch."""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from cnn.evaluation.calibration import MIN_ROWS, calibrate
from cnn.evaluation.metrics import ClassScores, Evaluation
from cnn.losses import Loss, SoftmaxCrossEntropy
from jobs.errors import JobError
from logpose.common.files import open_text, write_atomically
from logpose.common.records import RecordError, parse_record


@dataclass(frozen=True)
class EpochRow:
    """One row of metrics.csv. Losses are means over the images; accuracies, F1 and calibration errors are from 0 to 1.

    Without a validation split, `val_loss` and `val_accuracy` are None. `lr` is that of the epoch's last step.
    `seconds` and its parts are explained in `timing.EpochTimes`; `images_per_second` leaves out validation and saving.
    Calibration (cnn.evaluation.calibration) needs the cross-entropy loss. Columns with a default were added later, so
    the rows of older trainings lack them.
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
    exchange_seconds: float = 0.0

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: Path) -> "EpochRow":
        """Make a row from a mapping; unknown keys are ignored. Raises JobError where one is missing or no number."""
        known = {field.name for field in fields(cls)}
        try:
            return parse_record(cls, {name: value for name, value in values.items() if name in known})
        except RecordError as error:
            raise JobError(f"expected metrics of an epoch in {source}, found others: {error}; train again") from None

    def scores(self) -> dict[str, float | None]:
        """The columns that tell one training from another."""
        names = ("step", "train_loss", "train_accuracy", "val_loss", "val_accuracy")
        return {name: getattr(self, name) for name in names}


def validation_metrics(evaluation: Evaluation, loss: Loss) -> dict[str, float]:
    """Return the columns of metrics.csv that come from validation."""
    outputs, labels = evaluation.outputs, evaluation.labels  # (N, C), (N,)
    metrics = {"val_loss": evaluation.loss, "val_accuracy": evaluation.accuracy, "val_macro_f1": evaluation.macro_f1}
    if outputs.shape[1] > 5:
        metrics["val_top5"] = evaluation.top(5)
    if isinstance(loss, SoftmaxCrossEntropy) and len(labels) >= MIN_ROWS:
        calibration = calibrate(outputs, labels)
        metrics["temperature"] = calibration.temperature
        metrics["val_calibration_error"] = calibration.error
        metrics["val_calibration_error_scaled"] = calibration.error_scaled
    return metrics


def is_better(row: EpochRow, best: EpochRow | None) -> bool:
    """Return whether an epoch beats the best so far: by validation accuracy, ties by validation loss.

    Without a validation split, the last epoch counts as the best.
    """
    if best is None or row.val_accuracy is None or best.val_accuracy is None:
        return True
    loss = math.inf if row.val_loss is None else row.val_loss
    best_loss = math.inf if best.val_loss is None else best.val_loss
    return (row.val_accuracy, -loss) > (best.val_accuracy, -best_loss)


def best_epoch(history: Iterable[EpochRow]) -> EpochRow | None:
    """Return the best row, by `is_better`; None without a finished epoch."""
    best: EpochRow | None = None
    for row in history:
        if is_better(row, best):
            best = row
    return best


def write_metrics(path: Path, rows: Iterable[EpochRow]) -> None:
    """Write all epochs as CSV; a missing value is an empty field. Raises OSError."""
    header = [field.name for field in fields(EpochRow)]
    _write_csv(path, header, ([_format(value) for value in asdict(row).values()] for row in rows))


def read_metrics(path: Path) -> list[EpochRow]:
    """Read metrics.csv, that of an older version too. Raises JobError where it is not one, OSError."""
    try:
        with open_text(path) as file:
            rows = [{name: _parse(name, text) for name, text in row.items()} for row in csv.DictReader(file)]
    except (ValueError, TypeError, csv.Error) as error:
        raise JobError(f"expected numbers for each epoch in {path}, found others ({error}); copy it again") from error
    return [EpochRow.from_dict(row, path) for row in rows]


def write_classes(path: Path, class_names: Sequence[str], scores: ClassScores) -> None:
    """Write each class's scores as CSV; a score that is not defined is an empty field. Raises OSError."""
    rows = (
        [name, *(_format(None if math.isnan(value) else value) for value in values), str(int(images))]
        for name, *values, images in zip(class_names, *scores, strict=True)
    )
    _write_csv(path, ["class", *scores._fields], rows)


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_atomically(path, text.getvalue())


def _format(value: float | None) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.6g}"


def _parse(column: str, text: str | None) -> float | None:
    """Parse a field; None if it is empty. For csv, a row that is too short has None here, a longer one a list."""
    if text is None:
        raise ValueError(f"a row without {column}")
    if not text:
        return None
    return int(text) if column in ("epoch", "step") else float(text)
