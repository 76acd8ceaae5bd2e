"""The numbers in the report: accuracy, classes, confusion matrix."""

import csv
import re
from pathlib import Path

import numpy as np

from cnn.checkpoint import load_checkpoint
from cnn.evaluation.calibration import calibrate
from cnn.evaluation.metrics import Evaluation, wilson_interval
from jobs.report.thumbnails import confusion_png
from pipeline.dataset.store import Dataset
from tests.jobs.conftest import RECIPE, Logpose, draw_classes
from tests.jobs.report.pages import CLASSES, Page, image_of, percent, read_report


def test_scores_match_the_evaluation(page: Page, evaluation: Evaluation, run_dir: Path) -> None:
    low, high = wilson_interval(evaluation.accuracy, evaluation.rows)
    assert f"95 % confidence interval: {percent(low)} to {percent(high)}" in page.text
    calibration = calibrate(evaluation.outputs, evaluation.labels)
    heads = Page(re.findall(r'<dl class="tiles">.*?</dl>', page.html, re.DOTALL)[0]).text
    assert percent(evaluation.macro_f1) in heads
    assert percent(calibration.error) in heads and percent(calibration.error_scaled) in heads
    assert "top-5" not in heads, "there are only three classes"
    with (run_dir / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    best = max(rows, key=lambda row: (float(row["val_accuracy"]), -float(row["val_loss"])))
    (shown,) = re.findall(r"<b>(.*?)</b>\s*<p>of (\d+) validation images", page.html)
    assert shown == (percent(float(best["val_accuracy"])), str(evaluation.rows))
    assert f"best epoch{best['epoch']} of 6" in heads.replace("\n", "")
    assert f"T = {float(best['temperature']):.2f}" in page.section("calibration").text
    card = load_checkpoint(run_dir / "model.safetensors")
    learned = sum(v.size for k, v in card.tensors.items() if not k.endswith((".mean", ".variance")))
    assert f"plain, {learned:,} parameters" in page.text
    assert "plain (width 4)" in page.text and "batches of 8" in page.text


def test_classes_are_sorted_by_f1(page: Page, evaluation: Evaluation, data_path: Path) -> None:
    scores, data = evaluation.by_class, Dataset.open(data_path)
    order = np.argsort(scores.f1)
    expected = [
        [
            CLASSES[i], percent(scores.precision[i]), percent(scores.recall[i]), percent(scores.f1[i]),
            str(scores.images[i]), str((data.train.labels == i).sum()),
        ]
        for i in order
    ]  # fmt: skip
    assert page.section("classes").rows[1:] == expected
    assert f"{CLASSES[order[0]]} has the lowest F1: {percent(scores.f1[order[0]])}" in page.text


def test_confusion_matrix_has_all_counts(page: Page, evaluation: Evaluation) -> None:
    header, *rows = page.section("confusion-matrix").rows
    assert header == ["", *CLASSES]
    assert [row[0] for row in rows] == list(CLASSES)
    assert [[int(cell) for cell in row[1:]] for row in rows] == evaluation.confusion.tolist()


def test_many_classes_have_a_matrix_image_and_collapsed_rows(logpose: Logpose, tmp_path: Path) -> None:
    root = draw_classes(tmp_path / "images", 4, [f"class {number:02}" for number in range(33)])
    logpose("build", root, tmp_path / "d.zarr", "--size", 16, "--val", 0.25)
    logpose("train", tmp_path / "d.zarr", tmp_path / "run", *RECIPE, "--epochs", 1)
    assert logpose("report", tmp_path / "run").code == 0
    page = read_report(tmp_path / "run")
    (thumbnail,) = page.section("confusion-matrix").all("img")
    assert image_of(thumbnail["src"]).shape == (33, 33, 4)
    table = page.section("classes")
    assert len(table.rows) == 33 + 2 and "3 more classes" in table.text
    assert "top-5 accuracy" in page.text


def test_confusion_png_has_a_pixel_per_cell() -> None:
    fractions = np.array([[1.0, 0.0], [0.25, 0.75]])
    pixels = image_of(confusion_png(fractions, "#0000ff", "#ff0000")).tolist()  # (2, 2, 4)
    assert pixels[0][0] == [0, 0, 255, 255] and pixels[0][1][3] == 0
    assert pixels[1][0] == [255, 0, 0, 128] and pixels[1][1][:3] == [0, 0, 255]
