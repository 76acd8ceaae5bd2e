"""The report on a training: what it says, which images it shows, and what it refuses."""

import base64
import csv
import io
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnn.backends import pick_backend
from cnn.checkpoint import load_checkpoint, save_checkpoint
from cnn.evaluation.calibration import Reliability, calibrate
from cnn.evaluation.metrics import Evaluation, wilson_interval
from cnn.inference.predictor import Predictor
from jobs.cli import main
from jobs.report import charts
from jobs.report.near_duplicates import pick_groups
from jobs.report.thumbnails import matrix, overlay, read_rows
from jobs.report.time_sections import parts_of, remedy
from jobs.training.metrics import EpochRow
from pipeline.dataset.schema import DUPLICATES_FILE
from pipeline.dataset.store import Dataset, Split
from tests.jobs.conftest import RECIPE, Logpose, draw_classes, draw_image

STRANGE = "<b>&\"'"
CLASSES = (STRANGE, "green", "red")
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """A page taken apart: its tags with their attributes, and its text; fails where a tag is not closed."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.html, self.text = html, ""
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attributes}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attributes}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def section(self, name: str) -> "Page":
        """The part under one heading."""
        (found,) = re.findall(rf'<section>\s*<h2 id="{name}">.*?</section>', self.html, re.DOTALL)
        return Page(found)

    @property
    def rows(self) -> list[list[str]]:
        """The text of the cells of all tables, row by row."""
        rows = re.findall(r"<tr>(.*?)</tr>", self.html, re.DOTALL)
        return [[Page(cell).text.strip() for cell in re.findall(r"<t[dh].*?>(.*?)</t[dh]>", row)] for row in rows]


def image_of(uri: str) -> np.ndarray:
    kind, _, text = uri.partition(";base64,")
    assert kind in ("data:image/jpeg", "data:image/png")
    with Image.open(io.BytesIO(base64.b64decode(text, validate=True))) as thumbnail:
        return np.asarray(thumbnail)  # (H, W, 3), or 4


def nearest_path(uri: str, part: Split) -> str:
    """The path of the image of a part that one on the page looks like most."""
    shown = image_of(uri).astype(np.float64)  # (H, W, 3)
    distances = np.abs(part.read(0, part.rows) - shown).mean(axis=(1, 2, 3))  # (N,)
    nearest, next_one = np.sort(distances)[:2]
    assert nearest < 14 and nearest < next_one / 2, "it is one of them, and no doubt which"
    return part.paths[int(distances.argmin())]


def percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f}\u00a0%"


@pytest.fixture(scope="module")
def strange(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of three classes, in which many are not of their class, and one file's name is as strange."""
    root = draw_classes(tmp_path_factory.mktemp("report") / "images", 30, CLASSES)
    for number in range(12):
        draw_image(root / "red" / f"<i>{number:02}.png", 0, 5000 + number)
        draw_image(root / "green" / f"&amp;{number:02}.png", 2, 6000 + number)
    path = root.parent / "a <dataset>.zarr"
    assert main(["build", str(root), str(path), "--size", "16", "--val", "0.4"]) == 0
    return path


@pytest.fixture(scope="module")
def run_dir(strange: Path) -> Path:
    """A finished training on it. Read it, or copy it."""
    path = strange.parent / "run"
    assert main(["train", str(strange), str(path), *RECIPE, "--epochs", "6", "--lr", "0.02"]) == 0
    return path


