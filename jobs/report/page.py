"""Render the HTML report with `page.html.jinja`. All values are escaped: file and class names are untrusted."""

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
from jobs.drawing.colours import FAINT, GRID, INK, RATE, TRAIN, VAL
from jobs.recipes.config import describe
from jobs.report import charts
from jobs.report.evaluation import ValidationResult
from jobs.report.findings import key_findings
from jobs.report.format import percent, rate
from jobs.report.image_sections import confusion_images, group_images, images_with_heatmaps
from jobs.report.load_run import TrainedRun
from jobs.report.near_duplicates import select_groups
from jobs.report.phases import data_bottleneck, phase_times
from jobs.report.thumbnails import confusion_png
from jobs.training.run_folder import model_option
from pipeline.dataset.schema import DUPLICATES_FILE
from pipeline.dataset.store import Dataset

CONFUSIONS, IMAGES_PER_CONFUSION = 8, 6
TOP_LOSSES = 24  # images that may have a wrong label
GROUPS, IMAGES_PER_GROUP = 12, 6  # of near-duplicates
MAX_TABLE_CLASSES = 24  # with more, the confusion matrix is an image
MAX_OPEN_CLASSES = 30  # rows of the class table; the others are collapsed
COLOURS = {"train": TRAIN, "val": VAL, "rate": RATE, "ink": INK, "faint": FAINT, "grid": GRID}


class ClassRow(NamedTuple):
    """A row of the class table; a score is NaN where it is undefined."""

    name: str
    precision: float
    recall: float
    f1: float
    images: int
    training: int


def render(run: TrainedRun, data: Dataset, result: ValidationResult | None, cam: GradCam | None) -> str:
    """Return the report as HTML. Without a validation split, `result` is None.

    Raises DamageError where an image to show is damaged, JobError where duplicates.csv is.
    """
    confusions = result.top_confusions(CONFUSIONS, IMAGES_PER_CONFUSION) if result else []
    context: dict[str, Any] = {
        "run": run,
        "name": run.folder.path.resolve().name,
        "data": data,
        "card": run.model.card,
        "parameters": _parameter_count(run),
        "recipe": describe(run.recipe),
        "findings": key_findings(run, data, result, confusions),
        "result": result,
        "loss_chart": charts.loss_chart(run.history),
        "accuracy_chart": charts.accuracy_chart(run.history, run.best),
        "rate_chart": charts.rate_chart(run.history),
        "time_chart": charts.time_chart(run.history),
        "phases": phase_times(run.history),
        "data_bottleneck": data_bottleneck(run.history),
        "duplicates": data.attributes.duplicates,
        "duplicates_file": data.path / DUPLICATES_FILE,
        "groups": group_images(data, select_groups(data.path, GROUPS), IMAGES_PER_GROUP),
        "retrain_command": _retrain_command(run, data),
        "resume_command": run.folder.resume_command(data.path, run.model.card),
        "versions": f"logpose {version('logpose-cnn')}, Python {platform.python_version()}, NumPy {np.__version__}",
        "colours": COLOURS,
        "max_open_classes": MAX_OPEN_CLASSES,
    }
    if result:
        context |= _scores(data, result)
        context["confusions"] = confusion_images(data, result, confusions)
        context["top_losses"] = images_with_heatmaps(data, result, result.top_losses(TOP_LOSSES), cam)
    return _environment().get_template("page.html.jinja").render(context)


def _scores(data: Dataset, result: ValidationResult) -> dict[str, Any]:
    """The template's values from the evaluation, except images."""
    evaluation, calibration = result.evaluation, result.calibration
    matrix = evaluation.confusion  # (C, C) [true, predicted]
    fractions = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)  # (C, C)
    as_table = len(matrix) <= MAX_TABLE_CLASSES
    scores: dict[str, Any] = {
        "evaluation": evaluation,
        "top5": evaluation.top(5) if len(matrix) > 5 else None,
        "classes": _class_rows(data, result),
        "matrix": list(zip(data.class_names, matrix.tolist(), fractions.tolist(), strict=True)) if as_table else [],
        "matrix_image": "" if as_table else confusion_png(fractions, TRAIN, VAL),
        "calibration": calibration,
        "reliability_charts": [],
    }
    if calibration:
        before, after = result.reliability(1.0), result.reliability(calibration.temperature)
        scores["reliability_charts"] = [
            charts.reliability_chart("Before temperature scaling", before),
            charts.reliability_chart(f"After temperature scaling, T = {calibration.temperature:.2f}", after),
        ]
    return scores


def _class_rows(data: Dataset, result: ValidationResult) -> list[ClassRow]:
    """Lowest F1 first; classes without a validation image last."""
    training = np.bincount(data.train.labels, minlength=len(data.class_names))  # (C,)
    columns = (values.tolist() for values in (*result.evaluation.by_class, training))
    rows = [ClassRow(*values) for values in zip(data.class_names, *columns, strict=True)]
    return sorted(rows, key=lambda row: (not row.images, 0.0 if isnan(row.f1) else row.f1))


def _parameter_count(run: TrainedRun) -> int:
    card = run.model.card
    layers = card.build_model().layers(card.in_shape, len(card.class_names))
    return sum(spec.size for spec in layers.specs(card.in_shape).parameters)


def _retrain_command(run: TrainedRun, data: Dataset) -> str:
    """The command that repeats the training in another folder."""
    folder, init = run.folder.path, run.state.init
    if folder.name in ("", ".."):
        folder = folder.resolve()
    words = ["logpose", "train", str(data.path), str(folder.with_name(f"{folder.name}-again"))]
    words += ["--config", str(run.folder.config), *(["--init", init] if init else [])]
    return shlex.join([*words, *model_option(run.model.card)])


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_valid_utf8,
    )
    environment.filters |= {
        "percent": percent, "rate": rate, "duration": duration, "plural": plural, "thousands": "{:,}".format,
    }  # fmt: skip
    return environment


def _valid_utf8(value: Any) -> Any:
    """Escape bytes of a path that are not valid UTF-8 (lone surrogates in Python)."""
    return value.encode("utf-8", "backslashreplace").decode() if type(value) is str else value
