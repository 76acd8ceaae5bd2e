"""summary.json: what came of a training, in a few figures for people and programs."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from jobs.console.progress import plural
from logpose.common.files import write_atomically


@dataclass(frozen=True)
class Summary:
    """Shares from 0 to 1, of `val_images`; None where there was nothing to validate, or it has no meaning.

    `epoch` is the one that model.safetensors is from. It was chosen by the images that its accuracy is measured on,
    which flatters it a little. `accuracy_low` and `accuracy_high` enclose the true accuracy with 95 % confidence, as
    far as the choice of images goes. The calibration error is explained in cnn.evaluation.calibration.
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


def write_summary(path: Path, summary: Summary) -> None:
    write_atomically(path, json.dumps(asdict(summary), indent=2) + "\n")


def summary_lines(summary: Summary) -> list[str]:
    """What a person wants to know first."""
    if summary.accuracy is None:
        return []
    interval = f"{summary.accuracy_low:.1%} to {summary.accuracy_high:.1%} with 95 % confidence"
    parts = [f"{summary.accuracy:.2%} of {plural(summary.val_images, 'image')} ({interval})"]
    if summary.top5 is not None:
        parts.append(f"top-5 {summary.top5:.2%}")
    if summary.macro_f1 is not None:
        parts.append(f"macro F1 {summary.macro_f1:.2%}")
    lines = [f"epoch {summary.epoch}: {', '.join(parts)}"]
    if summary.calibration_error is not None and summary.calibration_error_scaled is not None:
        errors = f"{summary.calibration_error:.1%}, {summary.calibration_error_scaled:.1%} once scaled"
        lines.append(f"calibration error {errors}; the model's temperature is {summary.temperature:.2f}")
    if summary.accuracy_with_views is not None:
        seen = f"{summary.accuracy_with_views:.2%}, {summary.accuracy:.2%} without"
        lines.append(f"with views {summary.views}: validation accuracy {seen}; classify --views does the same")
    return lines
