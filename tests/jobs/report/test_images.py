"""The images in the report: which ones, and their captions."""

import re
from pathlib import Path

import numpy as np
import pytest

from cnn.backends import pick_backend
from cnn.evaluation.metrics import Evaluation
from cnn.inference.predictor import Predictor
from jobs.report.thumbnails import overlay, read_rows
from pipeline.dataset.store import Dataset, Split
from tests.jobs.conftest import RECIPE, Logpose, draw_classes
from tests.jobs.report.pages import CLASSES, Page, image_of, nearest_path, percent, read_report


def test_confusions_show_their_images(page: Page, evaluation: Evaluation, data_path: Path) -> None:
    val, confusion = Dataset.open(data_path).val, evaluation.confusion.copy()
    np.fill_diagonal(confusion, 0)
    blocks = re.findall(r"<h3>(.*?)</h3>\s*<ul class=\"images\">(.*?)</ul>", page.section("confusions").html, re.DOTALL)
    assert len(blocks) == (confusion > 0).sum() >= 2
    counts = []
    for heading, body in blocks:
        found = re.fullmatch(r"(.*) → (.*) (\d+) of (\d+) \(.*\)", Page(heading).text)
        assert found
        true, predicted = CLASSES.index(found[1]), CLASSES.index(found[2])
        counts.append(int(found[3]))
        assert counts[-1] == confusion[true, predicted]
        assert int(found[4]) == (evaluation.labels == true).sum()
        images = Page(body).all("img")
        assert len(images) == min(6, counts[-1])
        for image in images:
            path = nearest_path(image["src"], val)
            assert image["alt"] == path
            row = val.paths.index(path)
            assert (evaluation.labels[row], evaluation.predicted[row]) == (true, predicted)
        confidences = [float(text) for text in re.findall(r'class="cap">(\d+)', body)]
        assert confidences == sorted(confidences, reverse=True)
    assert counts == sorted(counts, reverse=True)


def test_highest_losses_come_first(page: Page, evaluation: Evaluation, data_path: Path, run_dir: Path) -> None:
    val = Dataset.open(data_path).val
    predictor = Predictor(run_dir / "model.safetensors", pick_backend("cpu"))
    probabilities = predictor.probabilities(val.read(0, val.rows))  # (N, C)
    true = probabilities[np.arange(val.rows), evaluation.labels]  # (N,)
    wrong = np.flatnonzero(evaluation.predicted != evaluation.labels)  # (M,)
    expected = wrong[np.argsort(true[wrong], kind="stable")][:24]
    figures = re.findall(r"<figure>(.*?)</figure>", page.section("label-errors").html, re.DOTALL)
    assert len(figures) == len(expected)
    for figure, row in zip(figures, expected, strict=True):
        thumbnail, *heat = Page(figure).all("img")
        assert nearest_path(thumbnail["src"], val) == val.paths[row]
        label, predicted = CLASSES[evaluation.labels[row]], CLASSES[evaluation.predicted[row]]
        caption = f"label {label} {percent(true[row])}predicted {predicted} {percent(probabilities[row].max())}"
        assert caption + val.paths[row] in Page(figure).text
        assert [image["alt"] for image in heat] == [f"Regions that support {name}" for name in (predicted, label)]
        assert all(image_of(image["src"]).shape == (128, 128, 3) for image in heat)
        assert heat[0]["src"] != heat[1]["src"]


def test_heat_is_where_the_map_is_high() -> None:
    heat = np.zeros((20, 40))
    heat[:10, :20] = 1.0
    pixels = image_of(overlay(np.full((20, 40, 3), (200, 40, 90), np.uint8), heat)).astype(int)  # (64, 128, 3)
    assert pixels.shape == (64, 128, 3)
    colourful = np.ptp(pixels, axis=2)  # (64, 128)
    assert colourful[:28, :60].min() > 80, "the corner is coloured"
    assert colourful[:, 70:].max() < 12 and colourful[38:].max() < 12, "the rest is grey"


def test_only_chunks_with_these_rows_are_read(
    tmp_path: Path, logpose: Logpose, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.dataset.schema.CHUNK_BYTES", 4 * 8 * 8 * 3)
    logpose("build", draw_classes(tmp_path / "images", 40), tmp_path / "d.zarr", "--size", 8, "--val", 0.9)
    val, read, chunks = Dataset.open(tmp_path / "d.zarr").val, Split.read, []

    def counted(split: Split, start: int, stop: int) -> np.ndarray:
        chunks.append((start, stop))
        return read(split, start, stop)

    monkeypatch.setattr(Split, "read", counted)
    found = read_rows(val, [9, 2, 8, val.rows - 1])
    assert chunks == [(2, 3), (8, 10), (val.rows - 1, val.rows)] and val.rows == 108
    assert list(found) == [2, 8, 9, 107]
    images = read(val, 0, val.rows)  # (N, H, W, 3)
    assert all(np.array_equal(found[row], images[row]) for row in found)


def test_images_that_are_not_square(logpose: Logpose, image_folder: Path, tmp_path: Path) -> None:
    logpose("build", image_folder, tmp_path / "d.zarr", "--size", "200x50", "--fit", "squash", "--val", 0.2)
    logpose("train", tmp_path / "d.zarr", tmp_path / "run", *RECIPE, "--epochs", 1)
    assert logpose("report", tmp_path / "run").code == 0
    images = read_report(tmp_path / "run").section("label-errors").all("img")
    assert images and {image_of(image["src"]).shape for image in images} == {(32, 128, 3)}
