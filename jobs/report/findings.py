"""What a reader should know first: warnings, and where the mistakes are."""

from typing import NamedTuple

import numpy as np

from jobs.console.progress import plural
from jobs.report.evaluation import Pair, RunEvaluation
from jobs.report.format import percent
from jobs.report.load_run import TrainedRun
from pipeline.dataset.store import Dataset

SMALL = 0.05  # an accuracy that is known no better than to so much on either side
SURE = 0.9
_DIFFERS = 0.005  # from what the training has noted: more than rounding on another device does


class Finding(NamedTuple):
    """A sentence, where on the page to read on, and whether it puts the figures in doubt."""

    text: str
    section: str
    warns: bool


def find(run: TrainedRun, data: Dataset, results: RunEvaluation | None, pairs: list[Pair]) -> list[Finding]:
    """Warnings first. Without a validation part, `judgement` is None."""
    found = []
    if not run.finished:
        done = f"{len(run.history)} of {plural(run.recipe.epochs, 'epoch')}"
        found.append(Finding(f"The training is not finished: {done}.", "again", True))
    copies = data.attributes.duplicates
    if results is not None:
        found += _doubts(run, data, results)
    if copies and copies.labels_differ:
        groups = plural(copies.labels_differ, "group of copies has", "groups of copies have")
        found.append(Finding(f"{groups} more than one label.", "copies", True))
    if results is not None:
        found += _mistakes(data, results, pairs)
    return found


def _doubts(run: TrainedRun, data: Dataset, results: RunEvaluation) -> list[Finding]:
    """Why the accuracy may not be what it seems."""
    found, evaluation = [], results.evaluation
    (low, high), copies = results.interval, data.attributes.duplicates
    if copies and copies.leaks:
        leaks = f"{copies.leaks:,} of the {plural(evaluation.rows, 'validation image')}"
        found.append(Finding(f"{leaks} have a copy among those to train on: the accuracy flatters.", "copies", True))
    if high - low > 2 * SMALL:
        images = plural(evaluation.rows, "validation image")
        said = f"{images} tell no more than {percent(low, 0)} to {percent(high, 0)}"
        found.append(Finding(f"{said}: small differences between trainings mean nothing.", "classes", True))
    if low <= results.guessing:
        name = data.class_names[int(evaluation.by_class.images.argmax())]
        said = f"No better than always naming {name}, which is right for {percent(results.guessing)}."
        found.append(Finding(said, "classes", True))
    noted = run.best.val_accuracy
    if noted is not None and abs(noted - evaluation.accuracy) > _DIFFERS:
        said = f"The training noted an accuracy of {percent(noted)} for this epoch"
        found.append(Finding(f"{said}, it is {percent(evaluation.accuracy)} now.", "curves", True))
    return found


def _mistakes(data: Dataset, results: RunEvaluation, pairs: list[Pair]) -> list[Finding]:
    """Where the network is wrong."""
    found, evaluation = [], results.evaluation
    mistaken = evaluation.predicted != evaluation.labels  # (N,)
    if not mistaken.any():
        return [Finding("Every validation image is recognised.", "confusion", False)]
    scores = evaluation.by_class
    if len(scores.f1) > 2:
        worst = int(np.argmin(np.where(scores.images > 0, scores.f1, np.inf)))
        said = f"{data.class_names[worst]} is recognised worst: F1 {percent(scores.f1[worst])}"
        found.append(Finding(f"{said} ({plural(int(scores.images[worst]), 'image')}).", "classes", False))
    if pairs and pairs[0].times > 1:
        first = pairs[0]
        names = f"{data.class_names[first.true]} is taken for {data.class_names[first.predicted]}"
        found.append(Finding(f"{names} most often: {first.times:,} of {plural(first.of, 'time')}.", "pairs", False))
    if sure := int((results.named[mistaken] >= SURE).sum()):
        of = plural(int(mistaken.sum()), "mistake")
        said = f"{sure:,} of {of} {'is' if sure == 1 else 'are'} made with {percent(SURE, 0)} or more"
        found.append(Finding(f"{said}: are these labels right?", "worst", False))
    return found