@pytest.fixture(scope="module")
def page(run_dir: Path) -> Page:
    assert main(["report", str(run_dir), "--device", "cpu"]) == 0
    return Page((run_dir / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def evaluation(strange: Path, run_dir: Path) -> Evaluation:
    """What the page should say, found in another way: all images at once."""
    val = Dataset.open(strange).val
    outputs = Predictor(run_dir / "model.safetensors", pick_backend("cpu")).logits(val.read(0, val.rows))
    return Evaluation(0.0, outputs, val.labels)


@pytest.fixture
def copy(run_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run_dir, tmp_path / "copy"))


def written(run: Path, name: str = "report.html") -> Page:
    return Page((run / name).read_text(encoding="utf-8"))


def change(path: Path, **values: object) -> None:
    """Write other values into what a checkpoint says of the training."""
    found = load_checkpoint(path)
    save_checkpoint(path, found.card, found.tensors, found.progress | values)


# The page as such -------------------------------------------------------------------------------------


def test_it_needs_nothing_but_itself(page: Page) -> None:
    assert page.html.startswith("<!DOCTYPE html>")
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(set(ids)) == len(ids) > 5
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "base", "form")
        assert not any(name.startswith("on") for name in attributes)
        assert "url(" not in attributes.get("style", "")
        if "src" in attributes:
            assert attributes["src"].startswith("data:image/") and tag == "img" and attributes["alt"]
        if "href" in attributes:
            assert attributes["href"] in {f"#{name}" for name in ids}
    assert not re.search(r"https?://|url\(|@import", page.html)
    assert len(page.html) < 5e6


def test_names_are_escaped(page: Page) -> None:
    assert STRANGE not in page.html and "<i>0" not in page.html and "<dataset>" not in page.html
    assert STRANGE in [row[0] for row in page.section("classes").rows]
    assert any(STRANGE in attributes.get("title", "") for attributes in page.all("td"))
    assert "a <dataset>.zarr" in page.text
    shown = [attributes["alt"] for attributes in page.all("img")]
    assert any("<i>" in alt for alt in shown) and any("&amp;" in alt for alt in shown)


def test_images_are_small(page: Page) -> None:
    assert max(max(image_of(image["src"]).shape) for image in page.all("img")) <= 128


# The figures ------------------------------------------------------------------------------------------


def test_the_figures(page: Page, evaluation: Evaluation, run_dir: Path) -> None:
    low, high = wilson_interval(evaluation.accuracy, evaluation.rows)
    assert f"with 95 % confidence {percent(low)} to {percent(high)}" in page.text
    calibration = calibrate(evaluation.outputs, evaluation.labels)
    heads = Page(re.findall(r'<dl class="tiles">.*?</dl>', page.html, re.DOTALL)[0]).text
    assert percent(evaluation.macro_f1) in heads
    assert percent(calibration.error) in heads and percent(calibration.error_scaled) in heads
    assert "top 5" not in heads, "there are three classes"
    with (run_dir / "metrics.csv").open(newline="") as file:
        noted = list(csv.DictReader(file))
    best = max(noted, key=lambda row: (float(row["val_accuracy"]), -float(row["val_loss"])))
    (shown,) = re.findall(r"<b>(.*?)</b>\s*<p>of (\d+) validation images", page.html)
    assert shown == (percent(float(best["val_accuracy"])), str(evaluation.rows))
    assert f"best epoch{best['epoch']} of 6" in heads.replace("\n", "")
    assert f"temperature of {float(best['temperature']):.2f}" in page.section("calibration").text
    card = load_checkpoint(run_dir / "model.safetensors")
    learned = sum(v.size for k, v in card.tensors.items() if not k.endswith((".mean", ".variance")))
    assert f"plain, {learned:,} parameters" in page.text
    assert "plain (width 4)" in page.text and "batches of 8" in page.text


def test_the_classes_are_sorted(page: Page, evaluation: Evaluation, strange: Path) -> None:
    scores, data = evaluation.by_class, Dataset.open(strange)
    order = np.argsort(scores.f1)
    expected = [
        [
            CLASSES[i], percent(scores.precision[i]), percent(scores.recall[i]), percent(scores.f1[i]),
            str(scores.images[i]), str((data.train.labels == i).sum()),
        ]
        for i in order
    ]  # fmt: skip
    assert page.section("classes").rows[1:] == expected
    assert f"{CLASSES[order[0]]} is recognised worst: F1 {percent(scores.f1[order[0]])}" in page.text


