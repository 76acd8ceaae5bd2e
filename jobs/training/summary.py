"""summary.json: the main metrics of a finished training."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from cnn.evaluation.calibration import MAX_TEMPERATURE
from cnn.evaluation.metrics import wilson_interval
from jobs.console.progress import plural
from jobs.errors import JobError
from jobs.training.metrics import EpochRow
from logpose.common.records import RecordError, parse_record, read_json

_RENAMED = {"train_pictures": "train_images", "val_pictures": "val_images"}  # older name -> name


@dataclass(frozen=True)
class Summary:
    """Result of a training. Accuracies and errors are from 0 to 1, on the validation split; None where not defined.

    `epoch` is the one that model.safetensors holds. It was chosen by its validation accuracy, which is therefore
    slightly inflated. `accuracy_low` and `accuracy_high` are the 95 % interval that comes from the number of images
    (Wilson, 1927). Calibration is explained in cnn.evaluation.calibration. `views` is the test-time augmentation
    that `accuracy_with_views` was measured with. `device` is what the last epoch was trained on, such as
    'cpu, AVX-512' or 'NVIDIA H100 80GB HBM3 in bf16'; only 'cpu', or empty, in older trainings.
    """

    epoch: int
    epochs: int
    seconds: float
    train_images: int
    val_images: int
    accuracy: float | None = None
    accuracy_low: float | None = None
    accuracy_high: float | None = None
    top5: float | None = None
    macro_f1: float | None = None
    calibration_error: float | None = None
    calibration_error_scaled: float | None = None
    temperature: float | None = None
    views: str = "none"
    accuracy_with_views: float | None = None
    device: str = ""

    def lines(self) -> list[str]:
        """Return the main metrics as lines of text; none without a validation split."""
        if self.accuracy is None:
            return []
        interval = f"95 % interval {self.accuracy_low:.1%} to {self.accuracy_high:.1%}"
        lines = [f"epoch {self.epoch}: accuracy {self.accuracy:.2%} of {plural(self.val_images, 'image')} ({interval})"]
        if self.macro_f1 is not None:
            top5 = "" if self.top5 is None else f"top-5 accuracy {self.top5:.2%}, "
            lines.append(f"{top5}macro F1 {self.macro_f1:.2%}")
        if self.calibration_error is not None and self.calibration_error_scaled is not None:
            errors = f"{self.calibration_error:.1%}, {self.calibration_error_scaled:.1%} with temperature scaling"
            lines.append(f"calibration error {errors} (T = {self.temperature:.2f})")
            if self.temperature and self.temperature > 0.99 * MAX_TEMPERATURE:
                lines.append("T is at its limit: the network's confidence means nothing; train longer, or lower --lr")
        if self.accuracy_with_views is not None:
            lines.append(f"with test-time augmentation (--views {self.views}): accuracy {self.accuracy_with_views:.2%}")
        return lines


def summarise(
    history: list[EpochRow], best: EpochRow, train_images: int, val_images: int, views: str, with_views: float | None,
    device: str,
) -> Summary:
    """Return the summary of a finished training; `with_views` is the accuracy with `views`, if it was measured."""
    low, high = (None, None) if best.val_accuracy is None else wilson_interval(best.val_accuracy, val_images)
    return Summary(
        epoch=best.epoch,
        epochs=len(history),
        seconds=sum(row.seconds for row in history),
        train_images=train_images,
        val_images=val_images,
        accuracy=best.val_accuracy,
        accuracy_low=low,
        accuracy_high=high,
        top5=best.val_top5,
        macro_f1=best.val_macro_f1,
        calibration_error=best.val_calibration_error,
        calibration_error_scaled=best.val_calibration_error_scaled,
        temperature=best.temperature,
        views="none" if with_views is None else views,
        accuracy_with_views=with_views,
        device=device,
    )


def to_json(summary: Summary) -> str:
    """Return the content of summary.json."""
    return json.dumps(asdict(summary), indent=2) + "\n"


def read_summary(path: Path) -> Summary | None:
    """Read summary.json, that of an older version too; None if there is none. Raises JobError where it is not one."""
    known = {field.name for field in fields(Summary)}
    try:
        values = read_json(path)
        values = {_RENAMED.get(name, name): value for name, value in values.items()}
        return parse_record(Summary, {name: value for name, value in values.items() if name in known})
    except FileNotFoundError:
        return None
    except (RecordError, AttributeError) as error:
        raise JobError(
            f"expected the summary of a training in {path}, found something else ({error}); remove it and run"
            " 'logpose train' with --resume"
        ) from error
