"""All that is known -> the page, by `page.html.jinja`. Whatever is put into it is escaped: names are strangers'."""

import platform
import shlex
from importlib.metadata import version
from math import isnan
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from cnn.gradcam import GradCam
from jobs.config import describe
from jobs.drawings import RATE, TRAIN, VAL
from jobs.progress import duration, plural
from jobs.report import charts
from jobs.report.copies import pick_groups
from jobs.report.findings import find
from jobs.report.gather import TrainedRun
from jobs.report.judge import Judgement
from jobs.report.pictures import matrix
from jobs.report.shown import show_groups, show_pairs, show_worst
from jobs.report.times import remedy, shares
from jobs.report.words import percent
from pipeline.schema import COPIES_FILE
from pipeline.store import Dataset

PAIRS, OF_PAIR = 8, 6  # pairs of classes, and pictures of each
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
    pictures: int
    training: int


def render(run: TrainedRun, data: Dataset, judgement: Judgement | None, cam: GradCam | None) -> str:
    """The page as HTML; without a validation part, `judgement` is None.

    Raises DamageError where a picture to be shown is damaged, JobError where the list of copies is.
    """
    pairs = judgement.pairs(PAIRS, OF_PAIR) if judgement else []
    context: dict[str, Any] = {
        "run": run,
        "name": run.folder.path.resolve().name,
        "data": data,
        "card": run.model.card,
        "parameters": _parameters(run),
        "recipe": describe(run.recipe),
        "findings": find(run, data, judgement, pairs),
        "judgement": judgement,
        "loss_chart": charts.loss_chart(run.history),
        "accuracy_chart": charts.accuracy_chart(run.history, run.best),
        "rate_chart": charts.rate_chart(run.history),
        "time_chart": charts.time_chart(run.history),
        "times": shares(run.history),
        "remedy": remedy(run.history),
        "copies": data.attributes.copies,
        "copies_file": data.path / COPIES_FILE,
        "groups": show_groups(data, pick_groups(data.path, GROUPS), OF_GROUP),
        "again": shlex.join(_again(run, data)),
        "go_on": shlex.join(["logpose", "train", str(data.path), str(run.folder.path), "--resume"]),
        "versions": f"logpose {version('logpose')}, Python {platform.python_version()}, NumPy {np.__version__}",
        "colours": {"train": TRAIN, "val": VAL, "rate": RATE},
        "open_classes": OPEN_CLASSES,
    }
    if judgement:
        context |= _judged(data, judgement)
        context["pairs"] = show_pairs(data, judgement, pairs)
        context["worst"] = show_worst(data, judgement, judgement.worst(WORST), cam)
    return _environment().get_template("page.html.jinja").render(context)


def _judged(data: Dataset, judgement: Judgement) -> dict[str, Any]:
    """The figures and drawings that come from validating."""
    evaluation, calibration = judgement.evaluation, judgement.calibration
    confusion = evaluation.confusion  # (C, C) [true, predicted]
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)  # (C, C)
    as_table = len(confusion) <= TABLE_CLASSES
    found: dict[str, Any] = {
        "evaluation": evaluation,
        "top5": evaluation.top(5) if len(confusion) > 5 else None,
        "classes": _classes(data, judgement),
        "confusion": list(zip(data.class_names, confusion.tolist(), shares.tolist(), strict=True)) if as_table else [],
        "confusion_picture": "" if as_table else matrix(shares, TRAIN, VAL),
        "calibration": calibration,
        "reliability_charts": [],
    }
    if calibration:
        before, after = judgement.reliability(1.0), judgement.reliability(calibration.temperature)
        found["reliability_charts"] = [
            charts.reliability_chart("As the network says it", before),
            charts.reliability_chart(f"Divided by a temperature of {calibration.temperature:.2f}", after),
        ]
    return found


def _classes(data: Dataset, judgement: Judgement) -> list[ClassRow]:
    """The worst first; classes without a picture last."""
    training = np.bincount(data.train.labels, minlength=len(data.class_names))  # (C,)
    figures = (values.tolist() for values in (*judgement.evaluation.by_class, training))
    rows = [ClassRow(*values) for values in zip(data.class_names, *figures, strict=True)]
    return sorted(rows, key=lambda row: (not row.pictures, 0.0 if isnan(row.f1) else row.f1))


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