def test_the_confusion(page: Page, evaluation: Evaluation) -> None:
    header, *rows = page.section("confusion").rows
    assert header == ["", *CLASSES]
    assert [row[0] for row in rows] == list(CLASSES)
    assert [[int(cell) for cell in row[1:]] for row in rows] == evaluation.confusion.tolist()


def test_more_classes_than_fit_in_a_table(logpose: Logpose, tmp_path: Path) -> None:
    root = draw_classes(tmp_path / "images", 4, [f"class {number:02}" for number in range(33)])
    logpose("build", root, tmp_path / "d.zarr", "--size", 16, "--val", 0.25)
    logpose("train", tmp_path / "d.zarr", tmp_path / "run", *RECIPE, "--epochs", 1)
    assert logpose("report", tmp_path / "run").code == 0
    page = written(tmp_path / "run")
    (thumbnail,) = page.section("confusion").all("img")
    assert image_of(thumbnail["src"]).shape == (33, 33, 4)
    table = page.section("classes")
    assert len(table.rows) == 33 + 2 and "3 more classes" in table.text
    assert "top 5" in page.text


def test_a_matrix_as_a_image() -> None:
    shares = np.array([[1.0, 0.0], [0.25, 0.75]])
    pixels = image_of(matrix(shares, "#0000ff", "#ff0000")).tolist()  # (2, 2, 4)
    assert pixels[0][0] == [0, 0, 255, 255] and pixels[0][1][3] == 0
    assert pixels[1][0] == [255, 0, 0, 128] and pixels[1][1][:3] == [0, 0, 255]


# The images -----------------------------------------------------------------------------------------


def test_the_right_images_are_in_the_right_pairs(page: Page, evaluation: Evaluation, strange: Path) -> None:
    val, confusion = Dataset.open(strange).val, evaluation.confusion.copy()
    np.fill_diagonal(confusion, 0)
    blocks = re.findall(r"<h3>(.*?)</h3>\s*<ul class=\"images\">(.*?)</ul>", page.section("pairs").html, re.DOTALL)
    assert len(blocks) == (confusion > 0).sum() >= 2
    counts = []
    for heading, image_folder in blocks:
        found = re.fullmatch(r"(.*) → (.*) (\d+) of (\d+) \(.*\)", Page(heading).text)
        assert found
        true, predicted = CLASSES.index(found[1]), CLASSES.index(found[2])
        counts.append(int(found[3]))
        assert counts[-1] == confusion[true, predicted]
        assert int(found[4]) == (evaluation.labels == true).sum()
        images = Page(image_folder).all("img")
        assert len(images) == min(6, counts[-1])
        for image in images:
            path = nearest_path(image["src"], val)
            assert image["alt"] == path
            row = val.paths.index(path)
            assert (evaluation.labels[row], evaluation.predicted[row]) == (true, predicted)
        sure = [float(text) for text in re.findall(r'class="cap">(\d+)', image_folder)]
        assert sure == sorted(sure, reverse=True)
    assert counts == sorted(counts, reverse=True)


