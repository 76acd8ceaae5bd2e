"""All that is known -> the page, by `page.html.jinja`. Whatever is put into it is escaped: names are strangers'."""

import platform
import shlex
from importlib.metadata import version
from math import isnan
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from cnn.inference.gradcam import GradCam
from jobs.console.progress import duration, plural
from jobs.drawing.colours import RATE, TRAIN, VAL
from jobs.recipes.config import describe
from jobs.report import charts
from jobs.report.evaluation import RunEvaluation
from jobs.report.findings import find
from jobs.report.format import percent
from jobs.report.image_sections import show_groups, show_pairs, show_worst
from jobs.report.load_run import TrainedRun
from jobs.report.near_duplicates import pick_groups
from jobs.report.thumbnails import matrix
from jobs.report.time_sections import remedy, shares
from pipeline.dataset.schema import DUPLICATES_FILE
from pipeline.dataset.store import Dataset

PAIRS, OF_PAIR = 8, 6  # pairs of classes, and images of each
WORST = 24
GROUPS, OF_GROUP = 12, 6
TABLE_CLASSES = 24  # up to which confusion is a table
OPEN_CLASSES = 30  # rows of the table of classes; the others are folded away


class ClassRow(NamedTuple):
    """A row of the table of classes: shares are NaN where there is nothing to judge by."""

    name: str
    precision: float
    recall: float
    f1: float
    images: int
    training: int


def render(run: TrainedRun, data: Dataset, results: RunEvaluation | None, cam: GradCam | None) -> str:
    """The page as HTML; without a validation part, `judgement` is None.

    Raises DamageError where an image to be shown is damaged, JobError where the list of copies is.
    """
    pairs = results.pairs(PAIRS, OF_PAIR) if results else []
    context: dict[str, Any] = {
        "run": run,
        "name": run.folder.path.resolve().name,
        "data": data,
        "card": run.model.card,
        "parameters": _parameters(run),
        "recipe": describe(run.recipe),
        "findings": find(run, data, results, pairs),
        "judgement": results,
        "loss_chart": charts.loss_chart(run.history),
        "accuracy_chart": charts.accuracy_chart(run.history, run.best),
        "rate_chart": charts.rate_chart(run.history),
        "time_chart": charts.time_chart(run.history),
        "times": shares(run.history),
        "remedy": remedy(run.history),
        "copies": data.attributes.copies,
        "copies_file": data.path / DUPLICATES_FILE,
        "groups": show_groups(data, pick_groups(data.path, GROUPS), OF_GROUP),
        "again": shlex.join(_again(run, data)),
        "go_on": shlex.join(["logpose", "train", str(data.path), str(run.folder.path), "--resume"]),
        "versions": f"logpose {version('logpose-cnn')}, Python {platform.python_version()}, NumPy {np.__version__}",
        "colours": {"train": TRAIN, "val": VAL, "rate": RATE},
        "open_classes": OPEN_CLASSES,
    }
    if results:
        context |= _evaluated(data, results)
        context["pairs"] = show_pairs(data, results, pairs)
        context["worst"] = show_worst(data, results, results.worst(WORST), cam)
    return _environment().get_template("page.html.jinja").render(context)


def _evaluated(data: Dataset, results: RunEvaluation) -> dict[str, Any]:
    """The figures and drawings that come from validating."""
    evaluation, calibration = results.evaluation, results.calibration
    confusion = evaluation.confusion  # (C, C) [true, predicted]
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)  # (C, C)
    as_table = len(confusion) <= TABLE_CLASSES
    found: dict[str, Any] = {
        "evaluation": evaluation,
        "top5": evaluation.top(5) if len(confusion) > 5 else None,
        "classes": _classes(data, results),
        "confusion": list(zip(data.class_names, confusion.tolist(), shares.tolist(), strict=True)) if as_table else [],
        "confusion_image": "" if as_table else matrix(shares, TRAIN, VAL),
        "calibration": calibration,
        "reliability_charts": [],
    }
    if calibration:
        before, after = results.reliability(1.0), results.reliability(calibration.temperature)
        found["reliability_charts"] = [
            charts.reliability_chart("As the network says it", before),
            charts.reliability_chart(f"Divided by a temperature of {calibration.temperature:.2f}", after),
        ]
    return found


def _classes(data: Dataset, results: RunEvaluation) -> list[ClassRow]:
    """The worst first; classes without an image last."""
    training = np.bincount(data.train.labels, minlength=len(data.class_names))  # (C,)
    figures = (values.tolist() for values in (*results.evaluation.by_class, training))
    rows = [ClassRow(*values) for values in zip(data.class_names, *figures, strict=True)]
    return sorted(rows, key=lambda row: (not row.images, 0.0 if isnan(row.f1) else row.f1))


def _parameters(run: TrainedRun) -> int:
    """How many numbers the network has learned."""
    card = run.model.card
    layers = card.build_model().layers(card.in_shape, len(card.class_names))
    return sum(spec.size for spec in layers.specs(card.in_shape).parameters)


def _again(run: TrainedRun, data: Dataset) -> list[str]:
    """The command that trains the same network once more, in another folder."""
    place = run.folder.path
    if place.name in ("", ".."):
        place = place.resolve()
    return [
        "logpose", "train", str(data.path), str(place.with_name(f"{place.name}-again")),
        "--config", str(run.folder.config), *(("--init", run.init) if run.init else ()),
    ]  # fmt: skip


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_valid,
    )
    environment.filters |= {"percent": percent, "duration": duration, "plural": plural, "thousands": "{:,}".format}
    return environment


def _valid(value: Any) -> Any:
    """Text that is to be valid UTF-8: a path may hold bytes that are none."""
    return value.encode("utf-8", "backslashreplace").decode() if type(value) is str else value
