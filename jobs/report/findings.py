"""Key findings at the top of the report: warnings about the accuracy, then where the model is wrong."""

from typing import NamedTuple

import numpy as np

from jobs.console.progress import plural
from jobs.report.evaluation import Confusion, ValidationResult
from jobs.report.format import percent
from jobs.report.load_run import TrainedRun
from pipeline.dataset.store import Dataset

MAX_MARGIN = 0.05  # of the accuracy's confidence interval, on either side; a wider one is a warning
HIGH_CONFIDENCE = 0.9  # a mistake with at least this confidence may be a wrong label
_MAX_DEVIATION = 0.005  # from the accuracy in metrics.csv; more than another device's rounding explains


class Finding(NamedTuple):
    """A sentence, the id of the section with the details, and whether it questions the accuracy."""

    text: str
    section: str
    is_warning: bool


def key_findings(
    run: TrainedRun, data: Dataset, result: ValidationResult | None, confusions: list[Confusion]
) -> list[Finding]:
    """All findings, warnings first. `result` is None without a validation split."""
    found = []
    if not run.finished:
        done = f"{len(run.history)} of {plural(run.recipe.epochs, 'epoch')}"
        found.append(Finding(f"Training is not finished: {done}.", "reproduce", True))
    duplicates = data.attributes.duplicates
    if result is not None:
        found += _accuracy_warnings(run, data, result)
    if duplicates and duplicates.labels_differ:
        groups = plural(duplicates.labels_differ, "group of near-duplicates has", "groups of near-duplicates have")
        found.append(Finding(f"{groups} more than one label.", "near-duplicates", True))
    if result is not None:
        found += _mistakes(data, result, confusions)
    return found


def _accuracy_warnings(run: TrainedRun, data: Dataset, result: ValidationResult) -> list[Finding]:
    """Reasons to distrust the accuracy."""
    found, evaluation = [], result.evaluation
    (low, high), duplicates = result.interval, data.attributes.duplicates
    images = plural(evaluation.rows, "validation image")
    if duplicates and duplicates.leaks:
        leaks = f"{duplicates.leaks:,} of the {images} {'has' if duplicates.leaks == 1 else 'have'} a near-duplicate"
        text = f"{leaks} in the training split, so the accuracy is too optimistic."
        found.append(Finding(text, "near-duplicates", True))
    if high - low > 2 * MAX_MARGIN:
        text = f"With only {images}, the true accuracy may be anywhere from {percent(low, 0)} to {percent(high, 0)}"
        found.append(Finding(f"{text}: do not compare trainings by small differences.", "classes", True))
    if low <= result.baseline:
        name = data.class_names[int(evaluation.by_class.images.argmax())]
        text = f"No better than always predicting {name}, which is correct for {percent(result.baseline)}."
        found.append(Finding(text, "classes", True))
    recorded = run.best.val_accuracy
    if recorded is not None and abs(recorded - evaluation.accuracy) > _MAX_DEVIATION:
        text = f"During training this epoch's accuracy was {percent(recorded)}"
        found.append(Finding(f"{text}, now it is {percent(evaluation.accuracy)}.", "curves", True))
    return found


def _mistakes(data: Dataset, result: ValidationResult, confusions: list[Confusion]) -> list[Finding]:
    """Where the model is wrong."""
    found, evaluation = [], result.evaluation
    wrong = evaluation.predicted != evaluation.labels  # (N,)
    if not wrong.any():
        return [Finding("Every validation image is classified correctly.", "confusion-matrix", False)]
    scores = evaluation.by_class
    if len(scores.f1) > 2:
        worst = int(np.argmin(np.where(scores.images > 0, scores.f1, np.inf)))
        text = f"{data.class_names[worst]} has the lowest F1: {percent(scores.f1[worst])}"
        found.append(Finding(f"{text} ({plural(int(scores.images[worst]), 'image')}).", "classes", False))
    if confusions and confusions[0].wrong > 1:
        top = confusions[0]
        names = f"{data.class_names[top.true]} predicted as {data.class_names[top.predicted]}"
        text = f"Most common confusion: {names}, {top.wrong:,} of {plural(top.total, 'image')}."
        found.append(Finding(text, "confusions", False))
    if confident := int((result.confidence[wrong] >= HIGH_CONFIDENCE).sum()):
        mistakes = f"{confident:,} of {plural(int(wrong.sum()), 'mistake')} {'has' if confident == 1 else 'have'}"
        text = f"{mistakes} a confidence of {percent(HIGH_CONFIDENCE, 0)} or more: check these labels."
        found.append(Finding(text, "label-errors", False))
    return found