def test_the_worst_losses_come_first(page: Page, evaluation: Evaluation, strange: Path, run_dir: Path) -> None:
    val = Dataset.open(strange).val
    predictor = Predictor(run_dir / "model.safetensors", pick_backend("cpu"))
    probabilities = predictor.probabilities(val.read(0, val.rows))  # (N, C)
    true = probabilities[np.arange(val.rows), evaluation.labels]  # (N,)
    mistaken = np.flatnonzero(evaluation.predicted != evaluation.labels)  # (M,)
    expected = mistaken[np.argsort(true[mistaken], kind="stable")][:24]
    figures = re.findall(r"<figure>(.*?)</figure>", page.section("worst").html, re.DOTALL)
    assert len(figures) == len(expected)
    for figure, row in zip(figures, expected, strict=True):
        thumbnail, *heat = Page(figure).all("img")
        assert nearest_path(thumbnail["src"], val) == val.paths[row]
        label, predicted = CLASSES[evaluation.labels[row]], CLASSES[evaluation.predicted[row]]
        said = f"labelled {label} {percent(true[row])}taken for {predicted} {percent(probabilities[row].max())}"
        assert said + val.paths[row] in Page(figure).text
        assert [image["alt"] for image in heat] == [f"What speaks for {name}" for name in (predicted, label)]
        assert all(image_of(image["src"]).shape == (128, 128, 3) for image in heat)
        assert heat[0]["src"] != heat[1]["src"]


def test_heat_is_where_the_map_is() -> None:
    heat = np.zeros((20, 40))
    heat[:10, :20] = 1.0
    pixels = image_of(overlay(np.full((20, 40, 3), (200, 40, 90), np.uint8), heat)).astype(int)  # (64, 128, 3)
    assert pixels.shape == (64, 128, 3)
    colourful = np.ptp(pixels, axis=2)  # (64, 128)
    assert colourful[:28, :60].min() > 80, "the corner is coloured"
    assert colourful[:, 70:].max() < 12 and colourful[38:].max() < 12, "all else is grey"


def test_only_the_chunks_of_these_images_are_read_again(
    tmp_path: Path, logpose: Logpose, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.dataset.schema.CHUNK_BYTES", 4 * 8 * 8 * 3)
    logpose("build", draw_classes(tmp_path / "images", 40), tmp_path / "d.zarr", "--size", 8, "--val", 0.9)
    val, read, chunks = Dataset.open(tmp_path / "d.zarr").val, Split.read, []

    def counted(part: Split, start: int, stop: int) -> np.ndarray:
        chunks.append((start, stop))
        return read(part, start, stop)

    monkeypatch.setattr(Split, "read", counted)
    found = read_rows(val, [9, 2, 8, val.rows - 1])
    assert chunks == [(0, 4), (8, 12), (val.rows - 4, val.rows)] and val.rows == 108
    assert list(found) == [2, 8, 9, 107]
    images = read(val, 0, val.rows)  # (N, H, W, 3)
    assert all(np.array_equal(found[row], images[row]) for row in found)


def test_images_that_are_not_square(logpose: Logpose, image_folder: Path, tmp_path: Path) -> None:
    logpose("build", image_folder, tmp_path / "d.zarr", "--size", "200x50", "--fit", "squash", "--val", 0.2)
    logpose("train", tmp_path / "d.zarr", tmp_path / "run", *RECIPE, "--epochs", 1)
    assert logpose("report", tmp_path / "run").code == 0
    images = written(tmp_path / "run").section("worst").all("img")
    assert images and {image_of(image["src"]).shape for image in images} == {(32, 128, 3)}


# Copies -----------------------------------------------------------------------------------------------


def with_copies(dataset: Path, place: Path, groups: list[list[tuple[str, int]]]) -> Path:
    """The dataset as if these rows, by part, were copies, and the label of every group's last were another."""
    path = Path(shutil.copytree(dataset, place))
    data = Dataset.open(path)
    with (path / DUPLICATES_FILE).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["group", "part", "label", "path", "how", "labels"])
        for number, members in enumerate(groups, 1):
            for name, row in members:
                part = data.train if name == "train" else data.val
                label = data.class_names[part.labels[row]] if row != 5 else "green"
                writer.writerow([number, name, label, part.paths[row], "flipped", "same"])
    node = json.loads((path / "zarr.json").read_bytes())
    figures = {"groups": len(groups), "pictures": sum(map(len, groups)), "labels_differ": 1, "leaks": 2}
    node["attributes"]["copies"] = figures
    (path / "zarr.json").write_text(json.dumps(node))
    return path


def rows_of(part: Split, label: int) -> list[int]:
    return [int(row) for row in np.flatnonzero(part.labels == label)]


def test_copies(logpose: Logpose, strange: Path, copy: Path, tmp_path: Path) -> None:
    data = Dataset.open(strange)
    train, val = rows_of(data.train, 2), rows_of(data.val, 2)
    other = rows_of(data.train, 0)[0]
    groups = [
        [("train", row) for row in train[:3]],
        [("train", train[3]), ("val", val[0])],
        [("train", row) for row in train[4:12]],
        [("train", other), ("train", train[13])],
    ]
    path = with_copies(strange, tmp_path / "d.zarr", groups)
    assert [group.number for group in pick_groups(path, 3)] == [4, 2, 3]
    assert logpose("report", copy, "--dataset", path).code == 0
    page = written(copy)
    assert "1 group of copies has more than one label." in page.text
    assert f"2 of the {data.val.rows} validation images have a copy among those to train on" in page.text
    section = page.section("copies")
    assert "15 images in 4 groups" in section.text
    headings = [Page(found).text for found in re.findall("<h3>(.*?)</h3>", section.html, re.DOTALL)]
    assert headings[0] == "Group 4 2 images labels differ" and headings[1] == "Group 2 2 images on both sides"
    images = section.all("img")
    assert len(images) == 2 + 2 + 6 + 3, "of eight, six are shown"
    by_path = dict.fromkeys(data.train.paths, data.train) | dict.fromkeys(data.val.paths, data.val)
    for image in images:
        assert nearest_path(image["src"], by_path[image["alt"]]) == image["alt"]
    (path / DUPLICATES_FILE).unlink()
    assert logpose("report", copy, "--dataset", path).code == 0
    assert "duplicates.csv, is gone" in written(copy).section("copies").text
    (path / DUPLICATES_FILE).write_text("a,b\n1,2\n")
    assert str(path / DUPLICATES_FILE) in logpose("report", copy, "--dataset", path).error


# What is drawn ----------------------------------------------------------------------------------------


def history(epochs: int) -> list[EpochRow]:
    row = EpochRow(1, 10, 0.1, 2.0, 0.5, 1.5, 0.6, 10.0, 100.0, 1.0, compute_seconds=6.0, validation_seconds=2.0)
    return [replace(row, epoch=n, train_accuracy=n / epochs, val_accuracy=0.5 / n) for n in range(1, epochs + 1)]


@pytest.mark.parametrize("epochs", [1, 7, 200])
def test_curves_are_where_the_values_are(epochs: int) -> None:
    rows = history(epochs)
    chart = charts.accuracy_chart(rows, rows[0])
    assert [(curve.kind, len(curve.points.split())) for curve in chart.curves] == [("train", epochs), ("val", epochs)]
    for curve, column in zip(chart.curves, ("train_accuracy", "val_accuracy"), strict=True):
        points = [tuple(map(float, point.split(","))) for point in curve.points.split()]
        shares = [(chart.bottom - y) / (chart.bottom - chart.top) for _, y in points]
        np.testing.assert_allclose(shares, [getattr(row, column) for row in rows], atol=1e-3)
        assert [x for x, _ in points] == sorted({x for x, _ in points})
        assert bool(curve.dots) == (epochs < 50)
    assert chart.mark and chart.mark.text == f"best {percent(0.5)} in epoch 1"
    numbers = [int(tick.text) for tick in chart.x_ticks]
    assert numbers[0] == 1 and len(numbers) <= 10 and numbers[-1] > 0.8 * epochs
    assert [tick.text for tick in chart.y_ticks][::5] == [percent(0, 0), percent(1, 0)]


def test_every_second_is_drawn_once() -> None:
    rows = history(3)
    assert parts_of(rows) == {"compute": 18.0, "wait": 3.0, "validation": 6.0, "save": 0.0, "other": 3.0}
    chart = charts.time_chart(rows)
    (unit,) = {round((chart.bottom - tick.at) / float(tick.text[:-2]), 1) for tick in chart.y_ticks[1:]}
    for epoch in range(3):
        boxes = chart.boxes[4 * epoch : 4 * epoch + 4]
        assert [box.kind for box in boxes] == ["compute", "wait", "validation", "other"]
        assert sum(box.height for box in boxes) == pytest.approx(10 * unit, rel=0.02)
        assert all(a.y == pytest.approx(b.y + b.height, abs=0.11) for a, b in pairwise(boxes))
    assert remedy(rows) == ""
    slow = [replace(row, wait_seconds=3.0, decode_seconds=9.0, read_seconds=1.0) for row in rows]
    assert remedy(slow).startswith("Data was the bottleneck: decoding took most")


def test_reliability_is_drawn_against_the_diagonal() -> None:
    found = Reliability(np.array([0, 4, 0, 16]), *np.array([[np.nan, 0.4, np.nan, 0.9], [np.nan, 0.6, np.nan, 0.7]]))
    chart = charts.reliability_chart("x", found)
    tall = chart.bottom - chart.top
    by_kind = {kind: [box for box in chart.boxes if box.kind == kind] for kind in ("right", "timid", "bold", "many")}
    assert [round(box.height / tall, 2) for box in by_kind["right"]] == [0.4, 0.7]
    (timid,), (bold,) = by_kind["timid"], by_kind["bold"]
    assert timid.height / tall == pytest.approx(0.2, abs=0.01) and bold.height / tall == pytest.approx(0.2, abs=0.01)
    assert timid.x < bold.x
    assert by_kind["many"][1].height == 2 * by_kind["many"][0].height, "areas' sides: four times as many images"
    assert "16 images named with" in bold.title


# Other trainings --------------------------------------------------------------------------------------


def test_an_unfinished_training(logpose: Logpose, copy: Path) -> None:
    last = load_checkpoint(copy / "last.safetensors").progress
    change(copy / "last.safetensors", recipe=last["recipe"].replace("epochs = 6", "epochs = 9"))
    assert logpose("report", copy).code == 0
    page = written(copy)
    assert "The training is not finished: 6 of 9 epochs." in page.text
    assert f"{copy} --resume" in page.section("again").text


def test_a_model_of_an_epoch_that_was_not_noted(logpose: Logpose, copy: Path) -> None:
    """As after a kill right behind it."""
    last = load_checkpoint(copy / "last.safetensors").progress
    change(copy / "last.safetensors", history=last["history"][:2], best=1)
    change(copy / "model.safetensors", epoch=3, val_accuracy=0.123)
    assert logpose("report", copy).code == 0
    page = written(copy)
    assert "3 of 6 epochs" in page.text
    assert f"The training noted an accuracy of {percent(0.123)} for this epoch, it is" in page.text


def test_without_validation(logpose: Logpose, image_folder: Path, tmp_path: Path) -> None:
    logpose("build", image_folder, tmp_path / "d.zarr", "--size", 16, "--val", 0)
    logpose("train", tmp_path / "d.zarr", tmp_path / "run", *RECIPE)
    outcome = logpose("report", tmp_path / "run")
    assert outcome.code == 0 and "accuracy" not in outcome.out
    page = written(tmp_path / "run")
    assert "There is no validation part" in page.text and "last epoch" in page.text
    headings = [attributes["id"] for attributes in page.all("h2")]
    assert headings == ["curves", "copies", "again"]
    assert not page.all("img")


def test_another_loss_is_not_calibrated(logpose: Logpose, strange: Path, tmp_path: Path) -> None:
    for loss in ("binary_cross_entropy", "mean_squared_error"):
        run = tmp_path / loss
        assert logpose("train", strange, run, *RECIPE, "--epochs", 1, "--set", f"loss.name={loss}").code == 0
        assert logpose("report", run).code == 0
        page = written(run)
        assert "alibration" not in page.text and page.section("worst").all("img")


def test_without_the_state_to_resume_from(logpose: Logpose, strange: Path, copy: Path, page: Page) -> None:
    (copy / "last.safetensors").unlink()
    assert "--dataset DATASET.zarr" in logpose("report", copy).error
    assert logpose("report", copy, "--dataset", strange).code == 0
    found = written(copy)
    assert found.section("classes").html == page.section("classes").html
    assert [curve["points"] for curve in found.all("polyline")] == [curve["points"] for curve in page.all("polyline")]
    # It has lost its patience if its best epoch is not the last.
    recipe = (copy / "config.toml").read_text().replace("epochs = 6", "epochs = 9")
    (copy / "config.toml").write_text(recipe.replace("patience = 0", "patience = 1"))
    with (copy / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for accuracy, finished in (("1", True), ("0", False)):
        rows[1]["val_accuracy"], rows[-1]["val_accuracy"] = accuracy, "0.99"
        with (copy / "metrics.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        assert logpose("report", copy, "--dataset", strange).code == 0
        assert ("not finished" in written(copy).text) != finished


def test_small_and_useless(logpose: Logpose, strange: Path, copy: Path, page: Page) -> None:
    assert "validation images tell no more than" in page.text
    found = load_checkpoint(copy / "model.safetensors")
    zeros = {name: np.zeros_like(tensor) for name, tensor in found.tensors.items()}
    save_checkpoint(copy / "model.safetensors", found.card, zeros, found.progress)
    assert logpose("report", copy).code == 0
    said = written(copy)
    assert f"No better than always naming {CLASSES[1]}" in said.text or "No better than always naming red" in said.text
    assert "No better" not in page.text


def test_the_command_can_be_run(page: Page, run_dir: Path, strange: Path) -> None:
    (command,) = [text for text in re.findall(r"<pre>(.*?)</pre>", page.html, re.DOTALL) if "train" in text[:20]]
    words = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {Page(command).text}"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    place, config = run_dir.with_name("run-again"), run_dir / "config.toml"
    assert words == ["logpose", "train", str(strange), str(place), "--config", str(config)]
    assert Dataset.open(strange).content_hash in page.text
    assert config.read_text() in page.text


# Places and refusals ----------------------------------------------------------------------------------


def test_places(logpose: Logpose, copy: Path, tmp_path: Path) -> None:
    (copy / "report.html").write_text("an earlier one")
    outcome = logpose("report", copy)
    assert (outcome.code, outcome.err) == (0, "")
    assert f"report: {copy / 'report.html'} (" in outcome.out
    assert written(copy).all("img")
    assert logpose("report", copy, "--out", tmp_path / "new" / "my.html").code == 0
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["my.html"]
    refused = logpose("report", copy, "--out", copy / "model.safetensors").error
    assert "expected a name that ends in .html" in refused
    assert not list(copy.glob(".*"))


def _not_there(run: Path) -> None:
    shutil.rmtree(run)


def _a_file(run: Path) -> None:
    shutil.rmtree(run)
    run.write_text("")


def _no_model(run: Path) -> None:
    for name in ("model.safetensors", "last.safetensors"):
        (run / name).unlink()


def _no_epoch(run: Path) -> None:
    (run / "model.safetensors").unlink()


def _model_alone(run: Path) -> None:
    for name in ("last.safetensors", "metrics.csv"):
        (run / name).unlink()


def _broken(run: Path) -> None:
    (run / "last.safetensors").write_bytes((run / "last.safetensors").read_bytes()[:-9])


def _moved(run: Path) -> None:
    change(run / "last.safetensors", dataset="/nowhere/d.zarr")


def _older(run: Path) -> None:
    change(run / "last.safetensors", dataset="")


def _rebuilt(run: Path) -> None:
    change(run / "last.safetensors", content_hash="0123456789")


REFUSALS = {
    _not_there: "found nothing at",
    _a_file: "found a file at",
    _no_model: "expected model.safetensors of a training, found none in",
    _no_epoch: "without a finished epoch",
    _model_alone: "neither last.safetensors nor metrics.csv",
    _broken: "last.safetensors is not a complete model file",
    _moved: "found nothing at /nowhere/d.zarr; if it has moved",
    _older: "does not say where its dataset is; give it with --dataset",
    _rebuilt: "was trained on another dataset (content 01234567, ",
}


@pytest.mark.parametrize("spoil", REFUSALS, ids=lambda spoil: spoil.__name__)
def test_what_is_refused(logpose: Logpose, copy: Path, spoil: Callable[[Path], None]) -> None:
    (copy / "report.html").unlink(missing_ok=True)
    spoil(copy)
    outcome = logpose("report", copy)
    assert (outcome.code, outcome.out) == (2, "")
    assert REFUSALS[spoil] in outcome.error
    assert not (copy / "report.html").exists()


def test_a_dataset_that_does_not_belong(logpose: Logpose, copy: Path, dataset: Path) -> None:
    assert "was trained on another dataset" in logpose("report", copy, "--dataset", dataset).error
    (copy / "last.safetensors").unlink()
    assert "trained on other classes or sizes" in logpose("report", copy, "--dataset", dataset).error
    assert "found nothing at" in logpose("report", copy, "--dataset", copy / "none").error


def test_a_damaged_image(logpose: Logpose, copy: Path, strange: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(strange, tmp_path / "d.zarr"))
    shard = data / "val" / "images" / "c" / "0" / "0" / "0" / "0"
    content = bytearray(shard.read_bytes())
    content[1000] ^= 1
    shard.write_bytes(content)
    assert f"logpose verify {data}" in logpose("report", copy, "--dataset", data).error


# In a browser -----------------------------------------------------------------------------------------

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MEASURE = """<script>addEventListener("load", () => {
  const images = [...document.images];
  const wide = document.documentElement;
  document.title = JSON.stringify({
    images: images.length, loaded: images.filter(image => image.naturalWidth > 0).length,
    wide: wide.scrollWidth, window: wide.clientWidth,
  });
});</script></body>"""


Browse = Callable[..., tuple[str, str]]


@pytest.fixture
def browse(tmp_path: Path) -> Browse:
    """Open a page; returns what is printed, and what the browser complains of."""
    options = (
        "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking"
        " --disable-component-update --disable-sync --enable-logging=stderr"
    )

    def run(page: Path, *more: str) -> tuple[str, str]:
        command = [str(CHROMIUM), *options.split(), f"--user-data-dir={tmp_path / 'browser'}", *more, page.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)

    return run


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_a_browser_shows_it(browse: Browse, page: Page, run_dir: Path, tmp_path: Path) -> None:
    shot = tmp_path / "shot.png"
    _, complaints = browse(run_dir / "report.html", f"--screenshot={shot}", "--window-size=1200,1600")
    assert complaints == "", "its own policy lets it do all it does"
    with Image.open(shot) as thumbnail:
        colours = np.unique(np.asarray(thumbnail.convert("RGB")).reshape(-1, 3), axis=0)  # (K, 3)
    assert len(colours) > 500, "it is not blank"
    measured = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.html).replace("</body>", MEASURE)
    (tmp_path / "measured.html").write_text(measured, encoding="utf-8")
    dom, complaints = browse(tmp_path / "measured.html", "--dump-dom", "--window-size=500,900")
    assert complaints == ""
    found = json.loads(re.findall(r"<title>(.*?)</title>", dom)[0])
    assert found["images"] == found["loaded"] == len(page.all("img")) > 20
    assert found["wide"] <= found["window"] <= 500, "nothing is cut off on a narrow screen"
